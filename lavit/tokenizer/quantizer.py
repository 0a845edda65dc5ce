"""The quantizer: vectors to codes and back, and the learning of the codebook."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.kernels import code_statistics, nearest_code
from lavit.kernels.types import compute_dtype
from lavit.tokenizer.configuration import LaVITTokenizerConfig


class Quantized(NamedTuple):
    """codes: (n, D) chosen codes with the straight-through gradient to the vectors; ids: (n,) int64, -1 for a row with
    NaN or Inf; commitment: scalar, mean squared distance of the unit vectors from their codes."""

    codes: Tensor
    ids: Tensor
    commitment: Tensor


class Quantizer(nn.Module):
    """Nearest code of each unit vector, with the codebook learned by exponential moving averages (VQ-VAE's appendix).

    In training mode every :meth:`forward` moves the codebook, as batch norm moves its statistics: each code becomes the
    average of the unit vectors that chose it, weighted by how often it was chosen; codes used less than
    ``dead_code_fraction`` times the mean use are replaced by vectors of the current batch. Counts, sums and
    replacements are all-reduced when torch.distributed is initialised, so all ranks keep identical codebooks.
    Everything here is computed in float32 (float64 stays), under autocast too.
    """

    cluster_size: Tensor
    updates: Tensor

    def __init__(self, config: LaVITTokenizerConfig) -> None:
        super().__init__()
        self.decay = config.ema_decay
        self.dead_code_fraction = config.dead_code_fraction
        self.unit_codes = config.unit_codes
        # The codes (K, D). Learned by averages, not by gradient.
        self.embedding = nn.Embedding.from_pretrained(torch.zeros(config.num_codes, config.code_dim), freeze=True)
        # Moving average of each code's uses per batch, and the number of updates so far, which drives the choice of
        # replacements. A file without them (the release's) leaves them at these values.
        self.register_buffer("cluster_size", torch.ones(config.num_codes))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._counts: Tensor | None = None

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
            if self.training:
                self.update(unit.detach(), learned_ids)
        return Quantized(unit + (codes - unit).detach(), ids, commitment)

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
        """For every dead code a vector of this step's batches, no two alike while there are enough: (K, D), found (K,).

        The ranks take turns; within a rank's batch a pseudo-random order decides, which depends on the number of
        updates only, so that a resumed run makes the same choices.
        """
        rank, world = (dist.get_rank(), dist.get_world_size()) if distributed() else (0, 1)
        turn = dead.cumsum(0) - 1
        found = dead & (turn % world == rank)
        if unit.shape[0] == 0:
            vectors, found = torch.zeros_like(self.codebook()), torch.zeros_like(dead)
        else:
            # Rows that count for nothing (-1) sort to the end.
            key = torch.where(ids >= 0, scramble(torch.arange(ids.shape[0], device=ids.device), self.updates), 2**62)
            order = key.argsort()
            row = order[(turn.clamp(min=0) // world) % (ids >= 0).sum().clamp(min=1)]
            found = found & (ids[row] >= 0)
            vectors = torch.where(found.unsqueeze(1), unit[row], 0)
        found_sum, vectors = all_reduce(found.to(vectors.dtype), vectors)
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


def distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce(counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Sum (K,) counts and (K, D) sums over the ranks, in one message."""
    if not distributed():
        return counts, sums
    message = torch.cat((counts.unsqueeze(1), sums), dim=1)
    dist.all_reduce(message)
    return message[:, 0], message[:, 1:]
