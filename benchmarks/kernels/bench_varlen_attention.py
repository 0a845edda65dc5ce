"""varlen_attention beside the ways in which others do it: ``pytest benchmarks/kernels/bench_varlen_attention.py``.

The merger's two attentions: of the kept tokens to the kept ones before them (causal), and to the dropped ones (cross).
Packed implementations get the kept and dropped rows as they are; dense ones get all N tokens of every image and a mask,
which they build in the time that is measured, as they would in every step. LaVIT: B = 64, N = 256, H = 16, D = 88,
bfloat16, a third kept. ``bytes_moved`` is what the packed inputs and the result take, once.

Parity, in every case before it is timed: the result, and in forward+backward the gradients, of the kept and dropped
rows, against float64, by the largest element's share. The release's formula adds an epsilon to every weight, which
shows most where a token sees few others: its share is its own.

``bench_varlen_attention_growth``: images of 64 to 4096 tokens; ``python -m benchmarks.plot`` draws it. Attention is
over pairs: per kept token it costs what the tokens that it meets do, and the definition allows nothing less.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.timing import measure
from lavit.kernels import varlen_attention
from lavit.kernels.dispatch import OPERATIONS
from lavit.kernels.varlen_attention import reference
from lavit.kernels.varlen_attention.packages import PACKAGES, FlashAttn, Xformers

EPSILON = 1e-6
ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 2**-5}
EPSILON_SHOWS = 1e-2
LONGEST_DENSE = 1024


@dataclass(frozen=True)
class Case:
    batch: int
    tokens: int
    heads: int
    dim: int
    dtype: torch.dtype
    device: str | None = None  # None: both

    @property
    def label(self) -> str:
        shape = f"B={self.batch} N={self.tokens} H={self.heads} D={self.dim}"
        return f"{shape} {str(self.dtype).removeprefix('torch.')}"


LAVIT = Case(64, 256, 16, 88, torch.bfloat16, "cuda")
CASES = {"LaVIT": LAVIT, "small": Case(2, 64, 4, 88, torch.float32)}
GROWTH = [
    case
    for n in (64, 128, 256, 512, 1024, 2048, 4096)
    for case in (Case(1, n, 2, 88, torch.float32, "cpu"), Case(8, n, 16, 88, torch.bfloat16, "cuda"))
]


@dataclass(frozen=True)
class Inputs:
    """Dense q, k, v and a gradient (B, N, H, D), zero in dropped rows; what is kept; where the packed rows are."""

    dense: tuple[Tensor, ...]
    keep: Tensor
    kind: str
    rows_q: Tensor
    rows_k: Tensor
    cu_q: Tensor
    cu_k: Tensor

    @property
    def causal(self) -> bool:
        return self.kind == "causal"

    def packed(self, *dense: Tensor) -> list[Tensor]:
        """Rows of an output or gradient of q, and of k and v, in their order: out, dq, dk, dv."""
        rows = (self.rows_q, self.rows_q, self.rows_k, self.rows_k)
        return [x.flatten(0, 1)[r] for x, r in zip(dense, rows, strict=False)]


@cache
def inputs(case: Case, kind: str, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, case.tokens, case.heads, case.dim)
    q, k, v, g = (torch.randn(shape, generator=generator).to(device, case.dtype) for _ in range(4))
    keep = (torch.rand(shape[:2], generator=generator) < 1 / 3).to(device)
    seen = keep if kind == "causal" else ~keep
    rows_q, rows_k = (x.flatten().nonzero().squeeze(1) for x in (keep, seen))
    cu_q, cu_k = (torch.nn.functional.pad(x.sum(1).cumsum(0), (1, 0)).int() for x in (keep, seen))
    return Inputs((q, k, v, g * keep[..., None, None]), keep, kind, rows_q, rows_k, cu_q, cu_k)


@cache
def truth(case: Case, kind: str, device: torch.device) -> list[Tensor]:
    """out, dq, dk, dv in float64."""
    x = inputs(case, kind, device)
    q, k, v = (t.double() for t in x.packed(x.dense[0], x.dense[0], x.dense[1], x.dense[2])[1:])
    (g,) = (t.double() for t in x.packed(x.dense[3]))
    settings = (x.cu_q, x.cu_k, None, case.tokens, case.tokens, x.causal, case.dim**-0.5)
    out, lse = reference.varlen_attention(q, k, v, *settings)
    return [out, *reference.varlen_attention_backward(g, q, k, v, out, lse, *settings)[:3]]


def mask(x: Inputs) -> Tensor:
    """(B, 1, N, N): which keys a query sees."""
    if not x.causal:
        return ~x.keep[:, None, None, :]
    n = x.keep.shape[1]
    return x.keep[:, None, None, :] & torch.ones(n, n, dtype=torch.bool, device=x.keep.device).tril()


def release(x: Inputs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The release's way: weights of all N x N pairs in float32, multiplied by the mask."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    s = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
    e = (s - s.amax(dim=-1, keepdim=True)).float().exp() * mask(x).float()
    a = (e + EPSILON / e.shape[-1]) / (e.sum(dim=-1, keepdim=True) + EPSILON)
    return (a.to(v.dtype) @ v).transpose(1, 2)


def sdpa_with_a_mask(x: Inputs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    seen = mask(x)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)


def flex(x: Inputs) -> Callable[..., Tensor]:
    """FlexAttention with a block mask, compiled; the mask's building counts."""
    if not x.keep.is_cuda:
        pytest.skip("FlexAttention is a peer for a GPU")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()
    attend, n = torch.compile(flex_attention, dynamic=False), x.keep.shape[1]
    build = torch.compile(create_block_mask, dynamic=False)

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return x.keep[b, j] & (j <= i) if x.causal else ~x.keep[b, j]

    def run(x: Inputs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        blocks = build(seen, x.keep.shape[0], None, n, n, device=q.device)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return attend(q, k, v, block_mask=blocks).transpose(1, 2)

    return run


DENSE: dict[str, Callable[[Inputs], Callable[..., Tensor]]] = {
    "release": lambda x: release,
    "SDPA with a mask": lambda x: sdpa_with_a_mask,
    "FlexAttention": flex,
}
def missing(module: str) -> str | None:
    return None if importlib.util.find_spec(module) else f"{module} is not there"


def flash_attn(x: Inputs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n = x.keep.shape[1]
    return FlashAttn.attend(q, k, v, (x.cu_q, x.cu_k, n, n, x.causal, q.shape[-1] ** -0.5))


def xformers(x: Inputs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The mask's building counts, the wait for the lengths included."""
    n = x.keep.shape[1]
    used, options = Xformers.arguments(q, k, v, (x.cu_q, x.cu_k, n, n, x.causal, q.shape[-1] ** -0.5))
    return importlib.import_module("xformers.ops").memory_efficient_attention(*used, **options)[0]


def torch_varlen(x: Inputs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n, window = x.keep.shape[1], (-1, 0) if x.causal else (-1, -1)
    attend = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    return attend(q, k, v, x.cu_q, x.cu_k, n, n, window_size=window)


def nested(x: Inputs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Jagged tensors in PyTorch's own attention."""
    n = x.keep.shape[1]
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(t, cu.long(), min_seqlen=0, max_seqlen=n).transpose(1, 2)
        for t, cu in ((q, x.cu_q), (k, x.cu_k), (v, x.cu_k))
    )
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=x.causal)
    return out.transpose(1, 2).values()


# Packed peers, called as their users call them: without what our operator adds around them.
PACKED: dict[str, tuple[Callable[..., Tensor], Callable[[str], str | None]]] = {
    "flash-attn": (flash_attn, PACKAGES["flash_attn"].unusable),
    "xformers": (xformers, PACKAGES["xformers"].unusable),
    "torch varlen_attn": (
        torch_varlen,
        lambda kind: PACKAGES["torch_varlen"].unusable(kind) or missing("torch.nn.attention.varlen"),
    ),
    "nested tensors": (nested, lambda kind: None),
}
OURS = {f"lavit {name}": name for name in OPERATIONS["varlen_attention"].implementations if name not in PACKAGES}
ALL = [*DENSE, *PACKED, *OURS]


def attention(case: Case, x: Inputs, name: str, device: torch.device) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The implementation as a function of q, k, v; and these with the gradient, dense or packed as it wants them."""
    if name in DENSE:
        if case.tokens > LONGEST_DENSE:
            pytest.skip("the matrices of all pairs would not fit")
        run = DENSE[name](x)
        return lambda q, k, v: run(x, q, k, v), list(x.dense)
    _, q, k, v = x.packed(x.dense[0], *x.dense[:3])
    (g,) = x.packed(x.dense[3])
    n = case.tokens
    if name in PACKED:
        call, unusable = PACKED[name]
        if reason := unusable(device.type):
            pytest.skip(f"{name}: {reason}")
        return lambda q, k, v: call(x, q, k, v), [q, k, v, g]
    impl = OURS[name]
    reason = OPERATIONS["varlen_attention"].implementations[impl].unusable(device.type)
    if reason is None and impl == "triton" and device.type == "cpu":
        reason = "Triton's interpreter is for tests"
    if reason is not None:
        pytest.skip(f"varlen_attention, {impl}: {reason}")

    def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen_attention(q, k, v, x.cu_q, x.cu_k, n, n, causal=x.causal, impl=impl)

    return packed, [q, k, v, g]


def bench(
    benchmark, device: torch.device, case: Case, kind: str, work: str, name: str, group: str, growth: str | None = None
) -> None:
    if case.device not in (None, device.type):
        pytest.skip(f"a case for {case.device}")
    x = inputs(case, kind, device)
    function, (q, k, v, g) = attention(case, x, name, device)
    backward = work == "forward+backward"
    leaves = [t.detach().requires_grad_(backward) for t in (q, k, v)]

    def run() -> list[Tensor]:
        out = function(*leaves)
        return [out, *torch.autograd.grad(out, leaves, g)] if backward else [out]

    try:
        found = run()
    except Exception as error:
        if name in OURS or name == "release":
            raise
        pytest.skip(f"{name} does not work here: {(str(error).splitlines() or [type(error).__name__])[0]}")
    found = x.packed(*found) if name in DENSE else found
    parity = {
        part: float((a.double() - b).abs().nan_to_num(torch.inf).max() / b.abs().max())
        for part, a, b in zip(("out", "dq", "dk", "dv"), found, truth(case, kind, device), strict=False)
    }
    allowed = max(ROUNDING[case.dtype], EPSILON_SHOWS if name == "release" else 0.0)
    extra: dict[str, Any] = {} if growth is None else {"growth": growth}
    if not backward:
        extra["bytes_moved"] = 2 * (len(x.rows_q) + len(x.rows_k)) * case.heads * case.dim * case.dtype.itemsize
    del found
    measure(
        benchmark,
        device,
        group,
        run,
        implementation=name,
        baseline=name == "release",
        passed=max(parity.values()) <= allowed,
        parity=parity,
        kept=len(x.rows_q),
        **extra,
    )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("work", ["forward", "forward+backward"])
@pytest.mark.parametrize("kind", ["causal", "cross"])
@pytest.mark.parametrize("case", CASES)
def bench_varlen_attention(benchmark, device, case, kind, work, name):
    chosen = CASES[case]
    bench(benchmark, device, chosen, kind, work, name, f"varlen attention, {kind}, {work}, {chosen.label}")


@pytest.mark.parametrize("name", ["release", "lavit triton", "lavit cpp", "lavit sdpa"])
@pytest.mark.parametrize("kind", ["causal", "cross"])
@pytest.mark.parametrize("case", GROWTH, ids=lambda case: f"{case.device}-N{case.tokens}")
def bench_varlen_attention_growth(benchmark, device, case, kind, name):
    if name == "lavit sdpa" and device.type != "cpu":
        pytest.skip("the form for the CPU")
    work, where = "forward+backward", f"{kind}, H={case.heads} D={case.dim} B={case.batch}"
    group = f"varlen attention, growth, {kind}, {work}, {case.label}"
    bench(benchmark, device, case, kind, work, name, group, growth=f"attention, {where}, {work}")
