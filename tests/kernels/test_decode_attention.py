from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lavit.kernels import decode_attention
from lavit.kernels.decode_attention import cpp
from lavit.threads import on as on_threads

IMPLEMENTATIONS = [
    "reference",
    pytest.param("cpp", marks=pytest.mark.skipif(cpp.unusable("cpu") is not None, reason=f"{cpp.unusable('cpu')}")),
]
SHAPES = [(1, 1, 1, 2, 3, 1), (3, 4, 2, 10, 37, 20), (2, 6, 2, 32, 96, 90), (5, 3, 3, 88, 50, 41), (2, 8, 1, 64, 33, 9)]


def case(rows, heads, key_heads, width, length, used, dtype=torch.float64) -> list[Tensor]:
    """Arguments of which each row sees other slots, the last one used among them, which is to be written."""
    torch.manual_seed(length)
    qkv = torch.randn(rows, (heads + 2 * key_heads) * width, dtype=torch.float64)
    keys, values = torch.randn(2, rows, key_heads, length, width, dtype=torch.float64).unbind()
    mask = torch.full((rows, 1, 1, length), torch.finfo(dtype).min, dtype=torch.float64)
    for row in range(rows):
        mask[row, ..., min(row * 7 % used, used - 1) : used] = 0
    angle = torch.randn(rows, 1, width // 2, dtype=torch.float64).repeat(1, 1, 2)
    sin = angle.sin()
    sin[..., : width // 2] *= -1
    given = [x.to(dtype) for x in (qkv, keys, values, mask, angle.cos(), sin)]
    return [*given, torch.tensor([used - 1])]


def formula(qkv, keys, values, mask, cos, sin, slot, scale) -> tuple[Tensor, Tensor, Tensor]:
    """Head by head in float64: what is read, and the cache after it."""
    qkv, keys, values, cos, sin = (x.double() for x in (qkv, keys, values, cos, sin))
    rows, key_heads, _, width = keys.shape
    parts = qkv.view(rows, -1, width)
    heads = parts.shape[1] - 2 * key_heads
    half = width // 2

    def rotated(x: Tensor, row: int) -> Tensor:
        return x * cos[row, 0] + torch.cat((x[half:], x[:half])) * sin[row, 0]

    out = torch.empty(rows, heads, width, dtype=torch.float64)
    for row in range(rows):
        seen = mask[row, 0, 0] == 0
        for head in range(key_heads):
            keys[row, head, slot] = rotated(parts[row, heads + head], row)
            values[row, head, slot] = parts[row, heads + key_heads + head]
        for head in range(heads):
            of = head // (heads // key_heads)
            weight = (keys[row, of, seen] @ rotated(parts[row, head], row) * scale).softmax(0)
            out[row, head] = weight @ values[row, of, seen]
    return out.view(rows, -1), keys, values


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_the_formula_and_writes_the_slot_alone(impl, shape, dtype):
    given = case(*shape, dtype=dtype)
    used, scale = shape[-1], 0.3
    expected, keys, values = formula(*given, scale)
    before = [x.clone() for x in given]
    found = decode_attention(*given, window=min(used + 2, shape[-2]), scale=scale, impl=impl)
    eps = torch.finfo(dtype).eps
    # A score is a sum of D products of order 1 times the scale; its error moves the weights as much.
    error = eps * (8 + 4 * scale * shape[3]) * 4
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=error)
    torch.testing.assert_close(given[1].double(), keys, rtol=0, atol=16 * eps)
    torch.testing.assert_close(given[2].double(), values, rtol=0, atol=0)
    others = torch.arange(shape[-2]) != used - 1
    assert torch.equal(given[1][:, :, others], before[1][:, :, others])
    assert all(torch.equal(a, b) for i, (a, b) in enumerate(zip(given, before, strict=True)) if i not in (1, 2))


@pytest.mark.skipif(cpp.unusable("cpu") is not None, reason="no compiled kernels")
def test_the_compiled_form_reads_no_slot_that_is_hidden():
    given = case(3, 4, 2, 16, 40, 30)
    expected = decode_attention(*[x.clone() for x in given], window=40, scale=0.2, impl="cpp")
    hidden = (given[3] != 0).squeeze(2).expand(-1, 2, -1)
    for x in given[1:3]:
        x[hidden] = torch.nan
    assert torch.equal(decode_attention(*given, window=40, scale=0.2, impl="cpp"), expected)


@pytest.mark.skipif(cpp.unusable("cpu") is not None, reason="no compiled kernels")
def test_bits_depend_neither_on_the_threads_nor_on_the_other_rows_nor_on_the_window():
    given = case(64, 8, 8, 64, 200, 180, dtype=torch.float32)
    found = []
    for number in (1, 4):
        with on_threads(number):
            found.append(decode_attention(*[x.clone() for x in given], window=200, scale=0.1, impl="cpp"))
    alone = decode_attention(*[x[9:10].clone() for x in given[:-1]], given[-1], window=180, scale=0.1, impl="cpp")
    assert torch.equal(*found) and torch.equal(alone, found[0][9:10])


@pytest.mark.skipif(cpp.unusable("cpu") is not None, reason="no compiled kernels")
def test_large_scores_neither_overflow_nor_lose_the_greatest():
    given = case(2, 2, 2, 16, 40, 30, dtype=torch.float32)
    given[0] *= 1e4
    found = decode_attention(*[x.clone() for x in given], window=40, scale=1.0, impl="cpp")
    torch.testing.assert_close(found, decode_attention(*given, window=40, scale=1.0, impl="reference"))


def test_compiles_without_a_graph_break_and_writes_the_cache():
    def plain(*given):
        return decode_attention(*given, window=16, scale=0.4)

    run = torch.compile(plain, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (2, 3):
        given = case(rows, 4, 2, 8, 20, 10, dtype=torch.float32)
        copies = [x.clone() for x in given]
        assert torch.equal(run(*given), plain(*copies))
        assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_operation_is_known_to_the_compiler_with_what_it_writes(impl):
    given = case(2, 4, 2, 8, 20, 10, dtype=torch.float32)
    torch.library.opcheck(torch.ops.lavit.decode_attention.default, (*given, 16, 0.4, impl))


def test_wrong_arguments_are_named():
    given = case(2, 4, 2, 8, 20, 10)

    def refused(message, error=ValueError, window=16, **changed):
        names = ("qkv", "keys", "values", "mask", "cos", "sin", "slot")
        with pytest.raises(error, match=message):
            decode_attention(*(changed.get(n, x) for n, x in zip(names, given, strict=True)), window=window, scale=1.0)

    refused("window: expected 1 to 20, the slots of keys, got 21", window=21)
    refused(r"qkv: expected shape \(2, \(Hq \+ 4\) \* 8\) with Hq a multiple of 2, got", qkv=torch.zeros(2, 32))
    refused(r"values: expected shape \(2, 2, 20, 8\) to match keys", values=given[2][:, :, :3])
    refused(r"mask: expected shape \(2, 1, 1, 20\) to match keys", mask=given[3][..., :3])
    refused("slot: expected int64, got torch.int32", TypeError, slot=given[6].int())
    refused("keys: expected an even head dimension, got 7", keys=given[1][..., :7])
    if cpp.unusable("cpu") is None:
        refused("slot: expected 0 <= slot < window <= 20, got 16 and 16", RuntimeError, slot=torch.tensor([16]))
