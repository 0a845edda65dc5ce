"""What tensors hold is looked at on the CPU: every operation refuses what does not fit, all implementations alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from usable import skip_unless_usable

from lavit.kernels import (
    Ragged,
    assemble_sequences,
    bin_pack,
    code_statistics,
    layer_norm,
    pack,
    pad,
    policy_attention,
    unpack,
    unpad,
    varlen_attention,
)
from lavit.kernels.checks import verify_not_negative, verify_offsets, verify_order, verify_range, verify_same_offsets
from lavit.kernels.dispatch import OPERATIONS

CPU = torch.device("cpu")
ORDER = [[0, 1, 2, 3], [3, 2, 1, 0]]
NAN, INF = float("nan"), float("inf")


def int32(*numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def refused(message: str, call: Callable, *arguments: Any, **others: Any) -> None:
    """The whole message."""
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        call(*arguments, **others)


# Offsets: 2 sequences over 5 rows, of at most 4 rows.

GOOD = int32(0, 2, 5)
THREE = int32(0, 2, 5, 5)
SAMPLES = int32(0, 2, 4)
BAD_OFFSETS = {
    "not from 0": ([1, 2, 5], "expected offsets from 0, got 1 first"),
    "from below 0": ([-1, 2, 5], "expected offsets from 0, got -1 first"),
    "falling": ([0, 4, 3], "expected non-decreasing offsets, they fall after entry 1, got 4 and then 3"),
    "falling at once": ([0, -1, 3], "expected non-decreasing offsets, they fall after entry 0, got 0 and then -1"),
    "falling by more than int32 holds": (
        [0, 2**31 - 1, -(2**31)],
        "expected non-decreasing offsets, they fall after entry 1, got 2147483647 and then -2147483648",
    ),
    "beyond the rows": ([0, 3, 6], "expected offsets within 5 rows, got 6 last"),
}


def rows(count: int = 5) -> Tensor:
    return torch.arange(1.0, 1 + count * 16).view(-1, 1, 16)[:count]


def attend(cu_q: Tensor, cu_k: Tensor, impl: str, **others: Any) -> Tensor:
    return varlen_attention(rows(), rows(), rows(), cu_q, cu_k, 4, 4, impl=impl, **others)


def assemble(impl: str, text=THREE, images=THREE, segments=SAMPLES, **others: Any) -> Any:
    """5 tokens of text and 5 of images; two samples, each a text and an image, in a vector of 5 kinds."""
    usual = {"ids": torch.arange(5), "codes": torch.arange(5), "kinds": torch.tensor([0, 1, 0, 2, 0])}
    values = [others.pop(name, value) for name, value in usual.items()]
    texts, codes, order = (Ragged(v, cu, 0) for v, cu in zip(values, (text, images, segments), strict=True))
    return assemble_sequences(texts, codes, order, impl=impl, **others)


OFFSETS: dict[str, tuple[str, Callable[[Tensor, str], Any]]] = {
    "cu of pack": ("pack", lambda cu, impl: pack(torch.ones(2, 4), int32(*ORDER), cu, total=5, impl=impl)),
    "cu of unpack": ("unpack", lambda cu, impl: unpack(torch.ones(5), int32(*ORDER), cu, 4, impl=impl)),
    "ragged.cu_seqlens of pad": ("pad", lambda cu, impl: pad(Ragged(torch.ones(5), cu, 4), impl=impl)),
    "ragged.cu_seqlens of pad to a length": ("pad", lambda cu, impl: pad(Ragged(torch.ones(5), cu, 4), 2, impl=impl)),
    "cu_seqlens of unpad": ("unpad", lambda cu, impl: unpad(torch.ones(2, 4), cu, total=5, impl=impl)),
    "cu_q of varlen_attention": ("varlen_attention", lambda cu, impl: attend(cu, GOOD, impl)),
    "cu_k of varlen_attention": ("varlen_attention", lambda cu, impl: attend(GOOD, cu, impl)),
    "text.cu_seqlens of assemble_sequences": ("assemble_sequences", lambda cu, impl: assemble(impl, text=cu)),
    "images.cu_seqlens of assemble_sequences": ("assemble_sequences", lambda cu, impl: assemble(impl, images=cu)),
    "segments.cu_seqlens of assemble_sequences": ("assemble_sequences", lambda cu, impl: assemble(impl, segments=cu)),
}


@pytest.mark.parametrize("bad", BAD_OFFSETS)
@pytest.mark.parametrize("name, impl", [(name, i) for name, (op, _) in OFFSETS.items()
                                        for i in OPERATIONS[op].implementations])  # fmt: skip
def test_offsets_that_do_not_fit_are_refused(name, impl, bad):
    operation, call = OFFSETS[name]
    skip_unless_usable(operation, impl, CPU)
    numbers, message = BAD_OFFSETS[bad]
    refused(f"{name.split()[0]}: {message}", call, int32(*numbers), impl)
    call(int32(0, 2, 4), impl)


TOO_LONG: dict[str, tuple[str, Callable[[str], Any]]] = {
    "cu: expected at most 4 rows a sequence, got 5 in sequence 1": (
        "pack", lambda impl: pack(torch.ones(2, 4), int32(*ORDER), int32(0, 0, 5), impl=impl)),
    "cu: expected at most 4 rows a sequence, got 5 in sequence 0": (
        "unpack", lambda impl: unpack(torch.ones(5), int32(*ORDER), int32(0, 5, 5), 4, dropped=True, impl=impl)),
    "ragged.cu_seqlens: expected at most 2 rows a sequence, got 3 in sequence 1 (ragged.max_seqlen is too small)": (
        "pad", lambda impl: pad(Ragged(torch.ones(5), GOOD, 2), impl=impl)),
    "cu_q: expected at most 4 rows a sequence, got 5 in sequence 0 (max_q is too small)": (
        "varlen_attention", lambda impl: attend(int32(0, 5, 5), GOOD, impl)),
    "cu_k: expected at most 4 rows a sequence, got 5 in sequence 1 (max_k is too small)": (
        "varlen_attention", lambda impl: attend(GOOD, int32(0, 0, 5), impl)),
    "cu_k: expected the offsets of cu_q with causal=True, 2 at entry 1, got 3": (
        "varlen_attention", lambda impl: attend(GOOD, int32(0, 3, 5), impl, causal=True)),
}  # fmt: skip


@pytest.mark.parametrize("message, impl", [(m, i) for m, (op, _) in TOO_LONG.items()
                                           for i in OPERATIONS[op].implementations])  # fmt: skip
def test_sequences_longer_than_they_may_be_are_refused(message, impl):
    operation, call = TOO_LONG[message]
    skip_unless_usable(operation, impl, CPU)
    refused(message, call, impl)


def test_a_length_asked_for_may_cut():
    padded, mask, _ = pad(Ragged(torch.ones(5), GOOD, 1), 1)
    assert mask.shape == (2, 1) and padded.sum() == 2


BAD_ORDERS = {
    "order: row 0 is not a permutation of 0..3, got 4 at place 2": [[0, 1, 4, 2], [3, 2, 1, 0]],
    "order: row 1 is not a permutation of 0..3, got -1 at place 3": [[0, 1, 2, 3], [0, 2, 1, -1]],
    "order: row 1 is not a permutation of 0..3, got 2 again at place 1": [[0, 1, 2, 3], [2, 2, 1, 0]],
    "order: row 0 is not a permutation of 0..3, got 2147483647 at place 0": [[2**31 - 1, 1, 2, 3], [3, 2, 1, 0]],
}


@pytest.mark.parametrize("message", BAD_ORDERS)
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("operation", ["pack", "unpack"])
@pytest.mark.parametrize("impl", OPERATIONS["pack"].implementations)
def test_an_order_that_is_no_permutation_is_refused(impl, operation, dropped, message):
    skip_unless_usable(operation, impl, CPU)
    order = int32(*BAD_ORDERS[message])
    if operation == "pack":
        refused(message, pack, torch.ones(2, 4), order, GOOD, dropped=dropped, impl=impl)
    else:
        refused(message, unpack, torch.ones(5), order, GOOD, 4, dropped=dropped, impl=impl)


# Values.

KEYS = torch.tensor([1.0, 0.5, 0.0, 1.0, 1.0])
HALF = torch.float16


def weighted(weights: Tensor) -> Callable[[str], Any]:
    return lambda impl: attend(GOOD, GOOD, impl, key_weight=weights)


def counted(*ids: int) -> Callable[[str], Any]:
    return lambda impl: code_statistics(torch.ones(3, 4), torch.tensor(ids), 7, impl=impl)


def assembled(**others: Any) -> Callable[[str], Any]:
    return lambda impl: assemble(impl, **others)


def packed(lengths: Any, **others: Any) -> Callable[[str], Any]:
    return lambda impl: bin_pack(lengths, 8, impl=impl, **others)


LAST_CODE = 2**63 - 1 - 32002
VALUES: list[tuple[str, str, Callable[[str], Any]]] = [
    ("varlen_attention", "key_weight: expected numbers >= 0, got -0.5 at index 1",
     weighted(KEYS.index_fill(0, torch.tensor(1), -0.5))),
    ("varlen_attention", "key_weight: expected numbers >= 0, got -inf at index 0",
     weighted(KEYS.index_fill(0, torch.tensor(0), -INF).to(HALF))),
    ("code_statistics", "ids: expected -1 to 6, got 7 at index 2", counted(0, 6, 7)),
    ("code_statistics", "ids: expected -1 to 6, got -2 at index 0", counted(-2, -1, -2)),
    ("code_statistics", f"ids: expected -1 to 6, got {2**63 - 1} at index 1", counted(0, 2**63 - 1, 9)),
    ("assemble_sequences", "segments.values: expected 0 to 2, got 3 at index 1",
     assembled(kinds=torch.tensor([0, 3, 0, 2, 0]))),
    ("assemble_sequences", "text.values: expected >= 0, got -4 at index 3",
     assembled(ids=int32(0, 1, 2, -4, 4))),
    ("assemble_sequences", "images.values: expected 0 to 3, got 4 at index 4", assembled(num_codes=4)),
    ("assemble_sequences", f"images.values: expected 0 to {LAST_CODE}, got {LAST_CODE + 1} at index 1",
     assembled(codes=torch.tensor([LAST_CODE, LAST_CODE + 1, 0, 0, 0]))),
    ("assemble_sequences", "loss: expected 0 to 7, got 8 at index 0", assembled(loss=int32(8, 0, 0, 0, 0))),
    ("assemble_sequences", "text: expected 3, one for each segment of its kind, got 2",
     assembled(text=GOOD, kinds=torch.tensor([0, 0, 0, 2, 0]))),
    ("assemble_sequences", "total: expected an upper bound of 14 rows, got 13", assembled(total=13)),
    ("bin_pack", "lengths: expected lengths >= 0, got -1 for sample 1", packed(torch.tensor([3, -1]))),
    ("bin_pack", "lengths: expected samples of at most 8 tokens, the budget; sample 0 has 9 "
     "(too_long='skip' leaves such samples out)", packed([9, 1])),
]  # fmt: skip


@pytest.mark.parametrize("impl, message, call, operation", [
    pytest.param(impl, message, call, operation, id=f"{operation}-{impl}-{number}")
    for number, (operation, message, call) in enumerate(VALUES) for impl in OPERATIONS[operation].implementations
])  # fmt: skip
def test_values_that_do_not_fit_are_refused(impl, message, call, operation):
    skip_unless_usable(operation, impl, CPU)
    refused(message, call, impl)


@pytest.mark.parametrize("impl", OPERATIONS["varlen_attention"].implementations)
def test_what_is_not_in_use_may_hold_anything(impl):
    skip_unless_usable("varlen_attention", impl, CPU)
    cu = int32(0, 2, 4)
    got = attend(cu, cu, impl, key_weight=KEYS.index_fill(0, torch.tensor(4), -1.0))
    assert torch.equal(got, attend(cu, cu, impl, key_weight=KEYS))
    assert len(assemble("reference", kinds=torch.tensor([0, 1, 0, 2, 99])).cu_seqlens) == 3


@pytest.mark.parametrize("eps", [-1e-6, NAN])
def test_layer_norm_refuses_an_epsilon_below_0(eps):
    refused(f"eps: expected a number of at least 0, got {eps}", layer_norm, torch.ones(2, 3), *torch.ones(2, 3), eps)


@pytest.mark.parametrize("value, dtype, message", [
    (256, torch.uint8, "expected 0 to 255 for torch.uint8, got 256"),
    (-1, torch.uint16, "expected 0 to 65535 for torch.uint16, got -1"),
    (NAN, torch.int64, f"expected {-(2**63)} to {2**63 - 1} for torch.int64, got nan"),
    (2**53 + 1, torch.int64, f"expected a number that float64 holds, got {2**53 + 1}"),
])  # fmt: skip
def test_padding_that_its_dtype_does_not_hold_is_refused(value, dtype, message):
    rows = torch.ones(5, dtype=dtype)
    refused(f"value: {message}", pad, Ragged(rows, GOOD, 4), value=value)
    refused(f"fill: {message}", unpack, rows, int32(*ORDER), GOOD, 4, fill=value)


# Ragged batches.


@pytest.mark.parametrize("bad", BAD_OFFSETS)
def test_a_ragged_batch_of_bad_offsets_is_not_taken_apart(bad):
    numbers, message = BAD_OFFSETS[bad]
    refused(f"cu_seqlens: {message}", Ragged(torch.ones(5), int32(*numbers), 4).unbind)


def test_a_ragged_batch_is_made_of_rows_of_one_shape_as_many_as_offsets_can_count():
    message = "tensors: expected shapes (n, 3), got (2,) for sequence 1"
    refused(message, Ragged.from_list, [torch.ones(2, 3), torch.ones(2)])
    refused("tensors: expected shapes (n), got () for sequence 0", Ragged.from_list, [torch.ones(())])
    many = [torch.empty(2**30, 0), torch.empty(2**30, 0)]
    refused(f"tensors: expected at most {2**31 - 1} rows in all, got {2**31}", Ragged.from_list, many)


# Where nothing is looked at.


def test_nothing_is_looked_at_on_a_device_but_in_debug_mode(monkeypatch):
    """A tensor on the meta device cannot be read: what passes has not looked."""
    cu, order = int32(3, 1).to("meta"), int32([5, 5]).to("meta")
    looks = [
        lambda: verify_offsets("cu", cu, total=0, longest=0),
        lambda: verify_same_offsets("cu_k", cu, "cu_q", cu.clone()),
        lambda: verify_order(order),
        lambda: verify_range("ids", cu, 0, 0),
        lambda: verify_not_negative("key_weight", torch.ones(2, device="meta")),
    ]
    monkeypatch.delenv("LAVIT_DEBUG", raising=False)
    for look in looks:
        assert look() is None
    monkeypatch.setenv("LAVIT_DEBUG", "1")
    for look in looks:
        with pytest.raises(NotImplementedError, match="meta"):
            look()


def test_tensors_without_memory_pass():
    with FakeTensorMode():
        cu, order = torch.zeros(3, dtype=torch.int32), torch.zeros(2, 4, dtype=torch.int32)
        assert pack(torch.ones(2, 4), order, cu, total=5).shape == (5,)
        assert unpack(torch.ones(5), order, cu, 4).shape == (2, 4)
        assert pad(Ragged(torch.ones(5), cu, 3))[0].shape == (2, 3)
        assert unpad(torch.ones(2, 4), cu, total=5).shape == (5,)
        q = torch.ones(5, 1, 8)
        assert varlen_attention(q, q, q, cu, cu, 3, 3, key_weight=torch.ones(5)).shape == (5, 1, 8)
        assert policy_attention(q[None], q[None], q[None], torch.ones(1, 5)).shape == (1, 5, 1, 8)
        assert code_statistics(torch.ones(3, 4), torch.zeros(3, dtype=torch.int64), 7)[0].shape == (7,)


def test_a_compiled_graph_refuses_when_it_runs():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def run(x, order, cu):
        padded, mask, _ = pad(Ragged(pack(x, order, cu, total=8), cu, 4))
        return padded * mask

    assert run(torch.ones(2, 4), int32(*ORDER), GOOD).sum() == 5
    refused("order: row 0 is not a permutation of 0..3, got 9 at place 0",
            run, torch.ones(2, 4), int32([9, 1, 2, 3], ORDER[1]), GOOD)  # fmt: skip
    refused("cu: expected offsets within 8 rows, got 9 last", run, torch.ones(3, 4), int32(*ORDER, ORDER[0]),
            int32(0, 4, 8, 9))  # fmt: skip
