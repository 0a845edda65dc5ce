from __future__ import annotations

import math

import pytest
import torch

from lavit.kernels import draw_id
from lavit.kernels.draw_id import cpp

COMPILED = pytest.mark.skipif(cpp.unusable("cpu") is not None, reason=f"{cpp.unusable('cpu')}")
IMPLEMENTATIONS = ["reference", pytest.param("cpp", marks=COMPILED)]
SETTINGS = [
    {},
    {"top_k": 5, "temperature": 0.7},
    {"top_p": 0.6},
    {"top_k": 7, "top_p": 0.8, "temperature": 2.0},
    {"top_k": 1},
    {"top_k": 10**6},
    {"temperature": 0.0},
]


def definition(scores: list[float], u: float, top_k=None, top_p=1.0, temperature=1.0) -> int:
    """One row of different finite scores, in plain Python."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    if temperature == 0:
        return order[0]
    kept = order[:top_k]
    weight = {i: math.exp((scores[i] - scores[order[0]]) / temperature) for i in kept}
    total, before, nucleus = sum(weight.values()), 0.0, []
    for i in kept:
        if before < top_p * total:
            nucleus.append(i)
        before += weight[i]
    total, reached = sum(weight[i] for i in nucleus), 0.0
    for i in sorted(nucleus):
        reached += weight[i]
        if u * total < reached:
            return i
    return max(nucleus)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_definition(impl, settings, dtype):
    generator = torch.Generator().manual_seed(3)
    scores = 3 * torch.randn(300, 23, dtype=torch.float64, generator=generator).to(dtype)
    uniform = torch.rand(300, dtype=torch.float64, generator=generator)
    found = draw_id(scores, uniform, impl=impl, **settings)
    # In float32 a difference of scores is rounded: a number within 1e-6 of a border may go to its other side.
    wanted = [
        {definition(row, min(max(u + d, 0.0), 1 - 2**-53), **settings) for d in (-1e-6, 0, 1e-6)}
        for row, u in zip(scores.double().tolist(), uniform.tolist(), strict=True)
    ]
    assert all(int(i) in allowed for i, allowed in zip(found, wanted, strict=True))


@COMPILED
@pytest.mark.parametrize("top_k", [None, 50, 16384])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_compiled_form_draws_what_the_reference_draws_from_many_ids(top_k, top_p):
    generator = torch.Generator().manual_seed(4)
    scores = torch.randn(65, 16385, generator=generator)
    uniform = torch.rand(65, dtype=torch.float64, generator=generator)
    found, expected = (draw_id(scores, uniform, top_k=top_k, top_p=top_p, impl=i) for i in ("cpp", "reference"))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_row_without_a_finite_best_is_minus_one_and_leaves_the_others(impl, settings):
    nan, inf = torch.nan, torch.inf
    rows = [[-inf, 1, -inf], [nan, 1, 0], [1, 0, nan], [inf, 0, 1], [-inf] * 3, [-inf, -inf, -1e30]]
    found = draw_id(torch.tensor(rows), torch.full((6,), 1 - 2.0**-53, dtype=torch.float64), impl=impl, **settings)
    assert found.tolist() == [1, -1, -1, -1, -1, 2]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_of_ties_for_the_last_place_one_stays(impl):
    scores = torch.zeros(2001, 6)
    uniform = torch.arange(2001, dtype=torch.float64) / 2001
    assert len(draw_id(scores, uniform, top_k=2, impl=impl).unique()) == 2


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_operation_is_known_to_the_compiler(impl):
    arguments = (torch.randn(3, 9), torch.rand(3, dtype=torch.float64), 4, 0.9, 1.0, impl)
    torch.library.opcheck(torch.ops.lavit.draw_id.default, arguments)
    assert draw_id(torch.zeros(0, 5), torch.zeros(0, dtype=torch.float64), impl=impl).shape == (0,)


def test_compiles_without_a_graph_break():
    def plain(scores, uniform):
        return draw_id(scores, uniform, top_k=5, top_p=0.9)

    run = torch.compile(plain, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (3, 7):
        scores, uniform = torch.randn(rows, 30), torch.rand(rows, dtype=torch.float64)
        assert torch.equal(run(scores, uniform), plain(scores, uniform))


def test_wrong_arguments_are_named():
    scores, uniform = torch.zeros(3, 6), torch.zeros(3, dtype=torch.float64)

    def refused(message, error=ValueError, scores=scores, uniform=uniform, **settings):
        with pytest.raises(error, match=message):
            draw_id(scores, uniform, **settings)

    refused(r"uniform: expected shape \(3,\) to match scores, got \(2,\)", uniform=uniform[:2])
    refused("uniform: expected float64, got torch.float32", TypeError, uniform=uniform.float())
    refused("scores: expected float32 or float64, got torch.bfloat16", TypeError, scores=scores.bfloat16())
    refused("scores: expected at least one id, got none", scores=scores[:, :0])
    refused("top_k: expected a number >= 1, or None for all ids, got 0", top_k=0)
    refused(r"top_p: expected a number in \(0, 1\], got 0", top_p=0)
    refused("temperature: expected a number of at least 0, got -1", temperature=-1)
