"""The stand-in itself: it finds what it is there to find, in whatever order the threads run, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import emulator
import pytest
import torch
from emulator import Call, Fault, Host, Refused, skip_without_compiler

FAULTY = Path(__file__).parent / "faulty" / "faulty.cu"
NUMBERS = torch.arange(64, dtype=torch.int32)
RACE = "nothing orders the two"
APART = "wait for each other at different places"


def run(kind: str, which: int, order: str):
    program = emulator.build(kind, extra=(FAULTY,))
    [got] = emulator.run(program, [Call("faulty", [NUMBERS, Host(NUMBERS), which])], order, seed=3)
    return got


@pytest.fixture
def races() -> str:
    skip_without_compiler("races")
    return "races"


@pytest.mark.parametrize("order", emulator.ORDERS)
@pytest.mark.parametrize(
    "fault, message",
    [
        (1, f"shared memory, which (nobody has written|thread .* {RACE})"),
        (2, f"shared memory, which thread .* {RACE}"),
        (4, f"shared memory, which (nobody has written|thread .* {RACE})"),
        (6, f"another block wrote, and {RACE}"),
        (7, f"another block wrote, and {RACE}"),
        (8, f"another block wrote, and {RACE}"),
        (9, APART),
        (10, APART),
        (11, APART),
        (12, "reads lane 20, which is not in the mask 0000ffff"),
        (13, "reads byte .* of shared memory, which nobody has written"),
        (14, "index 64 out of bounds"),
        (15, "reads 4 bytes outside all tensors: 0 after the end of an input"),
        (16, "writes 4 bytes outside all tensors: .* 4 before a result"),
        (17, "reads 4 bytes outside all tensors"),
        (18, "reads byte 4 of a result, which nobody has written"),
        (19, "misaligned address"),
        (20, "another stream than torch's"),
    ],
)
def test_a_fault_is_found(races, fault, message, order):
    with pytest.raises(Fault, match=message):
        run(races, fault, order)


@pytest.mark.parametrize("fault", [15, 16])
def test_address_sanitizer_finds_what_is_outside_too(fault):
    skip_without_compiler("sanitized")
    with pytest.raises(Fault, match="heap-buffer-overflow"):
        run("sanitized", fault, "forward")


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_right_kernels_are_let_through(kind, order):
    assert run(kind, 0, order)[0].tolist() == [*range(1, 64), 0]
    assert run(kind, 3, order)[0].tolist() == [n ^ 1 for n in range(64)]
    assert run(kind, 5, order)[0].tolist()[:3] == [5, 5, 10]
    assert run(kind, 22, order)[0].tolist() == [3 + 4 * (n + 3 if n % 32 < 29 else n) for n in range(64)]


def test_a_grid_that_no_gpu_takes_is_an_error_of_the_launch(kind):
    got = run(kind, 21, "forward")
    assert isinstance(got, Refused) and "the kernel: invalid argument" in str(got)


def test_a_message_names_the_line_of_the_source(races):
    lines = FAULTY.read_text().split("\n")
    line = next(n for n, text in enumerate(lines, 1) if "held[threadIdx.x] = in[threadIdx.x];" in text)
    with pytest.raises(Fault, match=rf"faulty.cu:{line}\]"):
        run(races, 2, "forward")


def test_only_launches_are_rewritten():
    """Undone, the rewriting gives the source again; lines keep their numbers."""
    sources = [path.read_text() for path in emulator.CSRC.glob("cuda/*")]
    assert sum(text.count("<<<") for text in sources) >= 4
    for before in sources:
        after = emulator.as_cpp(before)
        assert after.count("\n") == before.count("\n") and "<<<" not in after
        undone = re.sub(r'::cuda_on_cpu::launch\{(.*?)\}\.run\("([^"]*)", \2, (\s*)', r"\2\3<<<\1>>>(", after)
        assert undone == before
