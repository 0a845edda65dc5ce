"""The loss of a language model whose logits are never in memory at once."""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lavit.kernels.checks import (
    check_float,
    check_int64,
    check_rank,
    check_same_device,
    check_shape,
    shape,
    verify_range,
)
from lavit.kernels.dispatch import Implementation, register
from lavit.kernels.types import compute_dtype

# Rows of a chunk: its logits take as much memory as the hidden states, within these bounds.
FEWEST_ROWS, MOST_ROWS = 128, 4096


def torch_unusable(device_type: str) -> str | None:
    usable = hasattr(torch.nn, "LinearCrossEntropyOptions") and hasattr(F, "linear_cross_entropy")
    return None if usable else f"torch {torch.__version__} has none"


def liger_unusable(device_type: str) -> str | None:
    if device_type != "cuda":
        return "Liger needs a GPU"
    return None if importlib.util.find_spec("liger_kernel") else "Liger is not installed"


OPERATION = register(
    "linear_cross_entropy",
    Implementation("torch", "PyTorch's own, in chunks", torch_unusable),
    Implementation("liger", "Liger's, in chunks with a fused cross-entropy", liger_unusable),
    Implementation("chunked", "in chunks, the gradients computed with the loss"),
    Implementation("reference", "all logits at once: the definition"),
    # On a CPU the gradients by the way take half to three quarters of the time (benchmarks/language/bench_loss.py).
    preference={"cuda": ("torch", "liger", "chunked"), "cpu": ("chunked", "torch")},
)


class TokenLoss(NamedTuple):
    """mean: scalar, over the rows that count; 0 when none does. number: scalar int64, of these rows. rows: (T,) the
    loss of each row, without gradient, 0 where it does not count. float32, or float64 of float64."""

    mean: Tensor
    number: Tensor
    rows: Tensor


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, ignore_index: int = -100, impl: str = "auto"
) -> TokenLoss:
    """mean_t of log sum_v exp(h_t . w_v) - h_t . w_{l_t} over the rows t whose label counts; no tensor of T x V.

    hidden: (T, H). weight: (V, H), the head. labels: (T,) int64 in [0, V) or ``ignore_index``; row t is compared with
        label t, so a language model's labels are shifted by the caller.
    impl: "torch" (2.13 and later), "liger" (a GPU and the package), "chunked", "reference". "auto" takes the first of
        them that can run on a GPU, and "chunked" on a CPU, where it is the fastest. Under autocast all multiply in its
        dtype.

    Returns ``TokenLoss``; the gradient of ``mean`` reaches hidden and weight. No label that counts gives 0 and zero
    gradients. Raises ValueError or TypeError for a wrong shape, dtype or device; labels out of range are found on the
    CPU, elsewhere under LAVIT_DEBUG=1.
    """
    check_float("hidden", hidden)
    check_float("weight", weight)
    check_rank("hidden", hidden, "(T, H)")
    check_shape("weight", weight, (shape(weight)[0] if weight.dim() else 0, hidden.shape[1]), "hidden")
    check_int64("labels", labels)
    check_shape("labels", labels, hidden.shape[:1], "hidden")
    for name, x in (("weight", weight), ("labels", labels)):
        check_same_device(name, x, "hidden", hidden)
    counts = labels != ignore_index
    verify_range("labels", labels, 0, weight.shape[0] - 1, but=ignore_index)
    chosen = OPERATION.choose(impl, hidden.device) if hidden.shape[0] else "reference"
    device_type = hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device_type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
    with torch.autocast(device_type, enabled=False):
        if chosen == "chunked":
            needs = tuple(torch.is_grad_enabled() and x.requires_grad for x in (hidden, weight))
            total, rows = _Chunked.apply(hidden, weight, labels, counts, dtype, needs)
        else:
            losses = ROWS[chosen](hidden.to(dtype), weight.to(dtype), labels, ignore_index).to(compute_dtype(hidden))
            total, rows = losses.sum(), losses.detach()
    number = counts.sum()
    return TokenLoss(total / number.clamp(min=1), number, rows)


# The loss of each row with its gradient, 0 where the row does not count. The products are in the operands' dtype.


def _reference(hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    logits = F.linear(hidden, weight).to(compute_dtype(hidden))
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")


def _torch(hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    # In our chunks: torch's own may be of a few rows each. By rows, whose gradients are computed in the backward pass:
    # the sum that torch would return is in bfloat16 for bfloat16, and what it holds until then is as large as the
    # weight.
    options = torch.nn.LinearCrossEntropyOptions(  # type: ignore[attr-defined]
        batch_chunk_size=rows_per_chunk(hidden, weight), chunking_method=None
    )
    return F.linear_cross_entropy(  # type: ignore[attr-defined]
        hidden, weight, labels, reduction="none", ignore_index=ignore_index, options=options
    )


def _liger(hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(hidden, weight, labels, ignore_index=ignore_index, reduction="none")


ROWS = {"torch": _torch, "liger": _liger, "reference": _reference}


def rows_per_chunk(hidden: Tensor, weight: Tensor) -> int:
    return min(max(hidden.numel() // weight.shape[0], FEWEST_ROWS), MOST_ROWS)


class _Chunked(torch.autograd.Function):
    """The gradients of the sum are at hand while a chunk's logits are, so the forward pass computes them.

    Per row: V * H multiplications for the logits, and as many for each of the two gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        counts: Tensor,
        dtype: torch.dtype,
        needs: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor]:
        exact = compute_dtype(hidden)
        head = weight.to(dtype)
        rows = torch.empty(hidden.shape[0], dtype=exact, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs[0] else None
        grad_weight = torch.zeros_like(weight, dtype=exact) if needs[1] else None
        # The label of a row that does not count may be any number.
        targets = torch.where(counts, labels, 0)
        count = rows_per_chunk(hidden, weight)
        for start in range(0, hidden.shape[0], count):
            at = slice(start, start + count)
            x, target, counted = hidden[at].to(dtype), targets[at, None], counts[at]
            logits = (x @ head.T).to(exact)
            largest = logits.amax(dim=1, keepdim=True)
            wanted = logits.gather(1, target) - largest
            probability = logits.sub_(largest).exp_()
            total = probability.sum(dim=1, keepdim=True)
            rows[at] = torch.where(counted, (total.log() - wanted).squeeze(1), 0)
            if not any(needs):
                continue
            # d/dlogits = softmax - one-hot, nothing in rows that do not count.
            gradient = probability.div_(total).scatter_add_(1, target, logits.new_full((), -1.0).expand_as(target))
            gradient = torch.where(counted[:, None], gradient, 0).to(dtype)
            if grad_hidden is not None:
                grad_hidden[at] = gradient @ head
            if grad_weight is not None:
                if grad_weight.dtype == dtype:
                    grad_weight.addmm_(gradient.T, x)
                else:
                    grad_weight.add_(gradient.T @ x)
        ctx.mark_non_differentiable(rows)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return rows.sum(), rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        saved = (None if x is None else x * scale.to(x.dtype) for x in ctx.saved_tensors)
        return *saved, None, None, None, None
