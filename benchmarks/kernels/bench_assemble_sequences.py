"""Packing texts and images into training sequences, beside the usual ways, in one run and with the same result.

The task: 512 samples, half of them [image, text] with features, half [text, image] with codes -> packed ids, labels and
positions, offsets, and the rows of the features. The usual way goes from sample to sample, and pads. The release has no
code for this task, so no case is called the release's.
``pytest benchmarks/kernels/bench_assemble_sequences.py``
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.timing import measure
from lavit.kernels import Ragged, assemble_sequences, segment_order
from lavit.kernels.extension import cpp_unusable

IGNORE, IMG, END_IMG, FIRST = -100, 32000, 32001, 32002
SAMPLES, TOKENS, CODES = 512, 90, 16384
# What the loops read: for each sample whether the image comes first, the text, the codes; all on the device.
Lists = list[tuple[bool, Tensor, Tensor]]


def inputs(device: torch.device) -> tuple[Lists, tuple[Ragged, Ragged, Ragged], int]:
    """Captions of log-normal length around 20 ids, images of 60 to 120 tokens; and the total number of rows."""
    g = torch.Generator().manual_seed(0)
    lengths = (torch.randn(SAMPLES, generator=g) * 0.6 + 3.0).exp().long().clamp(1, 400).tolist()
    counts = torch.randint(TOKENS - 30, TOKENS + 31, (SAMPLES,), generator=g).tolist()
    texts = [torch.randint(3, IMG, (n,), generator=g).to(device) for n in lengths]
    images = [torch.randint(CODES, (n,), generator=g).to(device) for n in counts]
    order = segment_order([["features", "text"], ["text", "codes"]] * (SAMPLES // 2), device)
    batch = (Ragged.from_list(texts), Ragged.from_list(images), order)
    first = [b % 2 == 0 for b in range(SAMPLES)]
    return list(zip(first, texts, images, strict=True)), batch, sum(lengths) + sum(counts) + 2 * SAMPLES


def sample_by_sample(samples: Lists) -> list[tuple[Tensor, Tensor]]:
    """Ids and labels of each sample, by cat."""
    rows = []
    for image_first, text, codes in samples:
        begin, end = codes.new_tensor([IMG]), codes.new_tensor([END_IMG])
        image = torch.cat([begin, codes + FIRST, end])
        ids = torch.cat([image, text] if image_first else [text, image])
        labels = torch.cat([torch.full_like(image, IGNORE), text] if image_first else [text, image])
        labels[0] = IGNORE
        rows.append((ids, labels))
    return rows


def padded_by_loop(samples: Lists) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lists, cat and a copy for each sample into padded ids, labels, mask and positions."""
    rows = sample_by_sample(samples)
    longest = max(ids.shape[0] for ids, _ in rows)
    ids = rows[0][0].new_zeros(len(rows), longest)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for b, (row, label) in enumerate(rows):
        ids[b, : row.shape[0]] = row
        labels[b, : row.shape[0]] = label
        mask[b, : row.shape[0]] = 1
    return ids, labels, mask, (mask.cumsum(1) - 1).clamp(min=0)


def packed_by_loop(samples: Lists) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same rows packed: what assemble_sequences returns."""
    rows = sample_by_sample(samples)
    device = samples[0][1].device
    feature_rows, ends = [], [0]
    for (image_first, _, codes), (ids, _) in zip(samples, rows, strict=True):
        start = torch.arange(codes.shape[0], device=device) + (ends[-1] + 1)
        feature_rows.append(start if image_first else torch.full_like(start, -1))
        ends.append(ends[-1] + ids.shape[0])
    return (
        torch.cat([ids for ids, _ in rows]),
        torch.cat([labels for _, labels in rows]),
        torch.cat([torch.arange(ids.shape[0], device=device) for ids, _ in rows]),
        torch.tensor(ends, dtype=torch.int32, device=device),
        torch.cat(feature_rows),
    )


def lavit(impl: str, bounded: bool):
    def run(batch: tuple[Ragged, Ragged, Ragged], total: int):
        return assemble_sequences(*batch, total=total if bounded else None, impl=impl)

    return run


OURS = {
    "lavit cpp": lavit("cpp", True),
    "lavit cpp, total unknown": lavit("cpp", False),
    "lavit reference": lavit("reference", True),
}
LOOPS = {"cat and copies, padded": padded_by_loop, "cat, packed": packed_by_loop}


@pytest.mark.parametrize("name", [*OURS, *LOOPS])
def bench_assemble_sequences(benchmark, device, name):
    if "cpp" in name and (reason := cpp_unusable(device.type)) is not None:
        pytest.skip(reason)
    samples, batch, total = inputs(device)
    want = packed_by_loop(samples)
    run = (lambda: OURS[name](batch, total)) if name in OURS else (lambda: LOOPS[name](samples))
    result = run()
    if name == "cat and copies, padded":
        real = result[2].bool()
        passed = all(torch.equal(result[i][real], want[j]) for i, j in ((0, 0), (1, 1), (3, 2)))
    else:
        passed = all(torch.equal(a, b) for a, b in zip(result, want, strict=True))
    text, images, segments = batch
    read = sum(t.nbytes for r in (text, images, segments) for t in (r.values, r.cu_seqlens))
    measure(
        benchmark,
        device,
        f"assemble {SAMPLES} samples, {total} rows",
        run,
        implementation=name,
        passed=passed,
        bytes_moved=read + sum(t.nbytes for t in want),
    )
