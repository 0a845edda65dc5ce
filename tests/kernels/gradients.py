"""For tests of operations with a gradient: what a call and its gradients are, and that neither depends on threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lavit.threads import on as on_threads


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """The output, and the gradients to all inputs of its sum weighted by numbers that are always the same."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, weights_like(out))


def weights_like(out: Tensor, seed: int = 9) -> Tensor:
    """Eighths from -2 to 2, which every dtype holds."""
    return torch.randint(-16, 17, out.shape, generator=torch.Generator().manual_seed(seed)).to(out.dtype) / 8


def same_on_any_number_of_threads(run: Callable[[], Sequence[Tensor]]) -> bool:
    """To the bit, on one, two and three threads."""
    found = []
    for threads in (1, 2, 3):
        with on_threads(threads):
            found.append(run())
    return all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
