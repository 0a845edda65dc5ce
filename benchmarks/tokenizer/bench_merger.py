"""The merger on the same selection: packed (kept rows only), dense (all rows), and the release's formula by autograd.

``pytest benchmarks/tokenizer/bench_merger.py``. Head dimension 88 and N = 256 as in the paper, keep rate 1/3. On a CPU
fewer heads, blocks and images than the paper's, so that it ends on a laptop; on a GPU the paper's merger, in bfloat16.
The sizes of the selection are read before: a tokenizer waits for them once, whatever the form.

``bench_merger_growth``: one block of the paper's width, images of 64 to 4096 patches; ``python -m benchmarks.plot``
draws it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.timing import measure
from lavit.kernels import Selection, gumbel_select
from lavit.tokenizer import LaVITTokenizerConfig
from lavit.tokenizer.merger import Layout, Merger, MergerBlock

EPS = 1e-6  # the release's


@dataclass(frozen=True)
class Case:
    name: str
    device: str
    heads: int
    blocks: int
    batch: int
    dtype: torch.dtype
    forms: tuple[str, ...] = ("release", "dense", "packed")
    side: int = 16  # of the image, in patches

    @property
    def sizes(self) -> str:
        return f"B={self.batch} N={self.side**2} H={self.heads} D=88, blocks={self.blocks}"


CASES = (
    Case("laptop", "cpu", heads=4, blocks=2, batch=8, dtype=torch.float32),
    Case("width 1408", "cpu", heads=16, blocks=1, batch=2, dtype=torch.float32, forms=("release", "packed")),
    Case("whole", "cuda", heads=16, blocks=12, batch=64, dtype=torch.bfloat16),
)
LARGEST_DENSE = 32  # the release's N x N weights of a larger image would take minutes, and gigabytes
GROWTH = [
    Case("growth", name, 16, 1, batch, dtype, ("release", "packed") if side <= LARGEST_DENSE else ("packed",), side)
    for name, batch, dtype in (("cpu", 1, torch.float32), ("cuda", 8, torch.bfloat16))
    for side in (8, 12, 16, 24, 32, 48, 64)
]


def params(cases: Sequence[Case]) -> list[Any]:
    return [
        pytest.param(case, form, id=f"{case.name}-{case.device}-N{case.side**2}-{form}")
        for case in cases
        for form in case.forms
    ]


@pytest.mark.parametrize(("case", "form"), params(CASES))
@pytest.mark.parametrize("work", ["forward", "forward and backward"])
def bench_merger(benchmark, device, work, case, form):
    bench(benchmark, device, work, case, form)


@pytest.mark.parametrize(("case", "form"), params(GROWTH))
def bench_merger_growth(benchmark, device, case, form):
    bench(benchmark, device, "forward", case, form, growth="merger, one block of width 1408, forward")


def bench(benchmark, device: torch.device, work: str, case: Case, form: str, **extra: Any) -> None:
    if case.device != device.type:
        pytest.skip(f"{case.name}: measured on {case.device}")
    merger, features, layout = setting(case)

    def run() -> Tensor:
        with torch.set_grad_enabled(work != "forward"):
            out = kept_rows(merger, form, features, layout)
            if work != "forward":
                out.square().mean().backward()
                merger.zero_grad(set_to_none=True)  # nothing is held from one run to the next
        return out.detach()

    error = relative_error(case, form)
    # Rounding, and the epsilon that the packed form leaves out (see tests/golden).
    allowed = 2e-5 + 2 * (relative_error(case, "release") if "release" in case.forms else 0.0)
    measure(
        benchmark,
        device,
        f"merger, {case.name}, {work}, {case.sizes}",
        run,
        implementation=form,
        baseline=form == "release",
        passed=error <= allowed,
        parity={"error": error, "allowed": allowed},
        keep_rate=layout.total / layout.selection.keep.numel(),
        kept=layout.total,
        **extra,
    )


@cache
def setting(case: Case) -> tuple[Merger, Tensor, Layout]:
    torch.manual_seed(0)
    config = LaVITTokenizerConfig(
        image_size=14 * case.side,
        hidden_size=88 * case.heads,
        num_heads=case.heads,
        encoder_heads=case.heads,
        merger_depth=case.blocks,
    )
    merger = Merger(config).to(case.device, case.dtype)
    features = torch.randn(case.batch, config.num_patches, config.hidden_size).to(case.device, case.dtype)
    logits = torch.tensor([0.5, 1.0]).log().expand(case.batch, config.num_patches, 2)  # a third is kept
    selection = gumbel_select(logits.to(case.device), seeds=torch.arange(case.batch, device=case.device))
    return merger, features, Layout.measure(selection)


@cache
def exact(case: Case) -> Tensor:
    """The kept rows in the next precision up: by the release's formula; of larger images by the packed definition."""
    merger, features, layout = setting(case)
    dtype = torch.float64 if case.dtype == torch.float32 else torch.float32
    merger, features = copy.deepcopy(merger).to(dtype), features.to(dtype)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVIT_KERNELS", "reference")
        return kept_rows(merger, "release" if "release" in case.forms else "packed", features, layout)


@cache
def relative_error(case: Case, form: str) -> float:
    merger, features, layout = setting(case)
    with torch.no_grad():
        out = kept_rows(merger, form, features, layout).to(exact(case).dtype)
    return float((out - exact(case)).norm() / exact(case).norm())


def kept_rows(merger: Merger, form: str, features: Tensor, layout: Layout) -> Tensor:
    if form == "packed":
        return merger.packed(features, layout).values
    if form == "dense":
        return layout.kept(merger.dense(features, layout.selection.keep)).values
    return layout.kept(release(merger, features, layout.selection)).values


def release(merger: Merger, x: Tensor, selection: Selection) -> Tensor:
    """The release's merger on the same parameters: all rows, N x N weights in memory, gradients by autograd."""
    n = x.shape[1]
    keep = selection.keep[:, None, None, :].to(x.dtype)
    eye = torch.eye(n, dtype=x.dtype, device=x.device)
    seen_causal, seen_cross = (keep * (1 - eye) + eye).tril(), (1 - keep).expand(-1, -1, n, -1)
    origin = merger.ln_vision(x)
    for block in merger.blocks:
        assert isinstance(block, MergerBlock)
        causal, cross = block.token_causal_attn, block.token_cross_attn
        q, k, v = causal.qkv(block.norm0(x)).chunk(3, dim=-1)
        x = x + causal.proj(release_attention(q, k, v, seen_causal, causal.heads))
        q, k, v = cross.query(block.norm1(x)), cross.key(origin), cross.value(origin)
        x = x + cross.proj(release_attention(q, k, v, seen_cross, cross.heads))
        x = x + block.mlp(block.norm2(x))
    return merger.norm(x)


def release_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, heads: int) -> Tensor:
    """(B, N, C) x 3 and P (B, 1, N, N) -> (B, N, C); the softmax in float32, as the release takes it."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    s = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    w = (s - s.amax(dim=-1, keepdim=True)).float().exp() * seen.float()
    a = (w + EPS / w.shape[-1]) / (w.sum(dim=-1, keepdim=True) + EPS)
    return (a.type_as(s) @ v).transpose(1, 2).flatten(2)
