"""Training sequences of text and images: sources mixed by weight, samples packed into rows of a token budget."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavit.data.stream import Dataset, Epochs
from lavit.data.whole_numbers import whole_number
from lavit.kernels import BinPacker, Loss, Ragged, Segment
from lavit.kernels.assemble_sequences.types import DEFAULT_LOSS

MARKERS = 2
"""Rows of an image beside its tokens: [IMG] and [/IMG]."""


@dataclass(frozen=True)
class Sample:
    """One sequence: its segments in reading order.

    segments: their kinds. texts: token ids of each TEXT segment. images: the number of the image of each CODES or
    FEATURES segment, in whatever store the training stage has. loss: what is predicted of each segment; None: the
    default of `assemble_sequences` (texts and codes, nothing of an image that is only shown).
    Raises ValueError where the segments do not fit the texts and images.
    """

    segments: tuple[Segment, ...]
    texts: tuple[Sequence[int], ...] = ()
    images: tuple[int, ...] = ()
    loss: tuple[Loss, ...] | None = None

    def __post_init__(self) -> None:
        texts = sum(segment == Segment.TEXT for segment in self.segments)
        if texts != len(self.texts) or len(self.segments) - texts != len(self.images):
            raise ValueError(
                f"segments: expected {len(self.texts)} texts and {len(self.images)} images, "
                f"got {texts} and {len(self.segments) - texts}"
            )
        if self.loss is not None and len(self.loss) != len(self.segments):
            raise ValueError(f"loss: expected {len(self.segments)} entries, one a segment, got {len(self.loss)}")

    def tokens(self, of_image: Callable[[int], int]) -> int:
        """Rows of the sequence: ids of the texts, tokens of the images, two markers for each image."""
        return sum(map(len, self.texts)) + sum(of_image(image) + MARKERS for image in self.images)


Source = Dataset[Sample]
"""Samples by number."""


@dataclass(frozen=True)
class PackedRow:
    """Samples whose sequences together have at most the budget's tokens, as `assemble_sequences` wants them.

    text: token ids (Tt,), ragged over pieces of text. segments: kinds (S,), ragged over samples. loss: (S,) flags.
    images: (n,) int64 numbers of the images, in the order in which the segments use them. tokens: rows in all.
    sources: (samples,) int64, which source each sample is from, by its place in the mixture's ``names``.
    """

    text: Ragged
    segments: Ragged
    loss: Tensor
    images: Tensor
    tokens: int
    sources: Tensor

    @classmethod
    def of(cls, samples: Sequence[Sample], tokens: int, sources: Sequence[int]) -> PackedRow:
        texts = [torch.as_tensor(text, dtype=torch.int64) for sample in samples for text in sample.texts]
        flags = [
            int(flag)
            for sample in samples
            for flag in (sample.loss or [DEFAULT_LOSS[segment] for segment in sample.segments])
        ]
        kinds = [torch.tensor(list(map(int, sample.segments)), dtype=torch.int64) for sample in samples]
        return cls(
            Ragged.from_list(texts) if texts else _nothing(),
            Ragged.from_list(kinds),
            torch.tensor(flags, dtype=torch.int64),
            torch.tensor([image for sample in samples for image in sample.images], dtype=torch.int64),
            tokens,
            torch.tensor(sources, dtype=torch.int64),
        )


def _nothing() -> Ragged:
    return Ragged(torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int32), 0)


class Mixture(Iterator[tuple[int, Sample]]):
    """Samples without end from several sources, in the proportion of their weights.

    The next sample is from the source that is farthest behind its share; of the first n samples every source has its
    share to within a sample or so, on every process. Each source is read in epochs: one permutation of it after the
    other, drawn from (seed, its name, epoch); process ``rank`` of ``world_size`` takes every ``world_size``-th.

    sources: by name; empty ones are refused, as is a weight that is negative, missing or not for a source, and weights
    that are all zero (ValueError); so is a seed that is not whole (TypeError). A source of weight 0 is none: it is not
    read, and a state does not know of it. `state_dict` is the place: a mixture made with the same arguments goes on
    from there.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        weights: Mapping[str, float],
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        whole_number("seed", seed)
        if set(sources) != set(weights):
            raise ValueError(f"weights: expected one for each of {', '.join(sources)}; got {', '.join(weights)}")
        for name, weight in weights.items():
            if not weight >= 0:
                raise ValueError(f"weights: expected {name}'s to be at least 0, got {weight}")
            if weight > 0 and len(sources[name]) == 0:
                raise ValueError(f"sources: expected at least one sample in {name}, got none")
        if not sum(weights.values()) > 0:
            raise ValueError("weights: expected one above 0, got none")
        self.names = tuple(name for name in sources if weights[name] > 0)
        self.sources = tuple(sources[name] for name in self.names)
        self.shares = np.array([weights[name] for name in self.names], dtype=np.float64)
        self.shares /= self.shares.sum()
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.drawn = np.zeros(len(self.names), dtype=np.int64)
        self._orders = [
            Epochs(len(source), f"{seed}/{name}", rank, world_size)
            for name, source in zip(self.names, self.sources, strict=True)
        ]

    def __next__(self) -> tuple[int, Sample]:
        """Which source, and its next sample."""
        behind = self.shares * (self.drawn.sum() + 1) - self.drawn
        which = int(behind.argmax())
        sample = self.sources[which][self._orders[which][int(self.drawn[which])]]
        self.drawn[which] += 1
        return which, sample

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn.tolist(), **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for the state of another mixture, naming what differs."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(f"{name}: the state is of {state.get(name)!r}, this mixture has {value!r}")
        self.drawn = np.array(state["drawn"], dtype=np.int64)

    def _identity(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "sizes": [len(source) for source in self.sources],
            "fingerprints": [getattr(source, "fingerprint", None) for source in self.sources],
            "shares": self.shares.tolist(),
            "seed": self.seed,
            "rank": self.rank,
            "world_size": self.world_size,
        }


class PackedStream(Iterator[PackedRow]):
    """Rows of a token budget from a mixture, without end: samples go through best-fit decreasing, a window at a time.

    budget: tokens of a row. of_image: number of an image -> its tokens. window: samples that are packed together; a
    larger one fills rows better and stirs the order of the samples more. Samples longer than the budget are left out
    and counted in ``skipped``; a window of such samples only is a ValueError, for it would never end.
    ``fill_rate``: how full the rows so far were. `state_dict` is the place after the last row handed out.
    """

    def __init__(self, mixture: Mixture, budget: int, of_image: Callable[[int], int], *, window: int = 512) -> None:
        if window < 1:
            raise ValueError(f"window: expected at least 1 sample, got {window}")
        self.mixture, self.budget, self.of_image, self.window = mixture, budget, of_image, window
        BinPacker(budget, window)  # refuses a budget that is none
        self.skipped = self.rows = self.tokens = 0
        self._ready: deque[PackedRow] = deque()
        self._start = self._place(0)

    @property
    def fill_rate(self) -> float:
        return self.tokens / (self.rows * self.budget) if self.rows else 1.0

    def __next__(self) -> PackedRow:
        while not self._ready:
            self._fill()
        row = self._ready.popleft()
        self._start["served"] += 1
        self.rows += 1
        self.tokens += row.tokens
        return row

    def _fill(self) -> None:
        self._start = self._place(0)
        drawn = [next(self.mixture) for _ in range(self.window)]
        lengths = [sample.tokens(self.of_image) for _, sample in drawn]
        packer = BinPacker(self.budget, self.window, too_long="skip")
        bins = packer.add(lengths)
        if len(bins) == 0:
            raise ValueError(
                f"budget: {self.budget} tokens hold none of {self.window} samples, the shortest has {min(lengths)}"
            )
        self.skipped += packer.skipped
        for members in bins.unbind():
            chosen = [drawn[i] for i in members.tolist()]
            tokens = sum(lengths[i] for i in members.tolist())
            self._ready.append(PackedRow.of([sample for _, sample in chosen], tokens, [which for which, _ in chosen]))

    def _place(self, served: int) -> dict[str, Any]:
        """Before a window is drawn, and how many of its rows were handed out."""
        counts = {"skipped": self.skipped, "rows": self.rows, "tokens": self.tokens}
        return {"mixture": self.mixture.state_dict(), "served": served, **counts}

    def state_dict(self) -> dict[str, Any]:
        return {**self._start, "budget": self.budget, "window": self.window}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Draws the open window again. Raises ValueError for the state of another stream, naming what differs."""
        for name in ("budget", "window"):
            if state[name] != getattr(self, name):
                raise ValueError(f"{name}: the state is of {state[name]}, this stream has {getattr(self, name)}")
        self.mixture.load_state_dict(state["mixture"])
        self.skipped, self.rows, self.tokens = state["skipped"], state["rows"], state["tokens"]
        self._ready.clear()
        self._start = self._place(0)
        for _ in range(state["served"]):
            next(self)
