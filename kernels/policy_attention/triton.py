"""Launches the kernels of triton_kernels.py: tiles, strides, buffers, and what the audit compiles."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from lavit.kernels.attention_launches import aligned, packed, smaller
from lavit.kernels.policy_attention.triton_kernels import forward_kernel, key_gradient_kernel, query_gradient_kernel
from lavit.kernels.triton_support import (
    FUSE,
    POINTERS,
    Tile,
    Tiles,
    Variant,
    architecture_of,
    column_parts,
    launch_first_that_fits,
    newest,
    of_width,
    on_device_of,
    variant,
    widths_of_every_class,
)

UNIT = 8  # elements, in which the kernels take strides
NARROWEST, WIDEST = 16, 256


# By architecture (the newest not above the device's), by the greatest padded width of a class, for half precision: of
# forward, query gradient and key gradient the largest tiles found that stay in the registers of every part's loop. An
# A100 reads its operands into registers, so that it takes smaller ones.
TABLE = {
    80: {
        96: Tiles(Tile(128, 32, 8, 3), Tile(64, 32, 4, 2), Tile(16, 64, 4, 2)),
        128: Tiles(Tile(64, 32, 4, 2), Tile(64, 32, 8, 2), Tile(16, 64, 8, 2)),
        256: Tiles(Tile(32, 32, 8, 2), Tile(32, 32, 8, 2), Tile(32, 32, 8, 2)),
    },
    90: {
        96: Tiles(Tile(128, 32, 8, 3), Tile(64, 64, 4, 2), Tile(32, 64, 4, 2)),
        128: Tiles(Tile(128, 32, 8, 3), Tile(64, 32, 4, 2), Tile(32, 64, 8, 2)),
        256: Tiles(Tile(64, 32, 8, 2), Tile(32, 32, 8, 2), Tile(32, 32, 8, 2)),
    },
    100: {
        96: Tiles(Tile(128, 32, 8, 3), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)),
        128: Tiles(Tile(128, 32, 8, 3), Tile(64, 32, 4, 2), Tile(32, 32, 4, 2)),
        256: Tiles(Tile(64, 32, 8, 2), Tile(32, 32, 8, 2), Tile(32, 32, 8, 2)),
    },
}
# float32 is multiplied without tensor cores, whose inputs would lose 13 of its bits.
FLOAT32_WIDE = Tiles(Tile(16, 16, 8, 2), Tile(16, 16, 8, 2), Tile(16, 16, 8, 1))
FLOAT32 = {
    80: {128: Tiles(Tile(32, 16, 8, 1), Tile(16, 16, 8, 1), Tile(32, 32, 8, 1)), 256: FLOAT32_WIDE},
    90: {128: Tiles(Tile(32, 32, 8, 1), Tile(16, 16, 8, 1), Tile(32, 32, 8, 1)), 256: FLOAT32_WIDE},
}


def tiles_of(architecture: int, dim: int, dtype: torch.dtype) -> Tiles:
    return of_width(newest(FLOAT32 if dtype == torch.float32 else TABLE, architecture), dim)


def choose_tiles(q: Tensor) -> Tiles:
    return tiles_of(architecture_of(q.device), q.shape[-1], q.dtype)


def can_take(q: Tensor) -> bool:
    """Whether the kernels are made for such inputs: no float64, widths whose vectors are 16 bytes and more, and images
    of less than 2^31 elements, within which they count in 32 bits."""
    _, n, heads, dim = q.shape
    return q.dtype != torch.float64 and NARROWEST <= dim <= WIDEST and dim % UNIT == 0 and n * heads * dim < 2**31


def strided(x: Tensor) -> Tensor:
    """x (B, N, H, D) itself where the kernels can take it with its strides, as a fused projection's view; else a copy.

    Within an image they count in 32 bits.
    """
    *strides, inner = x.stride()
    fits = inner == 1 and all(s % UNIT == 0 for s in strides) and x.shape[1] * x.stride(1) < 2**31
    return x if fits and aligned(x) else packed(x)


def _units(*tensors: Tensor) -> list[int]:
    return [s // UNIT for x in tensors for s in x.stride()[:3]]


def _what(kernel: str, q: Tensor, kind: str, eps: float) -> tuple[Any, ...]:
    """All that a kernel's compilations depend on, besides the tile."""
    return "policy_attention", kernel, q.dtype, q.shape[-1], kind, eps > 0


def policy_attention(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, kind: str, eps: float, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the reference. One launch."""
    batch, n, heads, dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = keep.new_empty((batch, heads, n))
    leak = torch.empty_like(lse)
    if q.numel() == 0:
        return out, lse, leak, keep.new_zeros((batch, heads, dim))
    mean = keep.new_empty((batch, heads, dim))
    q, k, v, keep = strided(q), strided(k), strided(v), packed(keep)

    def launch(tile: Tile) -> None:
        forward_kernel[(triton.cdiv(n, tile.block_m) * heads * batch,)](
            q, k, v, keep, out, lse, leak, mean,
            n, heads, *_units(q, k, v), scale, eps,
            dim, *column_parts(dim), kind == "causal", eps > 0, tile.block_m, tile.block_n, **tile.options, **FUSE,
        )  # fmt: skip

    with on_device_of(q):
        launch_first_that_fits(launch, smaller(choose_tiles(q).forward), _what("forward", q, kind, eps), q.device)
    return out, lse, leak, mean


def policy_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    out: Tensor,
    lse: Tensor,
    leak: Tensor,
    mean: Tensor,
    kind: str,
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the reference. A launch for dq, one for dk, dv and dkeep, and sums over blocks and heads."""
    batch, n, heads, dim = q.shape
    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    if q.numel() == 0:
        return dq, dk, dv, torch.zeros_like(keep)
    delta, slope, dkeep = (torch.empty_like(lse) for _ in range(3))
    top = torch.empty_like(lse, dtype=torch.int32)
    grad, q, k, v, keep = strided(grad), strided(q), strided(k), strided(v), packed(keep)
    sizes = (n, heads, *_units(grad, q, k, v), scale)
    shape = (dim, *column_parts(dim), kind == "causal", eps > 0)

    def queries(tile: Tile) -> Tensor:
        blocks = triton.cdiv(n, tile.block_m)
        leaked = keep.new_empty((batch, heads, blocks, dim)) if eps > 0 else mean
        query_gradient_kernel[(blocks * heads * batch,)](
            grad, q, k, v, keep, out, lse, leak, mean, dq, delta, slope, top, leaked,
            *sizes, *shape, tile.block_m, tile.block_n, **tile.options, **FUSE,
        )  # fmt: skip
        return leaked.sum(dim=2) if eps > 0 else leaked

    def keys(tile: Tile) -> None:
        key_gradient_kernel[(triton.cdiv(n, tile.block_n) * heads * batch,)](
            grad, q, k, v, keep, lse, delta, slope, top, leaked, dk, dv, dkeep,
            *sizes, *shape, tile.block_m, tile.block_n, **tile.options, **FUSE,
        )  # fmt: skip

    tiles = choose_tiles(q)
    with on_device_of(q):
        leaked = launch_first_that_fits(queries, smaller(tiles.queries), _what("queries", q, kind, eps), q.device)
        launch_first_that_fits(keys, smaller(tiles.keys), _what("keys", q, kind, eps), q.device)
    return dq, dk, dv, dkeep.sum(dim=1)


KERNELS = {"forward": forward_kernel, "queries": query_gradient_kernel, "keys": key_gradient_kernel}


def variants(every: bool = False) -> list[Variant]:
    """Every kernel with every tile of the tables: at LaVIT's width, of either kind, and at the ends of the others.
    every: all widths that are compiled otherwise than another, in every type, with and without eps."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    cases = [(88, bf16, "causal", True), (88, bf16, "cross", True), (88, fp32, "causal", True)]
    cases += [(dim, bf16, "causal", True) for dim in (64, 128, 256)] + [(256, fp32, "causal", True)]
    if every:
        forms = (("causal", True), ("cross", False))
        widths = widths_of_every_class(NARROWEST, WIDEST)
        more = [(dim, dtype, *form) for dim in widths for dtype in (bf16, fp16, fp32) for form in forms]
        more += [(88, dtype, *form) for dtype in (bf16, fp16, fp32) for form in (("causal", False), ("cross", True))]
        cases += [case for case in more if case not in cases]
    return [one for case in cases for served in (80, 90, 100) for one in _variants_of(*case, served)]


def _variants_of(dim: int, dtype: torch.dtype, kind: str, eps: bool, served: int) -> list[Variant]:
    tiles, (d0, d1) = tiles_of(served, dim, dtype), column_parts(dim)
    types = {f"{x}_ptr": POINTERS[dtype] for x in ("g", "q", "k", "v", "out", "dq", "dk", "dv")}
    types |= {"top_ptr": "*i32", "scale": "fp32", "eps": "fp32"}
    found = []
    for name, kernel in KERNELS.items():
        tile = getattr(tiles, name)
        constants = {"D": dim, "D0": d0, "D1": d1, "CAUSAL": kind == "causal", "EPS": eps}
        constants |= {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
        label = f"D={dim} {str(dtype).removeprefix('torch.')} {kind}{'' if eps else ' eps=0'}"
        label += f" {tile.block_m}x{tile.block_n}"
        half = dtype != torch.float32
        found.append(
            variant(kernel, label, types, constants, tensor_cores=half, architectures=(served,), **tile.options)
        )
    return found
