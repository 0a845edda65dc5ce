"""The selection of patches, in plain PyTorch, with the random numbers that every implementation draws."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.partition.reference import partition
from lavit.kernels.types import compute_dtype

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., 2011). Words are int64 tensors with values in [0, 2^32); returns four of them.

    The 64-bit product may wrap in int64; its two halves are right all the same, after masking.
    """
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def odd_numbers(seeds: Tensor, num_patches: int) -> Tensor:
    """The noise of each image, (B,) int64 seeds -> (B, N) int64 odd numbers t in (0, 2^24).

    key = the seed's two words, counter = (patch index, 0, 0, 0); t = twice the first word's upper 23 bits, plus 1.
    u = t / 2^24 is uniform in (0, 1), exact in float32, and so is 1 - u.
    """
    index = torch.arange(num_patches, device=seeds.device, dtype=torch.int64)
    key = ((seeds & MASK)[:, None], ((seeds >> 32) & MASK)[:, None])
    zero = torch.zeros_like(index)
    word = philox4x32(key, (index, zero, zero, zero))[0]
    return (word >> 9) * 2 + 1


def logistic_noise(seeds: Tensor, num_patches: int) -> Tensor:
    """logit(u), the difference of two Gumbel variables: (B,) int64 -> (B, N) float64.

    In float64, so that no rounding of a device's logarithm comes near a decision made on float32 scores.
    """
    t = odd_numbers(seeds, num_patches)
    return t.double().log() - (2**24 - t).double().log()


def gumbel_select(
    scores: Tensor, noise: Tensor | None, seeds: Tensor | None, tau: float, min_keep: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(keep, prob, order, cu_kept, cu_dropped) for scores (B, N, 2), in float32 or, for float64 scores, in float64.

    With d = s0 - s1 and one of: Gumbel ``noise`` g (B, N, 2), margin = (s0 + g0) - (s1 + g1); ``seeds`` (B,),
    margin = d + logit u; neither, margin = d.
        prob = sigma(margin / tau)
        keep = margin > 0, or margin >= 0 without seeds (logit u, being continuous, has no ties to speak of; the
               first of two equal entries wins an arg max)
    Given noise is added in the precision of the result; all else is computed in float64 and rounded once.
    """
    dtype = compute_dtype(scores)
    scores = scores.to(dtype)
    if noise is not None:
        noisy = scores + noise.to(dtype)
        margin = (noisy[..., 0] - noisy[..., 1]).double()
    else:
        margin = scores[..., 0].double() - scores[..., 1].double()
    if seeds is not None:
        margin = margin + logistic_noise(seeds, scores.shape[1])
        keep = margin > 0
    else:
        keep = margin >= 0
    if min_keep > 0:
        ranked = margin.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        best = ranked.argsort(dim=1, descending=True, stable=True)[:, :min_keep]
        keep = keep.scatter(1, best, True) & ~margin.isnan()
    prob = torch.where(margin.isnan(), 0.0, (margin / tau).sigmoid()).to(dtype)
    return keep.to(dtype), prob, *partition(keep)


def gumbel_select_backward(
    grad_keep: Tensor | None, grad_prob: Tensor | None, prob: Tensor, tau: float, dtype: torch.dtype
) -> Tensor:
    """Straight-through: keep has the gradient of prob. d prob / d s0 = p (1 - p) / tau = -d prob / d s1.

    An absent gradient is zero. The result (B, N, 2) has the ``dtype`` of the scores.
    """
    given = [g for g in (grad_keep, grad_prob) if g is not None]
    d = sum(given, torch.zeros_like(prob)) * prob * (1 - prob) / tau
    return torch.stack((d, -d), dim=-1).to(dtype)
