"""policy_attention beside other ways to the same weights: ``pytest benchmarks/kernels/bench_policy_attention.py``

A GPU: a batch of LaVIT, B = 64, N = 256, H = 16, D = 88 in bfloat16, a third of the tokens kept. A CPU: two images in
float32. Forward as in inference, and forward with backward to q, k, v and keep.

Parity, in every case before it is timed: each result's largest error against the definition in float64, on the first
image, at most twice that of the definition computed in tensors of the inputs' dtype. FlexAttention has no epsilon and
no gradient to the mask: it is compared with the definition for eps = 0, and its backward leaves keep out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from torch import Tensor

from benchmarks.timing import measure
from lavit.kernels import policy_attention
from lavit.kernels.dispatch import OPERATIONS

EPS = 1e-6
SHAPES = {"cuda": (64, 256, 16, 88, torch.bfloat16), "cpu": (2, 256, 16, 88, torch.float32)}

Attention = Callable[..., Tensor]  # of q, k, v, keep, kind


def release(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, kind: str, eps: float = EPS) -> Tensor:
    """The release's way: the products in the inputs' dtype, the N x N weights in that of keep."""
    n, dim = q.shape[1], q.shape[3]
    s = (q.transpose(1, 2) @ k.transpose(1, 2).transpose(-1, -2)).to(keep.dtype) * dim**-0.5
    if kind == "cross":
        policy = (1 - keep)[:, None, None, :].expand(-1, 1, n, n)
    else:
        eye = torch.eye(n, dtype=keep.dtype, device=keep.device)
        policy = (keep[:, None, None, :] * (1 - eye) + eye).tril()
    w = (s - s.amax(dim=-1, keepdim=True)).exp() * policy
    a = (w + eps / n) / (w.sum(dim=-1, keepdim=True) + eps)
    return (a.to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2)


@cache
def inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, the gradient of the output, keep."""
    batch, n, heads, dim, dtype = SHAPES[device.type]
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(batch, n, heads, dim, generator=generator).to(device, dtype) for _ in range(4))
    return q, k, v, g, (torch.rand(batch, n, generator=generator) < 1 / 3).float().to(device)


def results(attention: Attention, arguments: Sequence[Tensor], kind: str, backward: bool) -> tuple[Tensor, ...]:
    """out; with backward also the gradients to q, k, v and, where there is one, keep."""
    q, k, v, g, keep = arguments
    if not backward:
        with torch.no_grad():
            return (attention(q, k, v, keep, kind),)
    leaves = [x.detach().requires_grad_() for x in (q, k, v, keep)]
    out = attention(*leaves, kind)
    grads = torch.autograd.grad(out, leaves, g, allow_unused=True)
    return out.detach(), *(x for x in grads if x is not None)


@cache
def yardstick(device: torch.device, kind: str, eps: float) -> tuple[tuple[Tensor, ...], list[float]]:
    """The definition in float64 of the first image, and how far its tensors in the inputs' dtype are from it."""

    def definition(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, kind: str) -> Tensor:
        return release(q, k, v, keep, kind, eps)

    first = [x[:1] for x in inputs(device)]
    exact = results(definition, [x.double() for x in first], kind, True)
    plain = results(definition, [*first[:4], first[4].to(first[0].dtype)], kind, True)
    return exact, [float((x.double() - y).abs().max()) for x, y in zip(plain, exact, strict=True)]


def verdict(got: Sequence[Tensor], device: torch.device, kind: str, eps: float) -> tuple[bool, dict[str, float]]:
    exact, allowed = yardstick(device, kind, eps)
    passed, parity = True, {}
    for name, x, y, error in zip(("out", "dq", "dk", "dv", "dkeep"), got, exact, allowed, strict=False):
        parity[name] = float((x[:1].double() - y).abs().max())
        # Where the plain computation happens to be exact, a few roundings of the largest element.
        passed &= parity[name] <= 2 * error + 8 * torch.finfo(got[0].dtype).eps * float(y.abs().max())
    return passed, parity


def ours(impl: str) -> Callable[[torch.device, str], Attention]:
    def make(device: torch.device, kind: str) -> Attention:
        reason = OPERATIONS["policy_attention"].implementations[impl].unusable(device.type)
        if impl == "triton" and device.type == "cpu":
            reason = "Triton's interpreter is for tests"
        if reason is not None:
            pytest.skip(f"policy_attention, {impl}: {reason}")
        return lambda q, k, v, keep, kind: policy_attention(q, k, v, keep, kind=kind, eps=EPS, impl=impl)

    return make


def compiled(device: torch.device, kind: str) -> Attention:
    torch._dynamo.reset()
    function = torch.compile(release, dynamic=False)
    try:
        results(function, inputs(device), kind, True)
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {str(error).splitlines()[0]}")
    return function


def flex(device: torch.device, kind: str) -> Attention:
    """FlexAttention with the mask of a batch, whose blocks are found anew in every run, as every batch needs it."""
    if device.type != "cuda":
        pytest.skip("FlexAttention has no backward on the CPU")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()
    attend, blocks = torch.compile(flex_attention, dynamic=False), torch.compile(create_block_mask, dynamic=False)

    def attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, kind: str) -> Tensor:
        kept = keep.detach() > 0.5

        def visible(b, h, i, j):
            return ~kept[b, j] if kind == "cross" else (kept[b, j] & (j < i)) | (i == j)

        mask = blocks(visible, q.shape[0], None, q.shape[1], q.shape[1], device=q.device)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return attend(q, k, v, block_mask=mask).transpose(1, 2)

    try:
        results(attention, inputs(device), kind, True)
    except Exception as error:
        pytest.skip(f"FlexAttention does not work here: {str(error).splitlines()[0]}")
    return attention


ALL: dict[str, Callable[[torch.device, str], Attention]] = {
    "release": lambda device, kind: release,
    "torch.compile of that": compiled,
    "FlexAttention, eps = 0": flex,
    **{f"lavit {impl}": ours(impl) for impl in OPERATIONS["policy_attention"].implementations},
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("kind", ["causal", "cross"])
def bench_policy_attention(benchmark, device, kind, backward, name):
    attention, arguments = ALL[name](device, kind), inputs(device)
    passed, parity = verdict(results(attention, arguments, kind, True), device, kind, 0.0 if "eps = 0" in name else EPS)
    batch, n, heads, dim, dtype = SHAPES[device.type]
    # q, k, v in and out out; the backward's kernels need at the least those and the gradient in, three gradients out.
    tensors = 4 + (8 if backward else 0)
    measure(
        benchmark,
        device,
        f"policy attention, {kind}, {'forward+backward' if backward else 'forward'}, "
        f"B={batch} N={n} H={heads} D={dim} {str(dtype).removeprefix('torch.')}",
        lambda: results(attention, arguments, kind, backward),
        implementation=name,
        baseline=name == "release",
        passed=passed,
        parity=parity,
        bytes_moved=tensors * arguments[0].nbytes,
    )
