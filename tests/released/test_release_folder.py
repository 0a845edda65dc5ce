"""A folder in the release's layout, as a user has it: what is loaded from it does as the release did, by default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from release_models import golden, new_lavit, new_pipeline, new_processor, new_tokenizer, pictures, rows
from release_recipe import MULTIMODAL, TEXT_SIZE, TOKENIZER, draws, noise, questions
from transformers import GenerationConfig

from lavit.language import LaVIT, sampling
from lavit.pixels import pipeline
from lavit.released.language import load_released_lavit
from lavit.tokenizer import LaVITTokenizerConfig


def write(model: LaVIT, folder: Path) -> None:
    visual, language = folder / "visual_tokenizer", folder / "language_model"
    visual.mkdir()
    state = new_tokenizer().state_dict()
    own = ("quantize.cluster_size", "quantize.updates")
    for file, part in (("eva_vitg_psz14.bin", "encoder."), ("tokenizer_decoder.bin", "decoder.")):
        torch.save({k.removeprefix(part): t for k, t in state.items() if k.startswith(part)}, visual / file)
    rest = {k: t for k, t in state.items() if not k.startswith(("encoder.", "decoder.")) and k not in own}
    torch.save(rest, visual / "tokenizer_encoder.bin")
    model.language_model.save_pretrained(language)
    torch.save(model.understanding.state_dict(), language / "visual_weight.bin")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LaVIT:
    folder = tmp_path_factory.mktemp("release")
    write(new_lavit(), folder)
    return load_released_lavit(folder, config=LaVITTokenizerConfig(**TOKENIZER), text_size=TEXT_SIZE)


def test_it_is_set_as_the_release_is(model: LaVIT) -> None:
    config = model.config
    assert (config.prompt_images, config.answer_early_stopping) == ("bare_codes", True)
    assert model.understanding.form == config.tokenizer_config.merge == "dense"
    # Where the release's own arithmetic is at fault it is not followed unasked.
    assert config.tokenizer_config.distances == "exact"


def test_its_settings_of_texts_are_written_with_it(model: LaVIT, tmp_path: Path) -> None:
    """As `lavit convert` writes it."""
    model.save_pretrained(tmp_path)
    captions = GenerationConfig.from_pretrained(tmp_path)
    answers = GenerationConfig.from_pretrained(tmp_path, "answer_generation_config.json")
    names = ("num_beams", "min_new_tokens", "max_new_tokens", "length_penalty", "early_stopping")
    assert [getattr(captions, name) for name in names] == [2, 8, 36, 1.0, False]
    assert [getattr(answers, name) for name in names] == [5, 2, 10, 0.0, True]


def test_it_answers_as_the_release(model: LaVIT) -> None:
    processor = new_processor()
    answers = model.answer(pictures(*range(20)), questions(20), processor, max_new=16, length_penalty=1.0)
    texts = [processor.tokenizer.decode(row) for row in rows("text", "long_answers")[:20]]
    # The tokenizer's texts hold these marks alone.
    assert answers == [text.strip().split("\n")[0].split(",")[0].split(".")[0].strip().lower() for text in texts]


def test_it_draws_after_pictures_as_the_release(model: LaVIT, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        model.language_model.lm_head.weight[2] = 0  # as in the golden file
    monkeypatch.setattr(sampling, "uniforms", lambda seeds, length: draws("multimodal 0", 1)[seeds, :length])
    prompt = [pictures(piece)[0] if isinstance(piece, int) else piece for piece in MULTIMODAL[0]]
    drawn = model.generate_tokens([prompt], new_processor(), seeds=[0])
    assert drawn.codes.values.tolist() == golden("tokens")["multimodal_0"].tolist()


@pytest.mark.parametrize("kind", ["lowres", "highres"])
@pytest.mark.parametrize("name", ["text", "pictures"])
def test_a_prompt_becomes_the_releases_image(
    model: LaVIT, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    """Text, or a picture and text, to pixels in one call, with no settings given."""
    with torch.no_grad():
        model.language_model.lm_head.weight[2] = 0  # as in the golden file
    monkeypatch.setattr(sampling, "uniforms", lambda seeds, length: draws("whole", 1)[seeds, :length])
    monkeypatch.setattr(pipeline, "initial_noise", lambda count, shape, generators: noise("latents", count, *shape))
    prompt = "a dog" if name == "text" else [pictures(p)[0] if isinstance(p, int) else p for p in MULTIMODAL[0]]
    image = new_pipeline(kind).generate(model, new_processor(), [prompt], seeds=[0]).images[0]
    found, wanted = torch.from_numpy(np.array(image)).int(), golden("whole")[f"{name}_{kind}"].int()
    assert (found - wanted).abs().max() <= 1 and (found != wanted).float().mean() < 1e-3  # halves round either way
    assert wanted.float().std() > 10
