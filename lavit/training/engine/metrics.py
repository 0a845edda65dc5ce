"""Numbers of a run: gathered on the device, read by the host once a log interval, written as JSON lines."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavit.data.atomic_write import atomic_write
from lavit.training.engine import distributed

logger = logging.getLogger(__name__)

COUNTS = "code_counts"
"""A step function may return this (K,) vector: how often each code was used. It becomes codes_used and perplexity."""


class Meter:
    """Means of what the step function returns, over the good steps since the last reading.

    Values are added where they are, without waiting for the device. `add` takes one micro-batch; `commit` makes the
    micro-batches of a good step count, `discard` forgets those of a bad one.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self._open: dict[str, Tensor] = {}
        self._open_count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            # float64 on the host side costs nothing at this size and keeps long windows exact
            value = value.detach().to(torch.float64)
            self._open[name] = self._open[name] + value if name in self._open else value
        self._open_count += 1

    def commit(self) -> None:
        for name, value in self._open.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += self._open_count
        self.discard()

    def discard(self) -> None:
        self._open, self._open_count = {}, 0

    def read(self) -> dict[str, float]:
        """The means over all processes, then starts anew. The one place where the host waits for the numbers."""
        sums, count, self.sums, self.count = self.sums, self.count, {}, 0
        names = [name for name in sorted(sums) if name != COUNTS]
        if not names or not count:
            return {}
        means = torch.stack([sums[name].reshape(()) for name in names]) / count
        means = distributed.reduce_sum(means) / distributed.world_size()
        extra: list[Tensor] = []
        if COUNTS in sums:
            extra = list(code_use(distributed.reduce_sum(sums[COUNTS])))
        values = torch.stack([*means, *extra]).tolist()
        found = dict(zip(names, values, strict=False))
        if extra:
            found["codes_used"], found["perplexity"] = int(values[-2]), values[-1]
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"sums": {name: value.cpu() for name, value in self.sums.items()}, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.count = state["count"]


def code_use(counts: Tensor) -> tuple[Tensor, Tensor]:
    """(codes used, perplexity exp(−Σ p log p)) of a vector of counts, as 0-d tensors; (0, 0) where all are zero."""
    counts = counts.to(torch.float64)
    total = counts.sum()
    p = counts / total.clamp(min=1)
    perplexity = torch.exp(-torch.special.xlogy(p, p).sum())
    return (counts > 0).sum().to(torch.float64), torch.where(total > 0, perplexity, torch.zeros_like(perplexity))


class MetricsWriter:
    """Appends rows to ``metrics.jsonl`` in `folder`, and to TensorBoard when it is installed.

    resume_at: a resumed run drops the rows after this step, which will be written again; None starts a new file.
    opening: what is known before the first step, the row of step 0, also of a run that goes on.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        resume_at: int | None = None,
        opening: dict[str, Any] | None = None,
        tensorboard: bool = True,
    ) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        self.rows = [] if resume_at is None else [row for row in read_rows(self.path) if 0 < row["step"] <= resume_at]
        if opening is not None:
            self.rows.insert(0, {"step": 0, **opening})
        with atomic_write(self.path) as file:
            file.write("".join(json.dumps(row) + "\n" for row in self.rows).encode())
        self._file = open(self.path, "a", encoding="utf-8")
        self._board = _tensorboard(Path(folder), resume_at) if tensorboard else None

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        # One write call for one line: a reader beside the run never sees a part of it.
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics file; none if there is no file. A last line that a crash cut off is left out."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number + 1 != len(lines):
                raise ValueError(f"{path}: line {number + 1} is not JSON") from None
    return rows


def _tensorboard(folder: Path, resume_at: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("tensorboard is not installed; metrics go to metrics.jsonl only")
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=None if resume_at is None else resume_at + 1)


SHOWN = {
    "loss": "loss {:.4f}",
    "text_loss": "text {:.4f}",
    "image_loss": "image {:.4f}",
    "reconstruction_loss": "rec {:.4f}",
    "ratio_loss": "ratio {:.4f}",
    "commitment_loss": "commit {:.4f}",
    "keep_rate": "keep {:.3f}",
    "pixel_r2": "pixels R² {:.3f}",
    "masked_loss": "masked {:.4f}",
    "contrastive_loss": "captions {:.4f}",
    "matched": "matched {:.3f}",
    "codes_used": "codes {:.0f}",
    "perplexity": "perplexity {:.0f}",
    "val_loss": "held out: loss {:.4f}",
    "val_text_loss": "text {:.4f}",
    "val_image_loss": "image {:.4f}",
    "val_cosine": "cosine {:.4f}",
    "val_keep_rate": "keep {:.3f}",
    "val_codes_used": "codes {:.0f}",
    "val_perplexity": "perplexity {:.0f}",
    "val_exact": "exact {:.3f}",
    "lr": "lr {:.1e}",
    "images_per_second": "images/s {:.0f}",
    "tokens_per_second": "tokens/s {:.0f}",
    "skipped": "skipped {:.0f}",
}


def progress_line(row: Mapping[str, Any], steps: int) -> str:
    """One row as a line for a reader."""
    parts = [f"{row['step']:>{len(str(steps))}}/{steps}"]
    if row.get("phase"):
        parts.append(str(row["phase"]))
    parts += [form.format(row[key]) for key, form in SHOWN.items() if key in row and (key != "skipped" or row[key])]
    if "eta_seconds" in row:
        parts.append(f"eta {duration(row['eta_seconds'])}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """"42 s", "3 min 05 s", "2 h 07 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
