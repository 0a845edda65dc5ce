"""Launches the kernels of triton_kernels.py: how a head's columns are divided, tiles, and what the audit compiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from lavit.kernels.attention_launches import aligned, packed, smaller
from lavit.kernels.triton_support import (
    FUSE,
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
from lavit.kernels.varlen_attention.triton_kernels import (
    backward_keys_kernel,
    backward_queries_kernel,
    forward_kernel,
)

HALF_NARROW = Tiles(Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), Tile(32, 64, 4, 2))
HALF_MIDDLE = Tiles(Tile(64, 32, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 8, 2))
HALF_WIDE = Tiles(Tile(64, 32, 8, 2), Tile(64, 32, 8, 2), Tile(32, 32, 8, 2))
FLOAT_NARROW = Tiles(Tile(32, 32, 8, 2), Tile(32, 32, 8, 2), Tile(16, 32, 8, 2))
FLOAT_LAVIT = Tiles(Tile(32, 32, 4, 2), Tile(32, 16, 4, 2), Tile(16, 16, 4, 2))
FLOAT_MIDDLE = Tiles(Tile(32, 16, 8, 2), Tile(32, 16, 4, 2), Tile(16, 16, 4, 1))
FLOAT_WIDE = Tiles(Tile(16, 16, 8, 1), Tile(16, 16, 8, 2), Tile(16, 16, 8, 2))
# By architecture (the newest not above the device's), by bytes of an element, and by the columns of both parts.
# A tile decides in which order an image's keys are summed, so it must not depend on what else is in the batch.
SINGLE = {64: FLOAT_NARROW, 96: FLOAT_LAVIT, 128: FLOAT_MIDDLE, 256: FLOAT_WIDE}


def _row(
    narrow: Tiles = HALF_NARROW, middle: Tiles = HALF_MIDDLE, wide: Tiles = HALF_WIDE
) -> dict[int, dict[int, Tiles]]:
    return {2: {64: narrow, 128: middle, 256: wide}, 4: SINGLE}


# Tensor cores that take their operands from registers (8 and 12) leave fewer for the rest.
OPERANDS_IN_REGISTERS = replace(HALF_NARROW, queries=Tile(64, 32, 4, 2))
TABLE = {
    80: _row(OPERANDS_IN_REGISTERS),
    # 8.6, 8.9 and 12 have 99 KiB of shared memory, where HALF_WIDE's queries want 101.
    86: _row(
        OPERANDS_IN_REGISTERS,
        replace(HALF_MIDDLE, keys=Tile(32, 32, 8, 2)),
        replace(HALF_WIDE, queries=Tile(32, 32, 8, 2)),
    ),
    90: _row(),
    120: _row(
        OPERANDS_IN_REGISTERS,
        replace(HALF_MIDDLE, keys=Tile(16, 64, 4, 2)),
        replace(HALF_WIDE, queries=Tile(32, 16, 8, 2)),
    ),
}
LARGEST = 256


def can_take(q: Tensor) -> bool:
    """Whether the kernels take q's dtype (not float64: its products have no tile form here) and width."""
    return q.dtype != torch.float64 and 0 < q.shape[-1] <= LARGEST and q.shape[-1] % 8 == 0


def choose_tiles(q: Tensor) -> Tiles:
    return of_width(newest(TABLE, architecture_of(q.device))[q.dtype.itemsize], q.shape[-1])


def rows_of_heads(x: Tensor) -> Tensor:
    """x (T, H, D) with a row's heads side by side and rows at multiples of 8 elements: as q, k and v of one product
    are; else a copy."""
    row, head, column = x.stride()
    return x if column == 1 and head == x.shape[2] and row % 8 == 0 and aligned(x) else packed(x)


def weights(key_weight: Tensor | None) -> Tensor | None:
    """In float32, as the kernels compute with them."""
    return None if key_weight is None else packed(key_weight.float())


def strides(*xs: Tensor) -> list[int]:
    return [x.stride(0) // 8 for x in xs]


def _what(kernel: str, q: Tensor, causal: bool, weight: Tensor | None) -> tuple[Any, ...]:
    """All that a kernel's compilations depend on, besides the tile."""
    return "varlen_attention", kernel, q.dtype, q.shape[-1], causal, weight is not None


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    key_weight: Tensor | None,
    max_q: int,
    max_k: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """out (Tq, H, D), lse (Tq, H), as in reference.py."""
    total_q, heads, dim = q.shape
    out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    q, k, v = (rows_of_heads(x) for x in (q, k, v))
    weight, cu_q, cu_k, images = weights(key_weight), packed(cu_q), packed(cu_k), cu_q.shape[0] - 1

    def launch(tile: Tile) -> None:
        blocks = max(1, triton.cdiv(max_q, tile.block_m))
        forward_kernel[((images + 1) * blocks * heads,)](
            q, k, v, weight, cu_q, cu_k, out, lse,
            heads, blocks, images, total_q, k.shape[0], *strides(q, k, v), scale,
            dim, *column_parts(dim), causal, tile.block_m, tile.block_n, **tile.options, **FUSE,
        )  # fmt: skip

    with on_device_of(q):
        launch_first_that_fits(launch, smaller(choose_tiles(q).forward), _what("forward", q, causal, weight), q.device)
    return out, lse


def varlen_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    key_weight: Tensor | None,
    max_q: int,
    max_k: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of reference.py. Two kernels, the second of which reads what the first leaves."""
    (total_q, heads, dim), total_k, images = q.shape, k.shape[0], cu_q.shape[0] - 1
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    delta = torch.empty_like(lse)
    dw = lse.new_empty((0,) if key_weight is None else (heads, total_k))
    grad, q, k, v = (rows_of_heads(x) for x in (grad, q, k, v))
    weight, cu_q, cu_k = weights(key_weight), packed(cu_q), packed(cu_k)
    shape = (dim, *column_parts(dim), causal)

    def queries(tile: Tile) -> None:
        blocks = max(1, triton.cdiv(max_q, tile.block_m))
        backward_queries_kernel[((images + 1) * blocks * heads,)](
            grad, q, k, v, weight, out, lse, cu_q, cu_k, delta, dq,
            heads, blocks, images, total_q, total_k, *strides(grad, q, k, v), scale,
            *shape, tile.block_m, tile.block_n, **tile.options, **FUSE,
        )  # fmt: skip

    def keys(tile: Tile) -> None:
        blocks = max(1, triton.cdiv(max_k, tile.block_n))
        backward_keys_kernel[((images + 1) * blocks * heads,)](
            grad, q, k, v, weight, lse, delta, cu_q, cu_k, dk, dv, None if weight is None else dw,
            heads, blocks, images, total_q, total_k, *strides(grad, q, k, v), scale,
            *shape, tile.block_m, tile.block_n, **tile.options, **FUSE,
        )  # fmt: skip

    tiles = choose_tiles(q)
    with on_device_of(q):
        if dq.numel():
            launch_first_that_fits(queries, smaller(tiles.queries), _what("queries", q, causal, weight), q.device)
        if dk.numel():
            launch_first_that_fits(keys, smaller(tiles.keys), _what("keys", q, causal, weight), q.device)
    return dq, dk, dv, dw if key_weight is None else dw.sum(dim=0).to(key_weight.dtype)


KERNELS = {"forward": forward_kernel, "queries": backward_queries_kernel, "keys": backward_keys_kernel}
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def variants(every: bool = False) -> list[Variant]:
    """Every kernel with every tile of TABLE: LaVIT's width as the merger calls it, the ends of the others plainly.
    every: all widths that are compiled otherwise than another, in every type."""
    cases = [(88, "bf16", True, True), (88, "bf16", False, False), (88, "fp32", True, True), (64, "bf16", True, True)]
    cases += [(dim, kind, False, True) for dim in (64, 128, 256) for kind in ("bf16", "fp32")]
    if every:
        forms = ((True, True), (False, False))
        cases += [(d, kind, *form) for d in widths_of_every_class(8, LARGEST) for kind in TYPES for form in forms]
        cases += [(88, kind, *form) for kind in TYPES for form in ((True, False), (False, True))]
    found: dict[tuple[Any, ...], Variant] = {}
    for served in (80, 86, 89, 90, 100, 120):
        row = newest(TABLE, served)
        for dim, kind, causal, weighted in cases:
            tiles = of_width(row[TYPES[kind].itemsize], dim)
            for name, kernel in KERNELS.items():
                case = kernel, getattr(tiles, name), dim, kind, causal, weighted
                before = found[case].architectures if case in found else ()
                if served not in before:
                    found[case] = _variant(*case, (*before, served))
    return list(found.values())


def _variant(
    kernel: Any, tile: Tile, dim: int, kind: str, causal: bool, weighted: bool, architectures: tuple[int, ...]
) -> Variant:
    types = dict.fromkeys(("grad", "q", "k", "v", "out", "dq", "dk", "dv"), f"*{kind}")
    types |= dict.fromkeys(("lse", "delta", "weight", "dw"), "*fp32")
    types |= {"cu_q": "*i32", "cu_k": "*i32", "scale": "fp32"}
    d0, d1 = column_parts(dim)
    constants: dict[str, int | None] = {"D": dim, "D0": d0, "D1": d1, "CAUSAL": causal}
    constants |= {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
    constants |= {} if weighted else {"weight": None, "dw": None}
    label = f"{kind} D={dim}{' causal' if causal else ''}{' weighted' if weighted else ''}"
    others = {"tensor_cores": kind != "fp32", "architectures": architectures, **tile.options}
    return variant(kernel, label, types, constants, **others)
