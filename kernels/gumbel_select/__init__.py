"""Which patches of an image stay: Gumbel noise, decision, relaxed probability and stable partition in one operation."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.checks import INT32_MAX, check_float, check_int64, check_same_device, check_shape
from lavit.kernels.gumbel_select.library import gumbel_select_op
from lavit.kernels.types import Selection

__all__ = ["gumbel_select"]

SEED_RANGE = (-(2**63), 2**63 - 1)


def gumbel_select(
    scores: Tensor,
    *,
    tau: float = 1.0,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    deterministic: bool = False,
    min_keep: int = 0,
    impl: str = "auto",
) -> Selection:
    """Sample the mask of kept patches by the hard Gumbel-softmax (LaVIT, section 3.1).

    scores: (B, N, 2) log-probabilities or logits, class 0 = keep. Half precision is computed and returned in float32.
    tau: temperature of the relaxed probability; it does not move the decision.
    noise: (B, N, 2) given Gumbel noise: keep where s0 + g0 >= s1 + g1.
    seeds: (B,) int64. The noise of an image then depends on its seed and the patch index only: the same tokens in any
        batch, on any device. Without ``noise`` and ``seeds``, they are drawn by ``torch.randint`` on the device:
        ``torch.manual_seed`` governs them, and every replay of a CUDA graph draws new ones.
    deterministic: no noise, keep where s0 >= s1.
    min_keep: no image keeps fewer patches; the most probable ones are added, at equal probability the first.
    impl: "triton" (up to 4096 patches an image, else "reference"), "cpp" (CPU) or "reference".

    Returns a Selection. ``keep`` is exactly 0 or 1 and has the straight-through gradient of ``prob``. A patch with NaN
    scores is dropped, has prob 0 and no gradient, and is not added by ``min_keep`` either.
    Raises ValueError or TypeError on a wrong shape, dtype or device, when more than one of ``noise``, ``seeds`` and
    ``deterministic`` is given, when ``min_keep`` exceeds N, and above 2**31 - 1 patches in all.
    """
    check_float("scores", scores, "(B, N, 2)")
    batch, num_patches, classes = scores.shape
    if classes != 2:
        raise ValueError(f"scores: expected shape (B, N, 2), got {tuple(scores.shape)}")
    if not tau > 0:
        raise ValueError(f"tau: expected a positive number, got {tau}")
    if min_keep < 0 or min_keep > num_patches:
        raise ValueError(f"min_keep: expected 0 to {num_patches} (the patches of an image), got {min_keep}")
    if (noise is not None) + (seeds is not None) + deterministic > 1:
        raise ValueError("noise, seeds, deterministic: expected at most one of them, got more")
    if batch * num_patches > INT32_MAX:
        raise ValueError(f"scores: expected at most {INT32_MAX} patches in all, got {batch * num_patches}")
    if noise is not None:
        check_float("noise", noise)
        check_shape("noise", noise, scores.shape, "scores")
        check_same_device("noise", noise, "scores", scores)
        noise = noise.detach()
    elif seeds is not None:
        check_int64("seeds", seeds)
        check_shape("seeds", seeds, (batch,), "scores")
        check_same_device("seeds", seeds, "scores", scores)
    elif not deterministic:
        seeds = torch.randint(*SEED_RANGE, (batch,), dtype=torch.int64, device=scores.device)
    return Selection(*gumbel_select_op(scores, noise, seeds, float(tau), min_keep, impl))
