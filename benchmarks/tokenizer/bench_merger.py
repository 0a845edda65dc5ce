"""The merger's two forms on the same selection: packed (kept rows only) beside dense (the release's, all rows).

``pytest benchmarks/tokenizer/bench_merger.py``. Head dimension 88 and N = 256 as in the paper, keep rate 1/3; fewer
heads and blocks than the paper's 16 and 12, so that it ends on a laptop: both forms are linear in either.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.timing import measure
from lavit.kernels import Selection, gumbel_select
from lavit.tokenizer import LaVITTokenizerConfig
from lavit.tokenizer.merger import Layout, Merger

BATCH, HEADS, BLOCKS = 8, 4, 2


@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("work", ["forward", "forward and backward"])
def bench_merger(benchmark, device, work, form):
    torch.manual_seed(0)
    config = LaVITTokenizerConfig(
        hidden_size=88 * HEADS, num_heads=HEADS, encoder_heads=HEADS, merger_depth=BLOCKS, merge=form
    )
    merger = Merger(config).to(device)
    features = torch.randn(BATCH, config.num_patches, config.hidden_size, device=device)
    logits = torch.tensor([0.5, 1.0], device=device).log().expand(BATCH, config.num_patches, 2)  # a third is kept
    selection = gumbel_select(logits, seeds=torch.arange(BATCH, device=device))

    def run() -> Tensor:
        with torch.set_grad_enabled(work != "forward"):
            out = kept_rows(merger, form, features, selection)
            if work != "forward":
                merger.zero_grad(set_to_none=True)
                out.square().mean().backward()
        return out

    with torch.no_grad():
        packed, dense = (kept_rows(merger, f, features, selection) for f in ("packed", "dense"))
    # The release's epsilon is the difference (see tests/golden).
    torch.testing.assert_close(packed, dense, rtol=0, atol=2e-5 * float(dense.abs().max()))
    kept = float(selection.keep.mean())
    group, of_release = f"merger, {work}, B={BATCH} N=256 H={HEADS} D=88", form == "dense"
    measure(benchmark, device, group, run, implementation=form, baseline=of_release, keep_rate=kept)


def kept_rows(merger: Merger, form: str, features: Tensor, selection: Selection) -> Tensor:
    layout = Layout.measure(selection)
    if form == "packed":
        return merger.packed(features, layout).values
    return layout.kept(merger.dense(features, selection.keep)).values
