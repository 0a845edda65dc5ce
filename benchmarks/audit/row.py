"""One compiled kernel as the audit sees it, the table of them, and what must not be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lavit.kernels.triton_support import SHARED_OF_A100, SHARED_OF_H100

ARCHITECTURES = (80, 90, 100)
SMALLER = (86, 89, 120)  # with less shared memory; audited where asked for

# ptxas spills a few registers where one block more then fits on a multiprocessor, which it takes for the better bargain
# and which differs from version to version. Bytes of a thread's local memory that it may use so, as long as the thread
# could have had more registers.
BARGAIN = 32

# Shared memory that one block may have, in bytes (CUDA programming guide, technical specifications).
SHARED_LIMIT = {80: SHARED_OF_A100, 90: SHARED_OF_H100, 100: SHARED_OF_H100, **dict.fromkeys(SMALLER, 99 * 1024)}


@dataclass(frozen=True)
class Row:
    """One kernel compiled for one architecture; sizes in bytes, None where the tool that tells it is absent.

    operation: the folder under kernels/, or the file under csrc/.
    stack: local memory that a thread is given, whether or not it is used.
    spilled: what all loads and stores of local memory in the code move, each counted once, as ptxas counts.
    registers_at_most: what a thread could have had; None: whatever spills is too much.
    tensor_core_instructions: by mnemonic, for instance {"HGMMA": 16}.
    """

    operation: str
    kernel: str
    label: str
    architecture: int
    registers: int | None
    stack: int | None
    spilled: int | None
    shared: int
    registers_at_most: int | None = None
    tensor_core_instructions: dict[str, int] = field(default_factory=dict)
    tensor_cores_meant: bool = False

    @property
    def where(self) -> str:
        label = f" [{self.label}]" if self.label else ""
        return f"{self.operation}: {self.kernel}{label} on sm_{self.architecture}"

    @property
    def bargain(self) -> bool:
        """Whether it spills a little and had registers left."""
        if not self.spilled or self.stack is None or self.registers is None or self.registers_at_most is None:
            return False
        return self.stack <= BARGAIN and self.registers < self.registers_at_most

    def problems(self) -> Iterator[str]:
        where = self.where
        if self.spilled and not self.bargain:
            yield f"{where} spills {self.spilled} bytes, at {self.registers} registers"
        if self.tensor_cores_meant and not self.tensor_core_instructions:
            yield f"{where} has no tensor-core instructions, and is meant to"
        limit = SHARED_LIMIT.get(self.architecture)
        if limit is not None and self.shared > limit:
            yield f"{where} wants {self.shared} bytes of shared memory, of {limit}"


def table(rows: list[Row]) -> str:
    """The rows as aligned text, under a heading."""
    heading = ("operation", "kernel", "label", "arch", "registers", "stack", "spilled", "shared", "tensor cores")
    cells = [heading, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heading))]
    numbers = {heading.index(name) for name in ("arch", "registers", "stack", "spilled", "shared")}
    aligned = (
        "  ".join(c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    )
    return "\n".join(line.rstrip() for line in aligned)


def _cells(row: Row) -> tuple[str, ...]:
    numbers = ["-" if n is None else str(n) for n in (row.registers, row.stack, row.spilled, row.shared)]
    products = " ".join(f"{n} {name}" for name, n in sorted(row.tensor_core_instructions.items()))
    return row.operation, row.kernel, row.label, f"sm_{row.architecture}", *numbers, products
