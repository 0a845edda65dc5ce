"""Launches the kernels of triton_kernels.py: tiles, shares of the codebook, buffers, and what the audit compiles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lavit.kernels.nearest_code.triton_kernels import (
    ends_kernel,
    pick_kernel,
    prepare_kernel,
    rescore_kernel,
    rows_kernel,
    screen_kernel,
)
from lavit.kernels.triton_support import (
    FUSE,
    POINTERS,
    Variant,
    architecture_of,
    launch_first_that_fits,
    multiprocessors,
    newest,
    on_device_of,
    variant,
)
from lavit.kernels.types import compute_dtype


@dataclass(frozen=True)
class Config:
    """Tile of the screening pass. ``lanes`` divides a tile's codes into blocks: as many as keep a block's maximum
    within one thread of the tensor core's accumulator layout."""

    block_m: int
    block_n: int
    lanes: int
    num_warps: int
    num_stages: int


CONFIGS = {
    "128x128": Config(128, 128, 4, 4, 4),
    "128x64": Config(128, 64, 4, 4, 4),
    "64x128": Config(64, 128, 4, 4, 4),
    "256x128": Config(256, 128, 4, 8, 4),
    "128x128 lanes 8": Config(128, 128, 8, 4, 3),
    "64x128 short": Config(64, 128, 4, 4, 3),
    "64x64 short": Config(64, 64, 4, 4, 2),
}
# Tile by architecture (the newest not above the device's) and by width class. 8.6, 8.9 and 12 have 99 KiB of shared
# memory a block, and the tensor cores of 12 take their operands as those of 8 do.
TABLE = {
    80: {"narrow": "128x128 lanes 8", "middle": "128x64", "wide": "128x64"},
    86: {"narrow": "128x128 lanes 8", "middle": "128x64", "wide": "64x128 short"},
    90: {"narrow": "128x128", "middle": "128x64", "wide": "128x128"},
    120: {"narrow": "128x128 lanes 8", "middle": "128x64", "wide": "64x128 short"},
}
SMALLER = ("64x128 short", "64x64 short")  # where a device has no room for the table's
NARROW, MIDDLE, CHUNK = 32, 128, 64  # the greatest D of a class; the columns a step of the widest one takes
MAX_SPLITS = 8
PREPARE_ELEMENTS, MAX_PROGRAMS = 4096, 1024
RESCORE_ROWS, RESCORE_WARPS, SCAN_CODES = 2, 2, 32
REGISTERS = 255  # a thread may have: unasked, ptxas spills some for the sake of occupancy


def _rescore_columns(dim: int, dtype: torch.dtype) -> int:
    """How many columns a step of the rescoring takes, so that its blocks of codes stay in registers."""
    most = 64 if dim <= MIDDLE else 32
    return min(max(16, triton.next_power_of_2(dim)), most // 2 if dtype == torch.float64 else most)


def _block_of(dim: int) -> int:
    """How many columns a step of the preparation and the screening takes."""
    return max(16, triton.next_power_of_2(dim)) if dim <= MIDDLE else CHUNK


def _prepare_rows(block_d: int, dtype: torch.dtype) -> int:
    """How many rows a step of the preparation takes; of float64 half as many, for the registers."""
    return max(16, PREPARE_ELEMENTS // block_d // (2 if dtype == torch.float64 else 1))


def choose_config(device: torch.device, dim: int) -> Config:
    """The tile for a device and a width."""
    width = "narrow" if dim <= NARROW else "middle" if dim <= MIDDLE else "wide"
    return CONFIGS[newest(TABLE, architecture_of(device))[width]]


def needs_rows(dim: int, dtype: torch.dtype) -> bool:
    """Whether a kernel of its own makes the rows' float16 copies: the screening of such rows would spill."""
    return dim > 64 or dtype == torch.float64


def choose_splits(row_tiles: int, code_tiles: int, slots: int, at_least: int) -> int:
    """Into how many shares the codebook goes: the cheapest, in steps of a tile, of all that are allowed.

    A program's start and end cost about four tiles; ``slots`` programs run side by side.
    """
    options = range(at_least, max(at_least, min(MAX_SPLITS, code_tiles)) + 1)
    return min(options, key=lambda s: -(-row_tiles * s // slots) * (-(-code_tiles // s) + 4))


@dataclass(frozen=True)
class Plan:
    """Everything that the host decides for a search; only ``splits``, ``per_split`` and the grids depend on n."""

    n: int
    num_codes: int
    dim: int
    width: int  # columns of the float16 codes, a multiple of block_d
    block_d: int
    rescore_d: int
    tile: Config
    tiles: int
    id_bits: int
    splits: int
    per_split: int
    prepare_rows: int
    share: int  # codes a program of the preparation takes
    programs: int
    acc: tl.dtype


def plan(x: Tensor, num_codes: int, config: Config | None = None, splits: int | None = None) -> Plan:
    """Sizes for a search of x (n, D) among num_codes; ``config`` and ``splits`` replace the heuristics' choice."""
    n, dim = x.shape
    tile = config or choose_config(x.device, dim)
    block_d = _block_of(dim)
    tiles = triton.cdiv(num_codes, tile.block_n)
    id_bits = 8 if tiles <= 256 else 12 if tiles <= 4096 * MAX_SPLITS else 16
    slots = 2 * multiprocessors(x.device)
    splits = splits or choose_splits(triton.cdiv(n, tile.block_m), tiles, slots, triton.cdiv(tiles, 1 << id_bits))
    rows = _prepare_rows(block_d, x.dtype)
    share = triton.cdiv(triton.cdiv(tiles * tile.block_n, rows), MAX_PROGRAMS) * rows
    return Plan(
        n=n,
        num_codes=num_codes,
        dim=dim,
        width=triton.cdiv(dim, block_d) * block_d,
        block_d=block_d,
        rescore_d=_rescore_columns(dim, x.dtype),
        tile=tile,
        tiles=tiles,
        id_bits=id_bits,
        splits=splits,
        per_split=triton.cdiv(tiles, splits),
        prepare_rows=rows,
        share=share,
        programs=triton.cdiv(tiles * tile.block_n, share),
        acc=tl.float64 if x.dtype == torch.float64 else tl.float32,
    )


@dataclass(frozen=True)
class Screened:
    """What the screening leaves. keys (2, n, splits * lanes) float32: the two largest block maxima with their tile in
    the low bits; third (n, splits * lanes): the third largest; window (n,): twice the bound of their error.
    fast: keys (1, n, ...) with the code's place in the low bits, third: its tile, int32; no window."""

    keys: Tensor
    third: Tensor
    window: Tensor | None
    range: Tensor | None  # what the rescoring asks of the codebook: ranges of scales, and the first code that is finite
    first: Tensor


def screen(x: Tensor, codebook: Tensor, metric: str, normalize_x: bool, fast: bool, p: Plan) -> Screened:
    """The half-precision pass over contiguous x and codebook, n > 0."""

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    cosine, tile, padded, blocks = metric == "cosine", p.tile, p.tiles * p.tile.block_n, p.splits * p.tile.lanes
    half, stats = new(padded, p.width, dtype=torch.float16), new(3, MAX_PROGRAMS)
    first = new(MAX_PROGRAMS, dtype=torch.int32)
    bias = ends = scales = None
    if not cosine:
        bias = new(padded)
        ends, scales = (new(2, size, dtype=compute_dtype(x)) for size in (MAX_PROGRAMS, 1))
    rows, weight = x, None
    keys = new(1 if fast else 3, p.n, blocks)
    third = new(p.n, blocks, dtype=torch.int32) if fast else keys[2]
    window = None if fast else new(p.n)
    if not cosine:
        ends_kernel[(p.programs,)](
            codebook, ends, p.num_codes, p.share, p.dim, p.block_d, p.prepare_rows, MAX_PROGRAMS, p.acc,
            maxnreg=REGISTERS, **FUSE,
        )  # fmt: skip
    prepare_kernel[(p.programs,)](
        codebook, half, bias, ends, scales, stats, first, p.num_codes, padded, p.share,
        p.dim, p.width, p.block_d, cosine, p.prepare_rows, MAX_PROGRAMS, p.acc, maxnreg=REGISTERS, **FUSE,
    )  # fmt: skip
    flags = (cosine or normalize_x, not cosine)
    if ready := needs_rows(p.dim, x.dtype):
        rows, weight = new(p.n, p.width, dtype=torch.float16), None if cosine else new(p.n)
        rows_kernel[(triton.cdiv(p.n, p.prepare_rows),)](
            x, rows, weight, scales, stats, window, p.n, p.programs,
            p.dim, p.width, p.block_d, *flags, fast, p.id_bits, p.acc, p.prepare_rows, MAX_PROGRAMS,
            maxnreg=REGISTERS, **FUSE,
        )  # fmt: skip
    screen_kernel[(triton.cdiv(p.n, tile.block_m), p.splits)](
        rows, weight, half, bias, scales, stats, keys[0], third if fast else keys[1], None if fast else third, window,
        p.n, p.tiles, p.per_split, p.programs,
        p.dim, p.width, p.block_d, *flags, ready, fast, p.id_bits, tl.float32 if ready else p.acc,
        tile.block_m, tile.block_n, tile.lanes, MAX_PROGRAMS,
        num_warps=tile.num_warps, num_stages=tile.num_stages, maxnreg=REGISTERS, **FUSE,
    )  # fmt: skip
    return Screened(keys if fast else keys[:2], third, window, scales, first)


def nearest_code(
    x: Tensor,
    codebook: Tensor,
    metric: str,
    normalize_x: bool,
    precision: str,
    config: Config | None = None,
    splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """ids (n,) and score (n,), as in reference.py. Launches three to five kernels; nothing waits for the device.

    ``config`` and ``splits`` replace the table's tile and the heuristic's number of shares, for measurements.
    """
    if x.shape[0] == 0:
        return x.new_empty(0, dtype=torch.int64), x.new_empty(0, dtype=torch.float32)
    if x.dtype != codebook.dtype and torch.float64 in (x.dtype, codebook.dtype):
        codebook = codebook.to(compute_dtype(x))
    x, codebook = x.contiguous(), codebook.contiguous()

    def search(tile: Config) -> tuple[Tensor, Tensor]:
        p = plan(x, codebook.shape[0], tile, splits)
        with on_device_of(x):
            return _search(x, codebook, metric, normalize_x, precision == "fast", p)

    tiles = [choose_config(x.device, x.shape[1]), *(CONFIGS[name] for name in SMALLER)] if config is None else [config]
    what = ("nearest_code", x.shape[1], x.dtype, codebook.dtype, metric, normalize_x, precision)
    return launch_first_that_fits(search, tiles, what, x.device)


def _search(
    x: Tensor, codebook: Tensor, metric: str, normalize_x: bool, fast: bool, p: Plan
) -> tuple[Tensor, Tensor]:
    ids = torch.empty(p.n, dtype=torch.int64, device=x.device)
    score = torch.empty(p.n, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(p.n, RESCORE_ROWS),)
    flags = (metric == "cosine", metric == "cosine" or normalize_x)
    found = screen(x, codebook, metric, normalize_x, fast, p)
    if fast:
        pick_kernel[grid](
            x, codebook, found.range, found.keys, found.third, ids, score, p.n, p.num_codes, p.splits,
            p.dim, p.rescore_d, *flags, p.acc, p.tile.block_n, p.tile.lanes, MAX_SPLITS, RESCORE_ROWS,
            num_warps=RESCORE_WARPS, maxnreg=REGISTERS, **FUSE,
        )  # fmt: skip
    else:
        rescore_kernel[grid](
            x, codebook, found.range, found.first, found.keys, found.third, found.window, ids, score,
            p.n, p.num_codes, p.per_split, p.splits, p.programs, p.dim, p.rescore_d, *flags, p.id_bits, p.acc,
            p.tile.block_n, p.tile.lanes, MAX_SPLITS, RESCORE_ROWS, SCAN_CODES, MAX_PROGRAMS,
            num_warps=RESCORE_WARPS, maxnreg=REGISTERS, **FUSE,
        )  # fmt: skip
    return ids, score


def variants(every: bool = False) -> list[Variant]:
    """Every kernel with every tile of CONFIGS at LaVIT's width, and each width class with its tiles from TABLE.
    every: all widths that are compiled otherwise than another, in every type, and the places of larger codebooks."""
    newer, everywhere = (90, 100), (80, 90, 100)
    small = (86, 120)
    f16, bf16, f32, f64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
    cases: list[tuple[tuple[int, ...], str, int, torch.dtype, str, int]] = [
        *((everywhere, name, 32, f32, "cosine", 8) for name in CONFIGS),
        (everywhere, "128x128", 32, bf16, "cosine", 8),
        (everywhere, "128x128", 32, f32, "plain", 8),
        (newer, "128x128", 32, f64, "euclidean", 8),
        ((80, *small), "128x128 lanes 8", 32, f64, "euclidean", 8),
        ((*everywhere, *small), "128x64", 128, f32, "euclidean", 8),
        (everywhere, "128x64", 128, f64, "euclidean", 8),
        *((newer, "128x128", 1024, dtype, "euclidean", 8) for dtype in (bf16, f32, f64)),
        *(((80,), "128x64", 1024, dtype, "euclidean", 8) for dtype in (bf16, f32, f64)),
        *((small, "64x128 short", 1024, dtype, "euclidean", 8) for dtype in (f32, f64)),
        (small, "64x64 short", 1024, f32, "euclidean", 8),
    ]
    if every:
        for served in (80, 90, 100):
            for dim in (13, 16, 29, 32, 61, 64, 125, 128, 131, 192, 1024):
                width = "narrow" if dim <= NARROW else "middle" if dim <= MIDDLE else "wide"
                at = (served,), newest(TABLE, served)[width], dim
                cases += [(*at, dtype, way, 8) for dtype in (f16, bf16, f32, f64) for way in ("cosine", "euclidean")]
                cases += [(*at, f32, "cosine", bits) for bits in (12, 16)]
    found: dict[tuple[Any, ...], Variant] = {}
    for architectures, name, dim, dtype, metric, id_bits in cases:
        for one in _variants_of(name, dim, dtype, metric, id_bits):
            key = one.kernel, *map(str, (one.signature, one.constants, one.num_warps, one.num_stages))
            before = found[key].architectures if key in found else ()
            found[key] = replace(found.get(key, one), architectures=(*before, *(set(architectures) - set(before))))
    return list(found.values())


def _variants_of(name: str, dim: int, dtype: torch.dtype, metric: str, id_bits: int) -> list[Variant]:
    tile, cosine = CONFIGS[name], metric == "cosine"
    block_d = _block_of(dim)
    width = triton.cdiv(dim, block_d) * block_d
    label = f"{name} D={dim} {str(dtype).removeprefix('torch.')} {metric}{'' if id_bits == 8 else f' {id_bits} bits'}"
    types = {"x_ptr": POINTERS[dtype], "c_ptr": POINTERS[dtype], "half_ptr": "*fp16", "ids_ptr": "*i64"}
    types |= {"tile_ptr": "*i32", "first_ptr": "*i32"}
    constants = {"D": dim, "WIDTH": width, "BLOCK_D": block_d, "ROWS": _prepare_rows(block_d, dtype)}
    constants |= {"COSINE": cosine, "NORMALIZE": metric != "plain", "HAS_BIAS": not cosine, "ID_BITS": id_bits}
    constants |= {"ACC": tl.float64 if dtype == torch.float64 else tl.float32, "PROGRAMS": MAX_PROGRAMS}
    constants |= {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "LANES": tile.lanes, "MAX_SPLITS": MAX_SPLITS}
    types |= dict.fromkeys(("ends_ptr", "range_ptr"), "*fp64" if dtype == torch.float64 else "*fp32")
    absent = dict.fromkeys(("ends_ptr", "range_ptr", "bias_ptr", "weight_ptr")) if cosine else {}
    registers = {"maxnreg": REGISTERS}
    found = [] if cosine else [variant(ends_kernel, label, types, constants, **registers)]
    found.append(variant(prepare_kernel, label, types, constants | absent, **registers))
    ready = {"READY": needs_rows(dim, dtype)}
    if ready["READY"]:
        types |= {"weight_ptr": "*fp32"}
        for fast in (True, False):
            fixed = constants | absent | {"FAST": fast} | ({"window_ptr": None} if fast else {})
            found.append(variant(rows_kernel, f"{label} fast" if fast else label, types, fixed, **registers))
        types_of_rows, constants_of_rows = {"x_ptr": "*fp16"}, {"ACC": tl.float32}
    else:
        types_of_rows, constants_of_rows = {}, {"weight_ptr": None}
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages, **registers, "tensor_cores": True}
    for fast in (True, False):
        fixed = constants | absent | {"FAST": fast} | ({"third_ptr": None, "window_ptr": None} if fast else {})
        fixed |= ready | constants_of_rows
        second = types | types_of_rows | {"second_ptr": "*i32" if fast else "*fp32"}
        found.append(variant(screen_kernel, f"{label} fast" if fast else label, second, fixed, **options))
    exact = constants | absent | {"BLOCK_D": _rescore_columns(dim, dtype), "ROWS": RESCORE_ROWS, "SCAN": SCAN_CODES}
    for kernel in (pick_kernel, rescore_kernel):
        found.append(variant(kernel, label, types, exact, num_warps=RESCORE_WARPS, **registers))
    return found
