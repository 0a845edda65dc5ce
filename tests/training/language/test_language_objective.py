"""Learning rates by part: what is in which group, and rows of one matrix at two rates."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_lavit import TEXT_SIZE, llama, tokenizer
from torch import Tensor, nn

from lavit.language.model import LaVIT
from lavit.training.language.objective import ROW_RATES, parameter_groups, scale_rows


def build(tied: bool = False, **settings: Any) -> LaVIT:
    return LaVIT.from_parts(llama(tie_word_embeddings=tied), tokenizer(), **settings)


@pytest.mark.parametrize("tied", [False, True])
def test_every_trained_parameter_is_in_one_group_of_its_part(tied: bool) -> None:
    model = build(tied, image_objective="regress")
    groups = parameter_groups(model, weight_decay=0.3, language=1, new_rows=4, visual=10)
    members = [id(p) for group in groups for p in group["params"]]
    trained = {id(p) for n, p in model.named_parameters() if not n.startswith("visual_tokenizer.")}
    assert len(members) == len(set(members)) and set(members) == trained
    names = {id(p): n for n, p in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            vocabulary = name.endswith(("embed_tokens.weight", "lm_head.weight"))
            part = 4 if vocabulary else 1 if name.startswith("language_model.") else 10
            assert group["lr_scale"] == part, name
            assert group["weight_decay"] == (0.3 if parameter.dim() >= 2 and not vocabulary else 0), name
            assert (ROW_RATES in group) == vocabulary
    assert len(groups[-1]["params"]) == (1 if tied else 2)


def test_a_part_of_rate_zero_is_frozen() -> None:
    model = build()
    groups = parameter_groups(model, language=0, new_rows=2)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    vocabulary = {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"}
    assert vocabulary < trained and all(n in vocabulary or n.startswith("understanding.") for n in trained)
    assert sum(len(g["params"]) for g in groups) == len(trained)
    parameter_groups(model, visual=0, language=1)
    assert not any(p.requires_grad for p in model.understanding.parameters())
    assert all(p.requires_grad for p in model.language_model.parameters())
    with pytest.raises(ValueError, match="new_rows: expected a factor of at least 0, got -1"):
        parameter_groups(model, new_rows=-1)


def steps(optimizer: torch.optim.Optimizer, parameters: list[Tensor], count: int = 7) -> None:
    """Steps on gradients that depend on the parameters, over all their rows together."""
    for i in range(count):
        optimizer.zero_grad()
        whole = torch.cat([p.flatten(1) for p in parameters])
        slope = torch.linspace(-1, 1, whole.numel()).view_as(whole) * (i + 1)
        (whole.square() + whole * slope).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
@pytest.mark.parametrize(("old", "new"), [(1.0, 5.0), (5.0, 1.0), (1.0, 1.0), (0.0, 2.0), (2.0, 0.0)])
def test_rows_at_two_rates_are_two_matrices_at_their_own(kind: str, old: float, new: float) -> None:
    start, rate, rows = torch.randn(11, 5, dtype=torch.float64), 1e-2, 4
    make = {
        "AdamW": lambda groups: torch.optim.AdamW(groups, lr=rate, weight_decay=0.1),
        "SGD": lambda groups: torch.optim.SGD(groups, lr=rate, momentum=0.9, weight_decay=0.1),
    }[kind]
    parts = [nn.Parameter(x.clone()) for x in (start[:rows], start[rows:])]
    apart = make([{"params": [p], "lr": rate * r} for p, r in zip(parts, (old, new), strict=True)])
    steps(apart, parts)
    one, highest = nn.Parameter(start.clone()), max(old, new)
    group = {"params": [one], "lr": rate * highest, ROW_RATES: (rows, new / highest, old / highest)}
    together = make([group])
    scale_rows(together)
    steps(together, [one])
    torch.testing.assert_close(one.detach(), torch.cat(parts).detach(), rtol=1e-9, atol=1e-12)
    if not old:
        assert torch.equal(one[:rows], start[:rows])


def test_a_model_learns_its_new_rows_alone_and_the_state_survives_saving() -> None:
    model = build()
    optimizer = torch.optim.AdamW(parameter_groups(model, language=0, visual=0), lr=1e-2)
    scale_rows(optimizer)
    before = copy.deepcopy(model.state_dict())
    hidden = torch.randn(3, 32)
    model.logits(hidden).square().sum().backward()
    optimizer.step()
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"language_model.lm_head.weight"}, "the embedding had no gradient"
    head = model.language_model.lm_head.weight
    assert torch.equal(head[:TEXT_SIZE], before["language_model.lm_head.weight"][:TEXT_SIZE])
    assert (head[TEXT_SIZE:] != before["language_model.lm_head.weight"][TEXT_SIZE:]).any(dim=1).all()
    again = torch.optim.AdamW(parameter_groups(model, language=0, visual=0), lr=1e-2)
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0][ROW_RATES] == optimizer.param_groups[0][ROW_RATES]


def test_a_parameter_that_is_not_whole_is_refused() -> None:
    flat = nn.Parameter(torch.zeros(20))
    optimizer = torch.optim.SGD([{"params": [flat], ROW_RATES: (4, 1.0, 0.5)}], lr=1.0)
    scale_rows(optimizer)
    flat.sum().backward()
    with pytest.raises(ValueError, match="row_rates: expected a whole matrix of at least 4 rows, got Parameter"):
        optimizer.step()
