"""Samples of different lengths to rows of a fixed token budget.

This is a plain function of the host: data loaders call it on lengths that no device has seen, what it returns has sizes
that follow from the values, and nothing is differentiated. So it is no registered torch operator with a fake form, but
its implementations are chosen like those of the others (``impl=``, ``LAVIT_KERNELS``, ``lavit info``).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lavit.kernels.checks import check_one_of, shape
from lavit.kernels.dispatch import Implementation, register
from lavit.kernels.extension import cpp_unusable

__all__ = ["BinPacker", "Bins", "bin_pack"]

METHODS = ("best_fit_decreasing", "next_fit")
MOST_TOKENS = 2**31
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32)

OPERATION = register(
    "bin_pack",
    Implementation("cpp", "compiled, about linear in the samples", lambda _: cpp_unusable("cpu")),
    Implementation("reference", "plain Python: a sorted list of the rooms left"),
)


@dataclass(frozen=True)
class Bins:
    """Bins (rows) of at most ``budget`` tokens.

    order: (m,) int64 sample indices, bin after bin. cu: (bins + 1,) int64; bin j holds ``order[cu[j]:cu[j + 1]]``.
    skipped: (n - m,) int64, ascending: the samples longer than the budget, with ``too_long="skip"``.
    tokens: how many the bins hold together. fill_rate: tokens / (bins * budget); 1.0 where there is no bin.
    """

    order: Tensor
    cu: Tensor
    skipped: Tensor
    tokens: int
    fill_rate: float

    def __len__(self) -> int:
        return self.cu.shape[0] - 1

    def unbind(self) -> list[Tensor]:
        """The samples of each bin."""
        return list(self.order.tensor_split(self.cu[1:-1])) if len(self) else []


def bin_pack(
    lengths: Tensor | np.ndarray | Sequence[int],
    budget: int,
    *,
    method: str = "best_fit_decreasing",
    window: int | None = None,
    too_long: str = "raise",
    impl: str = "auto",
) -> Bins:
    """Distribute samples over bins of a token budget, so that little of the budget stays empty.

    lengths: (n,) integers >= 0 on the CPU, the tokens of each sample. budget: tokens a bin holds, 1 to 2**31.
    method: "best_fit_decreasing": within a window the longest sample first, each into the bin with the least room that
    holds it (Johnson et al. 1974; Ding et al. 2024, "Fewer truncations improve language modeling", for training rows);
    no two bins of a window could be one. "next_fit": in the order given, a sample that does not fit in the last bin
    opens the next; for when the order must be kept.
    window: how many samples, of those given, best-fit decreasing looks at together; None: all of them. Each window has
    bins of its own.
    too_long: what a sample longer than the budget does: "raise", or "skip": it is left out and told in ``skipped``.

    Returns Bins. The same lengths always give the same bins: ties go to the sample given first and to the bin opened
    first; bins come in the order of their first samples, a bin's samples in the order given.
    Raises TypeError for lengths that are no integers, ValueError for another shape or device, for a negative length and
    for one beyond the budget, naming its index, and for a budget, window, method or too_long that is none.
    """
    budget, window = _check_settings(budget, window, method, too_long)
    numbers = _checked(lengths, budget, too_long, first=0)
    return _bins(numbers, budget, window, method, impl, first=0)


class BinPacker:
    """``bin_pack`` for a stream: takes lengths piece by piece and gives bins as soon as they are finished.

    However the stream is cut into pieces, the bins are those of ``bin_pack`` over all of it with the same arguments,
    which are told there. Held back are the samples of a window that is not full yet, fewer than ``window``; with
    ``window=None`` everything until ``finish``; with "next_fit" the last bin.

        packer = BinPacker(4096, window=65536)
        for lengths in stream:
            use(packer.add(lengths))
        use(packer.finish())

    samples: how many came. bins, tokens, skipped: how many went out. fill_rate: that of the bins that went out.
    """

    def __init__(
        self,
        budget: int,
        window: int | None,
        *,
        method: str = "best_fit_decreasing",
        too_long: str = "raise",
        impl: str = "auto",
    ) -> None:
        self.budget, self.window = _check_settings(budget, window, method, too_long)
        self.method, self.too_long, self.impl = method, too_long, impl
        self.samples = self.bins = self.tokens = self.skipped = 0
        self._held: list[Tensor] = []  # the lengths of samples whose bins may still change
        self._count = 0  # of them

    @property
    def fill_rate(self) -> float:
        return _fill_rate(self.tokens, self.bins, self.budget)

    def add(self, lengths: Tensor | np.ndarray | Sequence[int]) -> Bins:
        """The next samples of the stream. Returns the bins that no later sample can change, with indices that count
        from the stream's beginning. Raises as ``bin_pack`` does, with such an index, and then has added nothing."""
        numbers = _checked(lengths, self.budget, self.too_long, first=self.samples)
        self._held.append(numbers.clone())  # the caller may use its memory again
        self._count += numbers.shape[0]
        self.samples += numbers.shape[0]
        if self.method == "next_fit":
            return self._give(self._before_last_bin())
        return self._give(0 if self.window is None else self._count - self._count % self.window)

    def finish(self) -> Bins:
        """The bins of what was held back. What comes afterwards counts on and has bins of its own."""
        return self._give(self._count)

    def _before_last_bin(self) -> int:
        """Next-fit: how many of the held samples come before the last bin, which the next sample may join."""
        self._held = [torch.cat(self._held)]
        bins = _bins(self._held[0], self.budget, None, self.method, self.impl, first=0)
        return int(bins.order[bins.cu[-2]]) if len(bins) else self._count

    def _give(self, count: int) -> Bins:
        """The bins of the first ``count`` samples held."""
        if count == 0:
            none = torch.empty(0, dtype=torch.int64)
            return Bins(none, torch.zeros(1, dtype=torch.int64), none.clone(), 0, 1.0)
        held = torch.cat(self._held)
        bins = _bins(held[:count], self.budget, self.window, self.method, self.impl, self.samples - self._count)
        self._held = [held[count:].clone()]
        self._count -= count
        self.bins += len(bins)
        self.tokens += bins.tokens
        self.skipped += bins.skipped.shape[0]
        return bins


def _bins(lengths: Tensor, budget: int, window: int | None, method: str, impl: str, first: int) -> Bins:
    window = max(1, lengths.shape[0]) if window is None else window
    order, cu, skipped = OPERATION.module(impl, lengths).bin_pack(lengths, budget, window, method == "next_fit")
    tokens = int(lengths.sum() - lengths[skipped].sum())
    return Bins(order + first, cu, skipped + first, tokens, _fill_rate(tokens, cu.shape[0] - 1, budget))


def _fill_rate(tokens: int, bins: int, budget: int) -> float:
    return tokens / (bins * budget) if bins else 1.0


def _check_settings(budget: int, window: int | None, method: str, too_long: str) -> tuple[int, int | None]:
    check_one_of("method", method, METHODS)
    check_one_of("too_long", too_long, ("raise", "skip"))
    budget = _integer("budget", budget)
    if not 1 <= budget <= MOST_TOKENS:
        raise ValueError(f"budget: expected 1 to {MOST_TOKENS} tokens, got {budget}")
    if window is not None:
        if method == "next_fit":
            raise ValueError(f"window: expected None, since next_fit takes samples one by one; got {window}")
        window = _integer("window", window)
        if window < 1:
            raise ValueError(f"window: expected at least one sample or None, got {window}")
    return budget, window


def _integer(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None


def _checked(lengths: Tensor | np.ndarray | Sequence[int], budget: int, too_long: str, first: int) -> Tensor:
    """The lengths as (n,) int64; in messages the samples count from ``first``."""
    numbers = _as_int64(lengths)
    wrong = numbers < 0
    if bool(wrong.any()):
        i = int(wrong.int().argmax())
        raise ValueError(f"lengths: expected lengths >= 0, got {int(numbers[i])} for sample {first + i}")
    wrong = numbers > budget
    if too_long == "raise" and bool(wrong.any()):
        i = int(wrong.int().argmax())
        raise ValueError(
            f"lengths: expected samples of at most {budget} tokens, the budget; sample {first + i} has "
            f"{int(numbers[i])} (too_long='skip' leaves such samples out)"
        )
    return numbers


def _as_int64(lengths: Tensor | np.ndarray | Sequence[int]) -> Tensor:
    if not isinstance(lengths, Tensor):
        array = np.asarray(lengths)
        if not isinstance(lengths, np.ndarray) and array.size == 0:
            array = array.astype(np.int64)  # of an empty list, which numpy calls float64
        if array.dtype == np.bool_ or not np.can_cast(array.dtype, np.int64):
            raise TypeError(f"lengths: expected integers that int64 holds, got {array.dtype}")
        lengths = torch.from_numpy(array.astype(np.int64))
    if lengths.dtype not in INTEGERS:
        raise TypeError(f"lengths: expected integers that int64 holds, got {lengths.dtype}")
    if lengths.dim() != 1:
        raise ValueError(f"lengths: expected shape (n,), got {shape(lengths)}")
    if lengths.device.type != "cpu":
        raise ValueError(f"lengths: expected a tensor on the CPU, got one on {lengths.device}")
    return lengths.to(torch.int64)
