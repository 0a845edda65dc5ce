"""gumbel_select beside the release's way, forward alone and with the gradient, in one run and with the same tokens.

``pytest benchmarks/kernels/bench_gumbel_select.py``. N = 256 patches as in the paper; 4096 are those of a large image.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.timing import measure
from lavit.kernels import gumbel_select, partition
from lavit.kernels.dispatch import OPERATIONS

TAU = 1.0
Selected = tuple[Tensor, Tensor, Tensor, Tensor]
CASES = [(64, 256), (1024, 256), (64, 4096)]


def release(scores: Tensor) -> Selected:
    """The hard Gumbel-softmax, then the partition by a stable sort of the mask: (keep, order, cu_kept, cu_dropped)."""
    keep = torch.nn.functional.gumbel_softmax(scores, tau=TAU, hard=True)[..., 0]
    order = torch.argsort(keep.detach(), dim=1, descending=True, stable=True)
    kept = keep.detach().sum(1).long()
    cu_kept, cu_dropped = (torch.nn.functional.pad(n.cumsum(0), (1, 0)) for n in (kept, scores.shape[1] - kept))
    return keep, order, cu_kept, cu_dropped


def ours(impl: str) -> Callable[[Tensor], Selected]:
    def run(scores: Tensor) -> Selected:
        got = gumbel_select(scores, tau=TAU, impl=impl)
        return got.keep, got.order, got.cu_kept, got.cu_dropped

    return run


def form_of(name: str, device: torch.device, scores: Tensor) -> Callable[[Tensor], Selected]:
    if name == "release":
        return release
    if name == "torch.compile":
        compiled = torch.compile(release)
        try:
            compiled(scores)
        except Exception as error:  # whatever the compiler lacks here
            pytest.skip(f"torch.compile does not work here: {type(error).__name__}: {str(error).splitlines()[0]}")
        return compiled
    if (reason := OPERATIONS["gumbel_select"].implementations[name].unusable(device.type)) is not None:
        pytest.skip(reason)
    return ours(name)


LAVIT = ("reference", "triton", "cpp")


@pytest.mark.parametrize("name", ["release", "torch.compile", *LAVIT])
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize(("batch", "patches"), CASES)
def bench_gumbel_select(benchmark, device, batch, patches, gradient, name):
    scores = torch.randn(batch, patches, 2, generator=torch.Generator().manual_seed(0)).to(device)
    scores.requires_grad_(gradient)
    select = form_of(name, device, scores)
    weight = torch.rand(batch, patches, device=device)

    def run() -> Selected | Tensor:
        selected = select(scores)
        return torch.autograd.grad(selected[0], scores, weight)[0] if gradient else selected

    if name == "release":
        assert_given_noise_gives_the_same(scores, weight)
    assert_selection(select(scores), scores)
    what = "select and gradient" if gradient else "select"
    moved = batch * patches * (20 + (20 if gradient else 0))
    group, label = f"gumbel {what} B={batch} N={patches}", name if name not in LAVIT else f"lavit {name}"
    is_release = name == "release"
    measure(benchmark, device, group, run, implementation=label, baseline=is_release, bytes_moved=moved)


def assert_given_noise_gives_the_same(scores: Tensor, weight: Tensor) -> None:
    """The noise that gumbel_softmax drew, given to gumbel_select: the same patches in the same order."""
    torch.manual_seed(1)
    expected = release(scores)
    torch.manual_seed(1)
    noise = -torch.empty_like(scores, requires_grad=False).exponential_().log()
    got = gumbel_select(scores, tau=TAU, noise=noise)
    for a, b in zip((got.order, got.cu_kept, got.cu_dropped), expected[1:], strict=True):
        assert torch.equal(a.long(), b)
    if scores.requires_grad:
        ours, theirs = (torch.autograd.grad(keep, scores, weight)[0] for keep in (got.keep, expected[0]))
        torch.testing.assert_close(ours, theirs)


def assert_selection(selected: Selected, scores: Tensor) -> None:
    """The partition is that of the mask, and as many patches are kept as sigma(s0 - s1) says, within 5 deviations."""
    keep, *indices = selected
    for got, expected in zip(indices, partition(keep.detach().round(), impl="reference"), strict=True):
        assert torch.equal(got.int(), expected)
    p = (scores[..., 0] - scores[..., 1]).detach().double().sigmoid()
    assert abs(float(keep.detach().double().sum() - p.sum())) < 5 * float((p * (1 - p)).sum().sqrt())
