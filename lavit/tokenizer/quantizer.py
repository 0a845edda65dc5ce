"""The quantizer: vectors to codes and back, and the learning of the codebook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.kernels import code_statistics, nearest_code
from lavit.kernels.types import compute_dtype
from lavit.tokenizer.configuration import LaVITTokenizerConfig

NOTHING = 2**62
"""Above all keys of `scramble`."""
ROWS_AT_A_TIME = 1024
"""Of a matrix of distances."""


class Quantized(NamedTuple):
    """codes: (n, D) chosen codes with the straight-through gradient to the vectors; ids: (n,) int64, -1 for a row with
    NaN or Inf; commitment: scalar, mean squared distance of the unit vectors from their codes."""

    codes: Tensor
    ids: Tensor
    commitment: Tensor


def nearest_in_bfloat16(unit: Tensor, codebook: Tensor) -> Tensor:
    """unit (n, D), codebook (K, D) -> (n,) int64 ids, argmin of |z|^2 + |c|^2 - 2 z.c with z.c in bfloat16, the lowest
    of those that this makes equal; -1 for NaN or Inf."""
    rounded, squares = codebook.bfloat16().T, codebook.square().sum(1)
    found = [
        (z.square().sum(1, keepdim=True) + squares - 2 * (z.bfloat16() @ rounded)).argmin(1)
        for z in unit.split(ROWS_AT_A_TIME)
    ]
    return torch.where(unit.isfinite().all(1), torch.cat(found), -1)


class Quantizer(nn.Module):
    """Nearest code of each unit vector, with the codebook learned by exponential moving averages (VQ-VAE's appendix).

    In training mode every :meth:`forward` moves the codebook, as batch norm moves its statistics: each code becomes the
    average of the unit vectors that chose it, weighted by how often it was chosen; codes used less than
    ``dead_code_fraction`` times the mean use are replaced by vectors of the current batch. Inside :meth:`moving_with`
    an optimizer's step moves it instead, by all the forward passes that the step is made of. Counts, sums and
    replacements are all-reduced when torch.distributed is initialised, so all ranks keep identical codebooks; how a
    batch is divided among ranks and forward passes makes no difference then, but for the order of sums.
    Everything here is computed in float32 (float64 stays), under autocast too, but for the products in
    :meth:`nearest` where the configuration's ``distances`` is "bfloat16".
    """

    cluster_size: Tensor
    updates: Tensor

    def __init__(self, config: LaVITTokenizerConfig) -> None:
        super().__init__()
        self.decay = config.ema_decay
        self.dead_code_fraction = config.dead_code_fraction
        self.unit_codes = config.unit_codes
        self.distances = config.distances
        # The codes (K, D). Learned by averages, not by gradient.
        self.embedding = nn.Embedding.from_pretrained(torch.zeros(config.num_codes, config.code_dim), freeze=True)
        # Moving average of each code's uses per batch, and the number of updates so far, which drives the choice of
        # replacements. A file without them (the release's) leaves them at these values.
        self.register_buffer("cluster_size", torch.ones(config.num_codes))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._counts: Tensor | None = None
        # Inside moving_with: the unit vectors and ids of the forward passes since the last step.
        self._waiting: list[tuple[Tensor, Tensor]] | None = None

    @property
    def num_codes(self) -> int:
        return self.embedding.weight.shape[0]

    def codebook(self) -> Tensor:
        """(K, D) the codes in float32 (float64 stays)."""
        return in_full_precision(self.embedding.weight)

    def normalize(self, vectors: Tensor) -> Tensor:
        """(..., D) -> unit vectors in float32 (float64 stays)."""
        return F.normalize(in_full_precision(vectors), dim=-1)

    def nearest(self, vectors: Tensor) -> Tensor:
        """vectors (n, D) -> (n,) int64 ids, argmin of |v/|v| - c|^2 over the stored codes; -1 for NaN or Inf."""
        with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
            if self.distances == "bfloat16":
                return nearest_in_bfloat16(self.normalize(vectors), self.codebook())
            return nearest_code(in_full_precision(vectors), self.codebook(), metric="euclidean", normalize_x=True)

    def lookup(self, ids: Tensor) -> Tensor:
        """ids (n,) -> (n, D) codes; an id of -1 gives the first code."""
        return self.codebook()[ids.clamp(min=0)]

    def forward(self, vectors: Tensor, counted: Tensor | None = None) -> Quantized:
        """vectors (n, D) -> codes, ids and commitment loss; in training mode the codebook moves afterwards.

        counted: (n,) bool, which rows the codebook and the commitment loss take account of; None for all.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            unit = self.normalize(vectors)
            ids = self.nearest(vectors)
            codes = self.lookup(ids)
            distance = (unit - codes).square().mean(dim=-1)
            if counted is None:
                commitment = distance.sum() / max(distance.numel(), 1)
                learned_ids = ids
            else:
                commitment = torch.where(counted, distance, 0).sum() / counted.sum().clamp(min=1)
                learned_ids = torch.where(counted, ids, -1)
            if self.training and self._waiting is not None:
                self._waiting.append((unit.detach(), learned_ids))
            elif self.training:
                self.update(unit.detach(), learned_ids)
        return Quantized(unit + (codes - unit).detach(), ids, commitment)

    @contextmanager
    def moving_with(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Inside, every step of the optimizer moves the codebook, once, by all the forward passes since the last one;
        these only choose codes. For steps of several micro-batches, and for steps that may be skipped: see
        :meth:`forget`. With torch.distributed all ranks must step alike."""
        self._waiting = []
        hook = optimizer.register_step_post_hook(lambda *_: self._move())
        try:
            yield
        finally:
            hook.remove()
            self._waiting = None

    def forget(self) -> None:
        """Inside :meth:`moving_with`: the forward passes since the last step move nothing. For a skipped step."""
        if self._waiting is not None:
            self._waiting.clear()

    def _move(self) -> None:
        if self._waiting:
            unit, ids = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
            self._waiting.clear()
            self.update(unit, ids)

    @torch.no_grad()
    def update(self, unit: Tensor, ids: Tensor) -> None:
        """Move the codebook towards the unit vectors (n, D) that chose each code; ids (n,), -1 is ignored."""
        counts, sums = code_statistics(torch.where((ids >= 0).unsqueeze(1), unit, 0), ids, self.num_codes)
        counts, sums = all_reduce(counts.to(unit.dtype), sums)
        old, codes = in_full_precision(self.cluster_size), self.codebook()
        size = self.decay * old + (1 - self.decay) * counts
        moved = (self.decay * old.unsqueeze(1) * codes + (1 - self.decay) * sums) / size.clamp(min=1e-12).unsqueeze(1)
        moved = F.normalize(moved, dim=-1) if self.unit_codes else moved
        codes = torch.where((counts > 0).unsqueeze(1), moved, codes)
        dead = size < self.dead_code_fraction * size.mean()
        substitutes, found = self._substitutes(unit, ids, dead)
        replaced = dead & found
        codes = torch.where(replaced.unsqueeze(1), substitutes, codes)
        size = torch.where(replaced, size.mean(), size)
        self.embedding.weight.copy_(codes)
        self.cluster_size.copy_(size)
        self.updates += 1
        self._counts = counts.double() if self._counts is None else self._counts.to(counts.device) + counts

    def _substitutes(self, unit: Tensor, ids: Tensor, dead: Tensor) -> tuple[Tensor, Tensor]:
        """For every dead code a vector of this step's batch, no two alike while there are enough: (K, D), found (K,).

        Those with the smallest of pseudo-random keys. A key depends on the number of updates, so that a resumed run
        makes the same choices, and on the row's number in the batch of all ranks, so that a batch gives the same
        choices however many ranks hold it.
        """
        before, world = rows_before(ids), dist.get_world_size() if distributed() else 1
        number = torch.arange(len(ids) + 1, device=ids.device) + before
        # Rows that count for nothing (-1) come last, and one more, so that there is one.
        counts = F.pad(ids >= 0, (0, 1))
        keys, order = torch.where(counts, scramble(number, self.updates), NOTHING).sort()
        wanted = keys[: self.num_codes]
        if world > 1:
            wanted = F.pad(wanted, (0, self.num_codes - len(wanted)), value=NOTHING)
            found = [torch.empty_like(wanted) for _ in range(world)]
            dist.all_gather(found, wanted)
            wanted = torch.cat(found).sort().values
        turn = (dead.cumsum(0) - 1).clamp(min=0) % (wanted < NOTHING).sum().clamp(min=1)
        wanted = wanted[turn]  # (K,): the key of each dead code's substitute
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        own = dead & (keys[place] == wanted) & (wanted < NOTHING)
        vectors = torch.where(own.unsqueeze(1), F.pad(unit, (0, 0, 0, 1))[order[place]], 0)
        found_sum, vectors = all_reduce(own.to(vectors.dtype), vectors)
        return vectors, found_sum > 0

    @torch.no_grad()
    def initialize(self, vectors: Tensor, iterations: int = 10, seed: int = 0) -> None:
        """Spherical k-means start of the codebook on encoder outputs (derived from BEiT v2).

        vectors: (n, D) what the quantizer will see (any norm), n of at least 1; with fewer vectors than codes the
        surplus codes start on repeated vectors and are replaced as dead codes later. With torch.distributed every rank
        gives its own vectors: the start is rank 0's, the means are everybody's. Deterministic by ``seed``.
        """
        width = self.embedding.weight.shape[1]
        if vectors.dim() != 2 or vectors.shape[1] != width or vectors.shape[0] == 0:
            raise ValueError(f"vectors: expected shape (n, {width}) with n >= 1, got {tuple(vectors.shape)}")
        unit = self.normalize(vectors.to(self.embedding.weight.device))
        unit = unit[unit.isfinite().all(dim=1)]
        if unit.shape[0] == 0:
            raise ValueError(f"vectors: expected at least one finite row, got {vectors.shape[0]} with NaN or Inf")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(unit.shape[0], generator=generator).repeat(-(-self.num_codes // unit.shape[0]))
        codes = unit[order[: self.num_codes].to(unit.device)].clone()
        if distributed():
            dist.broadcast(codes, src=0)
        counts = torch.ones(self.num_codes, device=unit.device, dtype=unit.dtype)
        for _ in range(iterations):
            ids = nearest_code(unit, codes, metric="cosine")
            counts, sums = all_reduce(*(t.to(unit.dtype) for t in code_statistics(unit, ids, self.num_codes)))
            codes = torch.where((counts > 0).unsqueeze(1), F.normalize(sums, dim=-1), codes)
        self.embedding.weight.copy_(codes)
        self.cluster_size.copy_(counts / counts.mean())
        self.reset_usage()

    def usage(self) -> Tensor:
        """(K,) float64: how often each code was chosen in training, over all ranks, since :meth:`reset_usage`."""
        if self._counts is None:
            return torch.zeros(self.num_codes, dtype=torch.float64, device=self.embedding.weight.device)
        return self._counts.clone()

    def reset_usage(self) -> None:
        self._counts = None

    def reset_statistics(self) -> None:
        """Forget what training has counted; the codes stay. For a codebook that comes without its statistics."""
        device = self.embedding.weight.device
        self.cluster_size = torch.ones(self.num_codes, device=device)
        self.updates = torch.zeros((), dtype=torch.int64, device=device)
        self.reset_usage()

    @staticmethod
    def perplexity(counts: Tensor) -> Tensor:
        """exp of the entropy of the codes' use: K when all are used alike, 1 when one is; 0 without any use."""
        total = counts.sum()
        share = counts / total.clamp(min=1)
        entropy = -torch.xlogy(share, share).sum()
        return torch.where(total > 0, entropy.exp(), 0.0)


def in_full_precision(x: Tensor) -> Tensor:
    return x.to(compute_dtype(x))


def scramble(index: Tensor, seed: Tensor) -> Tensor:
    """Pseudo-random int64 in [0, 2^62) for every index, the same on every device (splitmix64's mixing steps)."""
    x = index + (seed + 1) * -7046029254386353131
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -4658895280553007687
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -7723592293110705685
    return (x ^ ((x >> 31) & (2**33 - 1))) & (2**62 - 1)


def rows_before(rows: Tensor) -> Tensor | int:
    """How many rows the ranks before this one have."""
    if not distributed():
        return 0
    numbers = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(numbers, torch.full_like(numbers[0], len(rows)))
    return torch.cat(numbers)[: dist.get_rank()].sum()


def distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce(counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Sum (K,) counts and (K, D) sums over the ranks, in one message."""
    if not distributed():
        return counts, sums
    message = torch.cat((counts.unsqueeze(1), sums), dim=1)
    dist.all_reduce(message)
    return message[:, 0], message[:, 1:]
