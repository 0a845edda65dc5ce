"""draw_id beside transformers' processors. ``pytest benchmarks/kernels/bench_draw_id.py``

R rows of scores of [/IMG] and K codes, float32, the top 50 of them and a nucleus of 0.9. transformers' processors, then
a softmax and torch.multinomial, draw by other random numbers, from the same distribution.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import TopKLogitsWarper, TopPLogitsWarper

from benchmarks.timing import measure
from lavit.kernels import draw_id
from lavit.kernels.dispatch import OPERATIONS

TOP_K, TOP_P = 50, 0.9
PROCESSORS = (TopKLogitsWarper(TOP_K), TopPLogitsWarper(TOP_P))


def distribution(scores: Tensor) -> Tensor:
    for processor in PROCESSORS:
        scores = processor(None, scores)
    return scores.softmax(-1)


@pytest.mark.parametrize("form", ["transformers", "reference", "cpp"])
@pytest.mark.parametrize("shape", [(1, 257), (8, 257), (8, 16385)])
def bench_draw_id(benchmark, device, shape, form):
    if form == "cpp" and (reason := OPERATIONS["draw_id"].implementations["cpp"].unusable(device.type)):
        pytest.skip(reason)
    torch.manual_seed(0)
    scores = 3 * torch.randn(shape, device=device)
    uniform = torch.rand(shape[0], dtype=torch.float64, device=device)

    def run() -> Tensor:
        if form == "transformers":
            return torch.multinomial(distribution(scores), 1)[:, 0]
        return draw_id(scores, uniform, top_k=TOP_K, top_p=TOP_P, impl=form)

    allowed = distribution(scores)
    assert bool((allowed.gather(1, run()[:, None]) > 0).all())
    if form != "transformers":
        reached = allowed.double().cumsum(1)
        by_hand = torch.searchsorted(reached, uniform[:, None] * reached[:, -1:], right=True)[:, 0]
        assert torch.equal(run(), by_hand)
    group, name = f"draw of an id {shape}", form if form == "transformers" else f"lavit {form}"
    measure(benchmark, device, group, run, implementation=name, baseline=form == "transformers")
