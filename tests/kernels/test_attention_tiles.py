"""Every tile of the attentions' tables, and every smaller one that a device may need, in the interpreter and fenced."""

from __future__ import annotations

from collections.abc import Iterator

import fence
import policy_cases as policy
import pytest
import torch
from packed import inputs, run, truth_and_bounds
from usable import skip_unless_usable

from lavit.kernels.triton_support import Tile, Tiles

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("poisoned")


def sides(tile: Tile) -> tuple[int, int]:
    return tile.block_m, tile.block_n


def of_tables(operation: str) -> list[tuple[torch.dtype, int, Tiles]]:
    """Of an operation's tables as many trios of tiles, with a dtype and the greatest width that they are for, as have
    every tile of every kernel in one of them, and so the smaller ones. How tiles are compiled makes no difference."""
    if torch.cuda.is_available():
        return []
    from lavit.kernels.attention_launches import smaller

    found: list[tuple[torch.dtype, int, Tiles]] = []
    covered: set[tuple[object, ...]] = set()
    for dtype, width, tiles in _tables(operation):
        chains = [smaller(tile) for tile in (tiles.forward, tiles.queries, tiles.keys)]
        for place in range(max(map(len, chains))):
            trio = Tiles(*(chain[min(place, len(chain) - 1)] for chain in chains))
            parts = {(dtype, width, kernel, *sides(getattr(trio, kernel))) for kernel in ("forward", "queries", "keys")}
            if not parts <= covered:
                covered |= parts
                found.append((dtype, width, trio))
    return found


def _tables(operation: str) -> Iterator[tuple[torch.dtype, int, Tiles]]:
    if operation == "varlen_attention":
        from lavit.kernels.varlen_attention.triton import TABLE

        for row in TABLE.values():
            for size, by_width in row.items():
                for width, tiles in by_width.items():
                    yield torch.float16 if size == 2 else torch.float32, width, tiles
        return
    from lavit.kernels.policy_attention.triton import FLOAT32, TABLE

    for table in (TABLE, FLOAT32):  # all in float32, whose bounds are the tightest
        for row in table.values():
            for width, tiles in row.items():
                yield torch.float32, width, tiles


def name(value: object) -> str | None:
    if isinstance(value, Tiles):
        return "-".join("x".join(map(str, sides(tile))) for tile in (value.forward, value.queries, value.keys))
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


# Of every class of widths one that fills the columns of neither part, and one that fills them.
WIDTHS = {64: (40, 64), 96: (88, 96), 128: (88, 128), 256: (152, 256)}


@pytest.mark.parametrize(("dtype", "width", "tiles"), of_tables("varlen_attention"), ids=name)
def test_varlen_every_tile_is_right_and_touches_nothing_else(monkeypatch, dtype, width, tiles):
    skip_unless_usable("varlen_attention", "triton", CPU)
    from lavit.kernels.varlen_attention import triton

    monkeypatch.setattr(triton, "choose_tiles", lambda q: tiles)
    launched = fence.install(monkeypatch).launched
    # One beyond the blocks of every kernel, one short of them, one token, none: of queries and of keys.
    most = [max(getattr(tile, side) for tile in (tiles.forward, tiles.queries, tiles.keys)) for side in
            ("block_m", "block_n")]  # fmt: skip
    for dim, causal in zip(WIDTHS[width], (True, False), strict=True):
        keys = [most[1] + 1, 0, 1, most[1] - 1]
        queries = keys if causal else [1, 3, 0, most[0] + 1]
        q, k, v, g, w = inputs(queries, keys, dim, dtype, "cpu", spare=2)
        problem = q, k, v, g, None if causal else w, queries, keys, causal
        for got, (exact, bound) in zip(run("triton", *problem), truth_and_bounds(*problem), strict=True):
            assert bool(((got.double() - exact).abs() <= bound).all())
    blocks = [(launch["BLOCK_M"], launch["BLOCK_N"]) for launch in launched]
    assert blocks == [sides(tile) for tile in (tiles.forward, tiles.queries, tiles.keys)] * 2


@pytest.mark.parametrize(("dtype", "width", "tiles"), of_tables("policy_attention"), ids=name)
def test_policy_every_tile_is_right_and_touches_nothing_else(monkeypatch, dtype, width, tiles):
    skip_unless_usable("policy_attention", "triton", CPU)
    from lavit.kernels.policy_attention import triton

    monkeypatch.setattr(triton, "choose_tiles", lambda q: tiles)
    launched = fence.install(monkeypatch).launched
    n = max(max(sides(tile)) for tile in (tiles.forward, tiles.queries, tiles.keys)) + 1
    for dim, kind, eps in zip(WIDTHS[width], ("causal", "cross"), (1e-6, 0.0), strict=True):
        problem = *policy.case(n, dim, "third", batch=1), kind, eps
        policy.assert_within(policy.run(*problem), policy.in_float64(*problem), policy.allowed(*problem))
    blocks = [(launch["BLOCK_M"], launch["BLOCK_N"]) for launch in launched]
    assert blocks == [sides(tile) for tile in (tiles.forward, tiles.queries, tiles.keys)] * 2
