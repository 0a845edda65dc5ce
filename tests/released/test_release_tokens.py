"""Image tokens that the release's own code drew, given the same random numbers: texts and pictures in the prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from release_models import golden, new_lavit, new_processor, picture, picture_size, rows
from release_recipe import IMAGE_CASES, MULTIMODAL, RECORDED, draws
from torch import Tensor

from lavit.kernels.draw_id import reference
from lavit.language import LaVIT, inference, sampling

PROCESSOR = new_processor()
MAX_TOKENS = 60


@pytest.fixture(scope="module")
def model() -> LaVIT:
    """Ids 0 to 2 and [IMG], which the release would also draw inside an image, are improbable."""
    return new_lavit(eos=0)


def codes_of(model: LaVIT, prompts: list[Any], **settings: Any) -> list[list[int]]:
    return [row.tolist() for row in model.generate_tokens(prompts, PROCESSOR, **settings).codes.unbind()]


def use_draws(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    """A sample's seed is its row of the recipe's random numbers."""
    numbers = draws(name, count)
    monkeypatch.setattr(sampling, "uniforms", lambda seeds, length: numbers[seeds, :length])


def asked(settings: dict[str, Any]) -> dict[str, Any]:
    """The release's names as this library's. Nothing leaves the batch, so that all distributions can be seen."""
    own = {"num_return_images": "num_samples"}
    return {own.get(name, name): value for name, value in settings.items()} | {"check_every": 1000}


@pytest.mark.parametrize(("name", "prompts", "settings"), IMAGE_CASES, ids=[case[0] for case in IMAGE_CASES])
def test_the_same_numbers_draw_the_same_images_from_the_same_distributions(
    model: LaVIT, monkeypatch: pytest.MonkeyPatch, name: str, prompts: tuple[str, ...], settings: dict[str, Any]
) -> None:
    wanted = rows("tokens", name)
    use_draws(monkeypatch, name, len(wanted))
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(*arguments: Any) -> tuple[Tensor, Tensor]:
        weight, ids = candidates(*arguments)
        assert ids is not None
        seen.append((weight, ids))
        return weight, ids

    candidates = reference.candidates
    monkeypatch.setattr(reference, "candidates", spy)
    monkeypatch.setenv("LAVIT_KERNELS", "draw_id=reference")
    found = codes_of(model, list(prompts), seeds=range(len(wanted)), max_tokens=MAX_TOKENS, **asked(settings))
    assert found == wanted
    # They ended by [/IMG], not before the 20th code, nor with the last one allowed.
    assert all(20 <= len(row) < MAX_TOKENS for row in wanted) and len({len(row) for row in wanted}) > 1

    begin = model.vocabulary.end_id
    for place, token in enumerate(RECORDED):
        weight, ids = seen[token]
        probs = torch.zeros(len(wanted), model.vocabulary.size, dtype=torch.float64)
        probs.scatter_(1, ids + begin, weight / weight.sum(1, keepdim=True))
        best = golden("tokens")[f"{name}_best_ids"][:, place].long()
        expected = golden("tokens")[f"{name}_best_probs"][:, place].double()
        running = torch.tensor([len(row) >= token for row in wanted])
        # A softmax is off by what its scores are: guidance 4 of logits of 15, each to 1e-6 of it.
        torch.testing.assert_close(probs.gather(1, best)[running], expected[running], rtol=1e-4, atol=1e-7)
        assert torch.equal((probs > 0).sum(1)[running], (expected > 0).sum(1)[running])


@pytest.mark.parametrize("number", range(len(MULTIMODAL)))
def test_pictures_of_a_prompt_are_bare_codes(model: LaVIT, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Token by token the release's prompt, and the image that it drew after it, with guidance 5."""
    use_draws(monkeypatch, f"multimodal {number}", 1)
    read: list[Tensor] = []

    def spy(language_model: Any, vocabulary: Any, prompts: Any, *rest: Any, **settings: Any) -> Any:
        read.append(prompts.values)
        return sampling.sample_image_tokens(language_model, vocabulary, prompts, *rest, **settings)

    monkeypatch.setattr(inference, "sample_image_tokens", spy)
    prompt = [picture(piece, picture_size(piece)) if isinstance(piece, int) else piece for piece in MULTIMODAL[number]]
    found = codes_of(model, [prompt], seeds=[0])
    embedding = model.language_model.model.embed_tokens.weight
    ids = golden("tokens")[f"multimodal_{number}_prompt"].long()
    begin = torch.tensor([model.vocabulary.begin_id])
    assert torch.equal(read[0], embedding[torch.cat((ids, begin))])
    assert found == [golden("tokens")[f"multimodal_{number}"].tolist()]
    for shown in ("features", "codes"):
        assert codes_of(model, [prompt], seeds=[0], prompt_images=shown) != found
