from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged import IMPLEMENTATIONS, same
from torch import Tensor
from usable import gpu_waits, unchecked

from lavit.kernels import Loss, Ragged, Segment, Sequences, assemble_sequences, segment_order

IMG, END_IMG, FIRST = 32000, 32001, 32002
USUAL = {Segment.TEXT: Loss.CONTENT, Segment.CODES: Loss.ALL, Segment.FEATURES: Loss.NONE}
TOTALS = ["exact", "more", "fewer", "none"]


@dataclass
class Batch:
    """samples: lists of (kind, tokens). spare: pieces, tokens and segments that the batch holds but does not use."""

    samples: list[list[tuple[Segment, list[int]]]]
    loss: list[int] | None = None
    spare: int = 0
    dtype: torch.dtype = torch.int64
    extra: dict = field(default_factory=dict)

    def of(self, *kinds: Segment) -> list[list[int]]:
        return [tokens for sample in self.samples for kind, tokens in sample if kind in kinds]

    def ragged(self, sequences: list[list[int]], pieces: int, device: str) -> Ragged:
        flat = [t for sequence in sequences for t in sequence] + [7] * self.spare
        ends = torch.tensor([0, *map(len, sequences), *[0] * pieces]).cumsum(0)
        ends[len(sequences) + 1 :] += pieces  # an unused piece with tokens, if there are spare ones
        return Ragged(torch.tensor(flat, dtype=self.dtype).to(device), ends.int().to(device), 0)

    def arguments(self, device: str = "cpu") -> tuple[Ragged, Ragged, Ragged]:
        unused = min(self.spare, 1)
        segments = [[kind for kind, _ in sample] for sample in self.samples]
        order = segment_order(segments)
        values = torch.cat([order.values, order.values.new_full((self.spare,), 1)])
        return (
            self.ragged(self.of(Segment.TEXT), unused, device),
            self.ragged(self.of(Segment.CODES, Segment.FEATURES), unused, device),
            Ragged(values.to(device, self.dtype), order.cu_seqlens.to(device), order.max_seqlen),
        )

    def loss_tensor(self, device: str = "cpu") -> Tensor | None:
        if self.loss is None:
            return None
        return torch.tensor(self.loss + [7] * self.spare, dtype=self.dtype).to(device)

    def run(self, impl: str, total: int | None, device: str = "cpu") -> Sequences:
        """On the CPU a total too small is refused; what is cut elsewhere is told without the checks."""
        arguments, loss = self.arguments(device), self.loss_tensor(device)
        with nullcontext() if total is None or total >= self.rows() else unchecked():
            return assemble_sequences(*arguments, loss=loss, total=total, impl=impl, **self.extra)

    def rows(self) -> int:
        return sum(len(tokens) + 2 * (kind != Segment.TEXT) for sample in self.samples for kind, tokens in sample)

    def total(self, which: str) -> int | None:
        return {"exact": self.rows(), "more": self.rows() + 3, "fewer": max(0, self.rows() - 3), "none": None}[which]


def definition(batch: Batch, total: int | None) -> Sequences:
    """Sample by sample, segment by segment, token by token."""
    ids, labels, positions, ends, feature_rows = [], [], [], [0], []
    number = 0
    for sample in batch.samples:
        begin = len(ids)
        for kind, tokens in sample:
            flags = USUAL[kind] if batch.loss is None else Loss(batch.loss[number])
            number += 1
            row = [(t if kind == Segment.TEXT else FIRST + t, Loss.CONTENT) for t in tokens]
            if kind != Segment.TEXT:
                row = [(IMG, Loss.BEGIN), *row, (END_IMG, Loss.END)]
                feature_rows += [len(ids) + 1 + i if kind == Segment.FEATURES else -1 for i in range(len(tokens))]
            for token, what in row:
                labels.append(token if what in flags and len(ids) > begin else -100)
                positions.append(len(ids) - begin)
                ids.append(token)
        ends.append(len(ids))
    total = len(ids) if total is None else total
    pad = max(0, total - len(ids))
    feature_rows = [r if r < total else -1 for r in feature_rows] + [-1] * batch.spare
    return Sequences(
        torch.tensor((ids + [0] * pad)[:total], dtype=torch.int64),
        torch.tensor((labels + [-100] * pad)[:total], dtype=torch.int64),
        torch.tensor((positions + [0] * pad)[:total], dtype=torch.int64),
        torch.tensor(ends, dtype=torch.int32).clamp(max=total),
        torch.tensor(feature_rows, dtype=torch.int64),
    )


def assert_same(got: Sequences, want: Sequences) -> None:
    for name, a, b in zip(Sequences._fields, got, want, strict=True):
        assert same(a.cpu(), b), f"{name}: expected {b.tolist()}, got {a.tolist()}"


@st.composite
def batches(draw) -> Batch:
    segment = st.tuples(st.sampled_from(Segment), st.lists(st.integers(0, 40), max_size=5))
    samples = draw(st.lists(st.lists(segment, max_size=4), max_size=5))
    count = sum(map(len, samples))
    loss = draw(st.one_of(st.none(), st.lists(st.integers(0, 7), min_size=count, max_size=count)))
    # One spare segment at most: there is a spare text and a spare image to answer for it.
    return Batch(samples, loss, draw(st.integers(0, 2)), draw(st.sampled_from([torch.int64, torch.int32])))


def large_batch(samples: int, tokens: int, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)

    def number(limit: int) -> int:
        return int(torch.randint(limit, (), generator=g))

    orders = [[0], [1, 0], [0, 1], [2, 0], [0, 2, 0, 1], [], [2]]
    return Batch(
        [
            [(Segment(k), torch.randint(50, (number(tokens),), generator=g).tolist()) for k in orders[number(7)]]
            for _ in range(samples)
        ]
    )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(batch=batches(), which=st.sampled_from(TOTALS))
def test_it_is_what_a_loop_over_samples_gives(impl, batch, which):
    total = batch.total(which)
    assert_same(batch.run(impl, total), definition(batch, total))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_caption_and_a_prompt_read_as_in_the_paper(impl):
    caption = [(Segment.FEATURES, [5, 6]), (Segment.TEXT, [11, 12])]
    prompt = [(Segment.TEXT, [13]), (Segment.CODES, [0])]
    batch = Batch([caption, prompt])
    out = batch.run(impl, None)
    assert out.input_ids.tolist() == [IMG, FIRST + 5, FIRST + 6, END_IMG, 11, 12, 13, IMG, FIRST, END_IMG]
    assert out.labels.tolist() == [-100] * 4 + [11, 12, -100, IMG, FIRST, END_IMG]
    assert out.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert out.cu_seqlens.tolist() == [0, 6, 10]
    assert out.feature_rows.tolist() == [1, 2, -1]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("which", TOTALS)
def test_many_samples_are_placed_whatever_the_number_of_threads(impl, which, poisoned):
    batch = large_batch(1501, 30)
    assert_same(batch.run(impl, batch.total(which)), definition(batch, batch.total(which)))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_samples_and_no_tokens_are_fine(impl, poisoned):
    for batch in (Batch([]), Batch([[]]), Batch([[], [(Segment.TEXT, [])], [(Segment.CODES, [])]])):
        for total in (None, 0, 4):
            assert_same(batch.run(impl, total), definition(batch, total))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_ids_and_loss_are_the_callers(impl):
    batch = Batch([[(Segment.FEATURES, [1]), (Segment.TEXT, [2])]])
    out = assemble_sequences(
        *batch.arguments(), loss={Segment.FEATURES: Loss.CONTENT | Loss.END}, begin_id=90, end_id=91, first_code_id=100,
        pad_id=3, ignore_index=-1, total=5, impl=impl,
    )  # fmt: skip
    assert out.input_ids.tolist() == [90, 101, 91, 2, 3]
    assert out.labels.tolist() == [-1, 101, 91, 2, -1]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_strided_values_are_read_by_their_strides(impl):
    batch = large_batch(13, 9)
    batch.loss = [3] * sum(map(len, batch.samples))

    def strided(x: Tensor) -> Tensor:
        return torch.stack([x, x + 1], dim=1)[:, 0]

    arguments = [Ragged(strided(r.values), strided(r.cu_seqlens), 0) for r in batch.arguments()]
    out = assemble_sequences(*arguments, loss=strided(batch.loss_tensor()), impl=impl)
    assert_same(out, definition(batch, None))


def test_features_go_over_the_placeholders_with_their_gradient():
    """The recipe of the docstring: no row but the features' changes, and images used as codes get no gradient."""
    batch = Batch([[(Segment.CODES, [4, 4]), (Segment.FEATURES, [1, 2]), (Segment.TEXT, [9])]])
    out = batch.run("auto", 9)
    embeddings, features = torch.randn(9, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    rows = torch.cat([embeddings, embeddings.new_zeros(1, 3)]).index_put((out.feature_rows,), features)[:-1]
    assert torch.equal(rows, torch.cat([embeddings[:5], features[2:], embeddings[7:]]))
    rows.sum().backward()
    assert embeddings.grad[:, 0].tolist() == [1, 1, 1, 1, 1, 0, 0, 1, 1]
    assert features.grad[:, 0].tolist() == [0, 0, 1, 1]


def test_an_order_is_made_from_names_or_members():
    order = segment_order([["features", "text"], [], [Segment.TEXT, "codes", 2]])
    assert order.values.tolist() == [2, 0, 0, 1, 2]
    assert order.cu_seqlens.tolist() == [0, 2, 2, 5]
    assert order.max_seqlen == 3
    assert order.values.dtype == order.cu_seqlens.dtype == torch.int32
    with pytest.raises(ValueError, match="samples: expected one of 'text', .* 'features'; got 'image' in sample 1"):
        segment_order([["text"], ["image"]])
    with pytest.raises(ValueError, match="samples: .* got 3 in sample 0"):
        segment_order([[3]])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("total", [None, 60])
def test_it_is_a_good_citizen_of_torch(impl, total):
    batch = large_batch(3, 4)
    tensors = [t for r in batch.arguments() for t in (r.values, r.cu_seqlens)]
    loss = torch.full_like(tensors[4], 7) if total is None else None
    constants = (8, IMG, END_IMG, FIRST, 0, -100, None, total, impl)
    torch.library.opcheck(torch.ops.lavit.assemble_sequences, (*tensors, loss, *constants))


@pytest.mark.parametrize("bound", [True, False])
def test_compiled_whole_for_any_batch(bound):
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
        def assembled(text, cu_text, images, cu_images, segments, cu_segments, total: int | None):
            ragged = Ragged(text, cu_text, 0), Ragged(images, cu_images, 0), Ragged(segments, cu_segments, 0)
            return assemble_sequences(*ragged, loss={Segment.FEATURES: Loss.CONTENT}, total=total)

        for n in (2, 5, 9):
            batch = large_batch(n, 6, seed=n)
            kinds = [kind for sample in batch.samples for kind, _ in sample]
            batch.loss = [{0: 1, 1: 7, 2: 1}[kind] for kind in kinds]
            total = batch.rows() + 1 if bound else None
            got = assembled(*(t for r in batch.arguments() for t in (r.values, r.cu_seqlens)), total)
            assert_same(got, definition(batch, total))


def garbage() -> list[tuple[Ragged, Ragged, Ragged, Tensor]]:
    """Values that no caller should have on a device."""
    wild = [[-4, 2, 1, 7], [0, 3, 900, 2_000_000_000], [5, 3, 2, 0], [0, -7, 4, 9], [9, 9, 9, -1]]
    kinds = torch.tensor([0, 1, -1, 2, 99, 2])
    loss = torch.tensor([-1, 1 << 40, 9, 7, 0, 8])
    return [
        (
            Ragged(torch.arange(9), torch.tensor(text, dtype=torch.int32), 0),
            Ragged(torch.full((9,), 2**63 - 5), torch.tensor(image, dtype=torch.int32), 0),
            Ragged(kinds, torch.tensor(segment, dtype=torch.int32), 0),
            loss,
        )
        for text in wild
        for image in wild
        for segment in [*wild, [0, 6, 6, 6]]
    ]


def assert_within(out: Sequences, total: int) -> None:
    limits = {"feature_rows": (-1, total - 1), "position_ids": (0, total - 1), "cu_seqlens": (0, total)}
    for name, (least, most) in limits.items():
        values = getattr(out, name)
        assert bool(((values >= least) & (values <= most)).all()), f"{name}: {values.tolist()} with {total} rows"


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_values_that_do_not_fit_touch_nothing_outside(impl, poisoned):
    """Asked without the checks: it must stay in bounds, and what it says must be in bounds too."""
    with unchecked():
        for text, images, segments, loss in garbage():
            assemble_sequences(text, images, segments, loss=loss, impl=impl)
            for total in (0, 5, 60):
                assert_within(assemble_sequences(text, images, segments, loss=loss, total=total, impl=impl), total)


def test_errors_name_the_argument():
    batch = Batch([[(Segment.CODES, [1]), (Segment.TEXT, [2])]])
    text, images, segments = batch.arguments()
    with pytest.raises(TypeError, match="text.values: expected int64 or int32, got torch.float32"):
        assemble_sequences(text.with_values(torch.ones(1)), images, segments)
    with pytest.raises(ValueError, match=r"images.values: expected one dimension, got shape \(1, 1\)"):
        assemble_sequences(text, images.with_values(images.values[None]), segments)
    with pytest.raises(ValueError, match="segments.values: expected device cpu to match text.values, got meta"):
        assemble_sequences(text, images, segments.with_values(segments.values.to("meta")))
    with pytest.raises(TypeError, match="segments.cu_seqlens: expected int32 offsets, got torch.int64"):
        assemble_sequences(text, images, Ragged(segments.values, segments.cu_seqlens.long(), 2))
    with pytest.raises(ValueError, match="segments: expected at most one for each of 1 texts and 1 images, got 3"):
        assemble_sequences(text, images, segment_order([["text", "text", "codes"]]))
    with pytest.raises(ValueError, match=r"loss: expected shape \(2,\), one for each segment, got \(1,\)"):
        assemble_sequences(text, images, segments, loss=torch.ones(1, dtype=torch.int64))
    with pytest.raises(TypeError, match="loss: expected int64 or int32, got torch.bool"):
        assemble_sequences(text, images, segments, loss=torch.ones(2, dtype=torch.bool))
    with pytest.raises(TypeError, match="loss: expected a tensor, a mapping or None, got str"):
        assemble_sequences(text, images, segments, loss="all")
    with pytest.raises(ValueError, match="loss: expected flags of Loss by Segment, got 8 for <Segment.TEXT: 0>"):
        assemble_sequences(text, images, segments, loss={Segment.TEXT: 8})
    with pytest.raises(ValueError, match="first_code_id: expected an id >= 0, got -1"):
        assemble_sequences(text, images, segments, first_code_id=-1)
    with pytest.raises(ValueError, match="total: expected an upper bound >= 0 or None, got -1"):
        assemble_sequences(text, images, segments, total=-1)
    with pytest.raises(ValueError, match="total: expected at most 2147483647 rows in all, got up to 2147483648"):
        assemble_sequences(text, images, segments, total=2**31)
    on_meta = [Ragged(r.values.to("meta"), r.cu_seqlens.to("meta"), 0) for r in (text, images, segments)]
    endless = on_meta[0].with_values(torch.empty(2**31, dtype=torch.int32, device="meta"))
    with pytest.raises(ValueError, match="text, images: expected at most 2147483647 rows in all, got up to 2147483653"):
        assemble_sequences(endless, *on_meta[1:])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_what_tensors_hold_is_checked(impl):
    batch = Batch([[(Segment.CODES, [1, 8]), (Segment.TEXT, [2])]])
    text, images, segments = batch.arguments()
    assert_same(assemble_sequences(text, images, segments, total=5, num_codes=9, impl=impl), definition(batch, 5))

    def refused(message: str, text=text, images=images, segments=segments, **others) -> None:
        with pytest.raises(ValueError, match=message):
            assemble_sequences(text, images, segments, impl=impl, **others)

    refused("total: expected an upper bound of 5 rows, got 4", total=4)
    refused("images.values: expected 0 to 7, got 8 at index 1", num_codes=8)
    refused("images.values: expected >= 0, got -1 at index 0", images=images.with_values(images.values - 2))
    refused("text.values: expected >= 0, got -3 at index 0", text=text.with_values(text.values - 5))
    refused("segments.values: expected 0 to 2, got 3 at index 0", segments=segments.with_values(segments.values + 2))
    refused("text: expected 2, one for each segment of its kind, got 1", segments=segment_order([["text"] * 2]))
    refused("images: expected 2, one for each segment of its kind, got 1", segments=segment_order([["codes"] * 2]))
    refused("loss: expected 0 to 7, got 9 at index 1", loss=torch.tensor([0, 9]))
    refused("text.cu_seqlens: expected offsets within 1 rows, got 2", text=Ragged(text.values, images.cu_seqlens, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("which", ["exact", "more", "fewer"])
@pytest.mark.parametrize("samples, tokens, dtype", [(0, 1, 64), (1, 5, 32), (7, 400, 64), (512, 90, 64), (9001, 7, 32)])
def test_gpu_equals_the_definition_without_synchronising(samples, tokens, dtype, which, poisoned):
    """9001 samples are several tiles of segments; a poisoned allocation shows what a block forgot."""
    batch = large_batch(samples, tokens)
    batch.spare, batch.dtype = 2, torch.int64 if dtype == 64 else torch.int32
    if dtype == 32:
        batch.loss = [i % 8 for i in range(sum(map(len, batch.samples)))]
    arguments, loss, total = batch.arguments("cuda"), batch.loss_tensor("cuda"), batch.total(which)
    torch.cuda.synchronize()
    with gpu_waits("error"):
        got = assemble_sequences(*arguments, loss=loss, total=total, impl="cpp")
    assert_same(got, definition(batch, total))
    assert_same(batch.run("cpp", None, "cuda"), definition(batch, None))


@pytest.mark.gpu
def test_gpu_values_that_do_not_fit_touch_nothing_outside(poisoned):
    for text, images, segments, loss in garbage():
        on_gpu = [Ragged(r.values.cuda(), r.cu_seqlens.cuda(), 0) for r in (text, images, segments)]
        assemble_sequences(*on_gpu, loss=loss.cuda(), impl="cpp")
        for total in (0, 5, 60):
            assert_within(assemble_sequences(*on_gpu, loss=loss.cuda(), total=total, impl="cpp"), total)


@pytest.mark.gpu
def test_gpu_graph_replays_with_new_data():
    first, second = large_batch(20, 30), large_batch(20, 30, seed=1)
    total = max(first.rows(), second.rows())
    both = list(zip(first.arguments(), second.arguments(), strict=True))
    sizes = [max(a.values.shape[0], b.values.shape[0]) for a, b in both]
    pieces = [max(a.batch_size, b.batch_size) for a, b in both]
    pieces[0] += sizes[2]  # as many texts as there may be segments

    def fixed(batch: Batch) -> list[Tensor]:
        tensors = []
        for ragged, size, count in zip(batch.arguments(), sizes, pieces, strict=True):
            values, cu = ragged.values.long(), ragged.cu_seqlens
            tensors.append(torch.cat([values, values.new_zeros(size - values.shape[0])]))
            tensors.append(torch.cat([cu, cu[-1:].expand(count + 1 - cu.shape[0])]))
        return tensors

    inputs = [t.cuda() for t in fixed(first)]
    ragged = [Ragged(inputs[i], inputs[i + 1], 0) for i in (0, 2, 4)]
    assemble_sequences(*ragged, total=total, impl="cpp")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = assemble_sequences(*ragged, total=total, impl="cpp")
    for batch in (first, second):
        for old, new in zip(inputs, fixed(batch), strict=True):
            old.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        want = definition(batch, total)
        assert_same(Sequences(*out[:4], out.feature_rows[: want.feature_rows.shape[0]]), want)
