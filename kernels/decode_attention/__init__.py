"""Attention of one new token over a key-value cache, as generation has it in every layer."""

from __future__ import annotations

from torch import Tensor

from lavit.kernels.checks import check_float, check_int64, check_rank, check_shape
from lavit.kernels.decode_attention.library import compute, decode_attention_op
from lavit.kernels.dispatch import direct

__all__ = ["decode_attention"]


def decode_attention(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    cos: Tensor,
    sin: Tensor,
    slot: Tensor,
    *,
    window: int,
    scale: float,
    impl: str = "auto",
) -> Tensor:
    """Rotate a token's queries and key, write key and value to the cache, and attend to it.

    qkv: (N, (Hq + 2 Hk) * D), queries, keys and values of one token of each of N sequences; Hq / Hk queries in turn
        share a key. keys, values: (N, Hk, L, D), the cache, in which slot ``slot`` (1,) int64 is written.
    mask: (N, 1, 1, L) of the dtype of qkv: 0 at slots to be read, among them ``slot``, and the least finite number
        elsewhere; what lies there is a finite number. window: only the first so many slots are looked at.
    cos, sin: (N, 1, D) of the token's rotation, ``x cos + roll(x, D / 2) sin``: of sin the first half is negated.
    Returns (N, Hq * D). No gradient.
    Raises TypeError and ValueError for dtypes and shapes that do not fit; ValueError for a window beyond L.
    """
    check_float("qkv", qkv)
    check_rank("qkv", qkv, "(N, C)")
    check_rank("keys", keys, "(N, Hk, L, D)")
    rows, key_heads, length, width = keys.shape
    if width % 2:
        raise ValueError(f"keys: expected an even head dimension, got {width}")
    heads, rest = qkv.shape[1] // width, qkv.shape[1] % width
    if qkv.shape[0] != rows or rest or heads <= 2 * key_heads or heads % key_heads:
        wanted = f"({rows}, (Hq + {2 * key_heads}) * {width}) with Hq a multiple of {key_heads}"
        raise ValueError(f"qkv: expected shape {wanted}, got {tuple(qkv.shape)}")
    check_shape("values", values, tuple(keys.shape), "keys")
    check_shape("mask", mask, (rows, 1, 1, length), "keys")
    check_shape("cos", cos, (rows, 1, width), "keys")
    check_shape("sin", sin, (rows, 1, width), "keys")
    check_int64("slot", slot)
    check_shape("slot", slot, (1,), "one token")
    if not 1 <= window <= length:
        raise ValueError(f"window: expected 1 to {length}, the slots of keys, got {window}")
    run = compute if direct(qkv, keys, values, mask, cos, sin, slot) else decode_attention_op
    return run(qkv, keys, values, mask, cos, sin, slot, window, scale, impl)
