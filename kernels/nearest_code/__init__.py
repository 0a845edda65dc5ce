"""The quantizer's search: which code of a codebook is nearest to each vector."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from lavit.kernels.checks import check_float, check_one_of, check_same_device
from lavit.kernels.nearest_code.library import nearest_code_op

__all__ = ["nearest_code"]

METRICS = ("cosine", "euclidean")
PRECISIONS = ("exact", "fast")


@overload
def nearest_code(
    x: Tensor,
    codebook: Tensor,
    *,
    metric: str = ...,
    normalize_x: bool = ...,
    precision: str = ...,
    return_score: Literal[False] = ...,
    impl: str = ...,
) -> Tensor: ...
@overload
def nearest_code(
    x: Tensor,
    codebook: Tensor,
    *,
    metric: str = ...,
    normalize_x: bool = ...,
    precision: str = ...,
    return_score: Literal[True],
    impl: str = ...,
) -> tuple[Tensor, Tensor]: ...
def nearest_code(
    x: Tensor,
    codebook: Tensor,
    *,
    metric: str = "cosine",
    normalize_x: bool = True,
    precision: str = "exact",
    return_score: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """arg min_j |l2(x) - l2(c_j)| (LaVIT eq. 3), or with the stored codes as they are.

    x: (n, D), codebook: (K, D), K >= 1, floating; computed in float32 at least, in float64 when x is float64.
    metric: "cosine", the paper's: both normalised. "euclidean", arg min |x|^2 + |c|^2 - 2 x.c with the stored codebook:
        the release's with ``normalize_x=True``, SEED's with False.
    precision: "exact", the id of the float64 computation wherever its gap exceeds float32 rounding; "fast" allows an
        implementation half-precision products, and then any of the codes that their rounding makes equal.
    impl: "triton" (GPU), "cpp", "cpu" or "reference".
    return_score: also the cosine similarity or the squared distance, (n,) float32 (NaN where the id is -1).

    Returns ids (n,) int64; ties go to the lowest id; a row with NaN or Inf gets -1, a code with NaN or Inf is never
    chosen. Finite rows and codes may have any magnitude (in float64 and with the stored codes, one whose squares
    float64 holds). A zero row has no direction: by cosine all codes tie, euclidean it gets the shortest.
    No gradient. Raises ValueError or TypeError on a wrong shape, dtype, device, metric or precision.
    """
    check_float("x", x, "(n, D)")
    check_float("codebook", codebook, "(K, D)")
    if codebook.shape[0] < 1 or codebook.shape[1] != x.shape[1]:
        raise ValueError(f"codebook: expected shape (K, {x.shape[1]}) with K >= 1, got {tuple(codebook.shape)}")
    check_same_device("codebook", codebook, "x", x)
    check_one_of("metric", metric, METRICS)
    check_one_of("precision", precision, PRECISIONS)
    ids, score = nearest_code_op(x.detach(), codebook.detach(), metric, normalize_x, precision, impl)
    return (ids, score) if return_score else ids
