"""partition, pack and pad beside the ways in which others do it, all in one run and all with the same result.

The tasks: a batch of patches and a mask -> the kept rows, and the padded batch with its mask that a foreign model
wants; and the movement of rows alone, order and total known, beside a plain copy of as many bytes, which is the limit.
``pytest benchmarks/kernels/bench_pack.py``
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.timing import measure
from lavit.kernels import Ragged, pack, pad, partition, unpack
from lavit.kernels.extension import cpp_unusable

try:
    from flash_attn.bert_padding import unpad_input

    no_flash_attn = None
except ImportError as error:
    no_flash_attn = str(error)

KEEP_RATE = 1 / 3
CASES = {
    "B16 N256 C1408 float32": (16, 256, 1408, torch.float32),
    "B256 N256 C1408 bfloat16": (256, 256, 1408, torch.bfloat16),
    "B64 N64 C96 float32": (64, 64, 96, torch.float32),
}


def release_pack(x: Tensor, keep: Tensor) -> Tensor:
    return torch.masked_select(x, keep[..., None]).view(-1, x.shape[-1])


def release_pad(x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The release's way: select, read the lengths on the host, split, copy image by image."""
    lengths = keep.sum(1).tolist()
    rows = release_pack(x, keep).split(lengths)
    padded, mask = x.new_zeros(len(lengths), max(lengths), x.shape[-1]), keep.new_zeros(len(lengths), max(lengths))
    for b, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        padded[b, :n] = row
        mask[b, :n] = True
    return padded, mask


def boolean_pad(x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    padded = torch.nn.utils.rnn.pad_sequence([row[k] for row, k in zip(x, keep, strict=True)], batch_first=True)
    n = keep.sum(1)
    return padded, torch.arange(padded.shape[1], device=x.device) < n[:, None]


def nested_pad(x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    offsets = torch.nn.functional.pad(keep.sum(1).cumsum(0), (1, 0))
    # Without the true maximum it pads to the number of all rows.
    nested = torch.nested.nested_tensor_from_jagged(x[keep], offsets, max_seqlen=int(offsets.diff().max()))
    padded = torch.nested.to_padded_tensor(nested, 0.0)
    return padded, torch.arange(padded.shape[1], device=x.device) < offsets.diff()[:, None]


def lavit_pack(impl: str):
    def run(x: Tensor, keep: Tensor) -> Tensor:
        order, cu, _ = partition(keep, impl=impl)
        return pack(x, order, cu, impl=impl)

    return run


def lavit_pad(impl: str):
    def run(x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        order, cu, _ = partition(keep, impl=impl)
        # The peers pad to the longest image; the one synchronisation of this task tells it, and the total with it.
        bounds = cu.tolist()
        rows = pack(x, order, cu, total=bounds[-1], impl=impl)
        longest = max(z - a for a, z in zip(bounds[:-1], bounds[1:], strict=True))
        padded, mask, _ = pad(Ragged(rows, cu, longest), impl=impl)
        return padded, mask

    return run


def flash_attn_pack(x: Tensor, keep: Tensor) -> Tensor:
    return unpad_input(x, keep)[0]


PACK = {
    "lavit cpp": lavit_pack("cpp"),
    "lavit reference": lavit_pack("reference"),
    "release masked_select": release_pack,
    "boolean indexing": lambda x, keep: x[keep],
    "flash-attn unpad_input": flash_attn_pack,
}
PAD = {
    "lavit cpp": lavit_pad("cpp"),
    "lavit reference": lavit_pad("reference"),
    "release split and copy loop": release_pad,
    "boolean indexing, pad_sequence": boolean_pad,
    "torch.nested": nested_pad,
}

def inputs(case: str, device: torch.device) -> tuple[Tensor, Tensor]:
    batch, patches, width, dtype = CASES[case]
    if device.type == "cpu" and batch * patches * width > 2**25:
        pytest.skip("a case for a GPU: its batch does not fit the time of a CPU run")
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(batch, patches, generator=generator) < KEEP_RATE
    return torch.randn(batch, patches, width, generator=generator).to(device, dtype), keep.to(device)


def usable(name: str, device: torch.device) -> None:
    if name == "lavit cpp" and (reason := cpp_unusable(device.type)) is not None:
        pytest.skip(reason)
    if name.startswith("flash-attn") and no_flash_attn is not None:
        pytest.skip(no_flash_attn)


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("case", CASES)
def bench_pack(benchmark, device, case, name):
    x, keep = inputs(case, device)
    usable(name, device)
    result = PACK[name](x, keep)
    assert torch.equal(result, x[keep])
    moved = 2 * result.numel() * result.element_size()
    run = lambda: PACK[name](x, keep)  # noqa: E731
    of_release = name.startswith("release")
    measure(
        benchmark, device, f"pack {case}", run, implementation=name, baseline=of_release, bytes_moved=moved
    )


@pytest.mark.parametrize("name", PAD)
@pytest.mark.parametrize("case", CASES)
def bench_pack_and_pad(benchmark, device, case, name):
    x, keep = inputs(case, device)
    usable(name, device)
    padded, mask = PAD[name](x, keep)
    want, want_mask = release_pad(x, keep)
    assert torch.equal(padded, want)
    assert torch.equal(mask, want_mask)
    run = lambda: PAD[name](x, keep)  # noqa: E731
    of_release = name.startswith("release")
    measure(benchmark, device, f"pack and pad {case}", run, implementation=name, baseline=of_release)


COPY = "torch copy_ of as many bytes"
ROWS = {
    "pack": ["lavit cpp", "lavit reference", "torch index_select, indices known", COPY],
    "unpack": ["lavit cpp", "lavit reference", "torch index_copy into zeros, indices known", COPY],
}


@pytest.mark.parametrize(("what", "name"), [(what, name) for what, names in ROWS.items() for name in names])
@pytest.mark.parametrize("case", CASES)
def bench_rows(benchmark, device, case, what, name):
    x, keep = inputs(case, device)
    usable(name, device)
    order, cu, _ = partition(keep)
    rows, patches = pack(x, order, cu), keep.shape[1]
    want = rows if what == "pack" else x.masked_fill(~keep[..., None], 0)
    moved = (rows.numel() + want.numel()) * x.element_size()
    if name == COPY:
        source = torch.empty(moved // 2, dtype=torch.uint8, device=device).random_()
        target = torch.empty_like(source)
        run = lambda: target.copy_(source)  # noqa: E731
        passed = torch.equal(run(), source)
    else:
        impl, chosen = name.removeprefix("lavit "), keep.flatten().nonzero().flatten()
        ways = {
            "pack": lambda: pack(x, order, cu, total=rows.shape[0], impl=impl),
            "unpack": lambda: unpack(rows, order, cu, patches, impl=impl),
            "torch index_select, indices known": lambda: x.flatten(0, 1).index_select(0, chosen),
            "torch index_copy into zeros, indices known": lambda: torch.zeros_like(x).flatten(0, 1).index_copy_(
                0, chosen, rows
            ),
        }
        run = ways[what if name.startswith("lavit") else name]
        passed = torch.equal(run().view_as(want), want)
    measure(
        benchmark,
        device,
        f"{what}, rows alone, {case}",
        run,
        implementation=name,
        passed=passed,
        bytes_moved=moved,
    )
