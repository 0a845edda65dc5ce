"""The merger's attention in its dense form: all N tokens, a mask that carries gradient, the release's epsilon."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.checks import check_float, check_one_of, check_same_device, check_same_dtype, check_shape
from lavit.kernels.policy_attention.library import policy_attention_op
from lavit.kernels.types import compute_dtype

__all__ = ["policy_attention", "warm_up"]


def policy_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    *,
    kind: str = "causal",
    eps: float = 1e-6,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Attention with the release's weights, out_i = sum_j a_ij v_j:

        a_ij = (exp(s_ij - m_i) P_ij + eps/N) / (sum_j exp(s_ij - m_i) P_ij + eps),   m_i = max_j s_ij over all columns

    q, k, v: (B, N, H, D), one dtype.
    keep: (B, N), 1 for kept and 0 for dropped tokens, bool or floating; its gradient is that of P.
    kind: "causal", P_ij = keep_j for j < i and 1 for j = i (merger's self-attention); "cross", P_ij = 1 - keep_j.
    eps: the release's 1e-6; 0 gives the paper's softmax over the columns with P_ij > 0, and zeros where there is none.
    scale: of the logits; default D^-1/2.

    Returns (B, N, H, D) in q's dtype. Raises ValueError or TypeError on a wrong shape, dtype, device or kind.
    """
    check_float("q", q, "(B, N, H, D)")
    for name, x in (("k", k), ("v", v)):
        check_shape(name, x, q.shape, "q")
        check_same_dtype(name, x, "q", q)
        check_same_device(name, x, "q", q)
    if keep.dtype != torch.bool:
        check_float("keep", keep)
    check_shape("keep", keep, q.shape[:2], "q")
    check_same_device("keep", keep, "q", q)
    check_one_of("kind", kind, ("causal", "cross"))
    if not eps >= 0:
        raise ValueError(f"eps: expected a number of at least 0, got {eps}")
    compute = compute_dtype(q)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return policy_attention_op(q, k, v, keep.to(compute), kind, float(eps), scale, impl)[0]


def warm_up(
    dim: int,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cuda",
    *,
    kind: str = "causal",
    eps: float = 1e-6,
    impl: str = "auto",
) -> None:
    """Compile what calls of this kind run, forward and backward, so that none does later, as while a CUDA graph is
    recorded. Numbers of images, tokens and heads, strides, the scale and the size of an eps above 0 do not matter.

    dim: D. dtype: of q.
    """
    q, k, v = (torch.zeros(1, 1, 1, dim, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    with torch.enable_grad():
        out = policy_attention(q, k, v, torch.ones(1, 1, device=device), kind=kind, eps=eps, impl=impl)
    torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
