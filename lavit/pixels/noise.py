"""Where the noise of images comes from: a generator of its own for each, so that no image depends on another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from lavit.kernels.checks import as_seeds

if TYPE_CHECKING:
    from lavit.language.inference import GeneratedTokens


def image_generators(
    count: int, seeds: Tensor | Sequence[int] | None, generator: Generator | Sequence[Generator] | None
) -> Generator | list[Generator]:
    """Generators for ``count`` images: of the CPU, from their seeds; or what was given, as diffusers takes it.

    Without either, seeds are drawn from torch's generator of the CPU. Raises ValueError for both, for a number of seeds
    or generators other than ``count``, and for a seed that is no integer.
    """
    if seeds is not None and generator is not None:
        raise ValueError("seeds: expected either seeds or generator, got both")
    if isinstance(generator, Generator):
        return generator
    if generator is not None:
        if len(generator) != count:
            raise ValueError(f"generator: expected one, or one for each of {count} images, got {len(generator)}")
        return list(generator)
    if seeds is None:
        seeds = torch.randint(2**63 - 1, (count,))
    numbers = seeds.tolist() if isinstance(seeds, Tensor) else list(seeds)
    if len(numbers) != count:
        raise ValueError(f"seeds: expected {count}, one an image, got {len(numbers)}")
    for place, seed in enumerate(numbers):
        if isinstance(seed, bool) or int(seed) != seed:
            raise ValueError(f"seeds: expected integers, got {seed!r} for image {place}")
    return [Generator("cpu").manual_seed(int(seed)) for seed in numbers]


def initial_noise(count: int, shape: tuple[int, int, int], generators: Generator | list[Generator]) -> Tensor:
    """(count, C, h, w) float32 normal noise, on the generators' device."""
    if isinstance(generators, Generator):
        return torch.randn((count, *shape), generator=generators, device=generators.device)
    parts = [torch.randn(shape, generator=own, device=own.device) for own in generators]
    return torch.stack(parts) if parts else torch.empty(0, *shape)


def noise_seeds(
    drawn: GeneratedTokens, seeds: Sequence[int] | Tensor | None, prompts: int
) -> Sequence[int] | Tensor | None:
    """The seeds of the samples that were drawn, or chosen, of those of all samples."""
    if seeds is None:
        return None
    of_prompts = as_seeds("seeds", seeds).cpu().view(prompts, -1)[list(dict.fromkeys(drawn.indices))]
    if drawn.scores is not None:
        of_prompts = of_prompts.gather(1, drawn.scores.argmax(dim=1, keepdim=True))
    return of_prompts.flatten()
