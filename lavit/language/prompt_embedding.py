"""Prompts of strings and images to embeddings for the language model, a batch at a time; what is bad is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lavit.kernels import Ragged, Segment
from lavit.kernels.checks import as_seeds
from lavit.language.assembly import Model
from lavit.language.configuration import check_prompt_images
from lavit.language.generation_inputs import NonFiniteScores
from lavit.language.processing import LaVITProcessor, segmented
from lavit.tokenizer import VisualTokens


class Skipped(NamedTuple):
    """An item without a result, by its place in the list, and why."""

    item: int
    reason: str


class Batch(NamedTuple):
    """Prompts that can be used, each different one read once.

    numbers: which prompts. of: for each the place of its embeddings in rows. rows: embeddings (T, H), without padding.
    """

    numbers: list[int]
    of: list[int]
    rows: Ragged

    @property
    def firsts(self) -> list[int]:
        """The first prompt of each place in rows."""
        return [self.numbers[self.of.index(place)] for place in range(self.rows.batch_size)]


class _Prompt(NamedTuple):
    """number: its place among all. pieces: ids (t,) and pixels (1, 3, S, S) in reading order. seeds: of its images."""

    number: int
    pieces: list[Tensor]
    seeds: Tensor

    @property
    def images(self) -> list[Tensor]:
        return [piece for piece in self.pieces if piece.is_floating_point()]


@dataclass(eq=False, repr=False)
class PromptReader:
    """Reads prompts a batch at a time, and keeps account of those that cannot be used.

    prompts: each a list of strings and images in any order, as :class:`LaVITProcessor` takes them.
    what: how to call a prompt in errors. new_tokens: how many are to be generated after it. ending: ids after each.
    template: how a string is put, ``{}`` being the string; with one, empty strings are refused.
    image_seeds: of the selection of patches, one for each image of all prompts; None: no noise.
    shown_as: how images are shown, one of ``PROMPT_IMAGES``.
    on_error: "raise" an error that names the prompt, or "skip" it, to be found in ``skipped``.
    """

    model: Model
    processor: LaVITProcessor
    prompts: Sequence[Sequence[Any]]
    _: KW_ONLY
    what: str
    new_tokens: int
    batch_size: int
    on_error: str
    ending: Sequence[int] = ()
    template: str | None = None
    image_seeds: Tensor | Sequence[int] | None = None
    shown_as: str = "features"
    skipped: list[Skipped] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected a number >= 1, got {self.batch_size}")
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error: expected 'raise' or 'skip', got {self.on_error!r}")
        size, text_size, config = self.processor.image_processor.size, self.processor.text_size, self.model.config
        if size != config.tokenizer_config.image_size:
            raise ValueError(f"processor: expected images of side {config.tokenizer_config.image_size}, got {size}")
        if text_size != config.text_size:
            raise ValueError(f"processor: expected text_size {config.text_size}, the model's, got {text_size}")
        check_prompt_images(self.shown_as)
        self.kind = Segment.FEATURES if self.shown_as == "features" else Segment.CODES
        self.markers = 0 if self.shown_as == "bare_codes" else 2
        self.noisy = self.image_seeds is not None
        self.seeds = _seeds_by_prompt(self.prompts, self.image_seeds)

    def batches(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """These prompts, ``batch_size`` at a time.

        Nothing of a prompt depends on the others of its batch, beyond the rounding of sums.
        """
        for begin in range(0, len(numbers), self.batch_size):
            asked = numbers[begin : begin + self.batch_size]
            first: dict[Any, int] = {}
            alike = {number: first.setdefault(self._key(number), number) for number in asked}
            batch = [prompt for number in first.values() for prompt in self._read(number)]
            features, tokens, batch = self._selected(batch)
            place = {prompt.number: i for i, prompt in enumerate(batch)}
            self._refuse_alike({number: one for number, one in alike.items() if one not in place})
            if not batch:
                continue
            text, segments = segmented([prompt.pieces for prompt in batch], self.kind)
            packed = self.model.assemble(text, segments, features=features, tokens=tokens)
            rows = Ragged(self.model.embed(packed), packed.sequences.cu_seqlens, packed.max_seqlen)
            kept = [number for number in asked if alike[number] in place]
            yield Batch(kept, [place[alike[number]] for number in kept], rows)

    def _key(self, number: int) -> tuple[Any, ...]:
        """Equal for prompts that are read alike: of the same texts, and of the same images with the same seeds."""
        named = (str, Path, bytes)
        pieces = [(type(x), x) if isinstance(x, named) else id(x) for x in self.prompts[number]]
        return *pieces, *self.seeds[number].tolist()

    def _refuse_alike(self, refused: dict[int, int]) -> None:
        """Prompts that are like another one, which has been refused: for the same reason, by their own numbers."""
        reasons = dict(self.skipped)
        for number, one in refused.items():
            if number != one:
                reason = reasons[one].replace(f"{self.what} {one}", f"{self.what} {number}", 1)
                self.skipped.append(Skipped(number, reason))

    @contextmanager
    def naming(self, kept: Sequence[int]) -> Iterator[None]:
        """Within: a model's fault is raised anew with the prompt's own number, in place of that within its batch.

        Whatever ``on_error`` says: what was read is finite, so it is the model that is at fault.
        kept: the prompts of the batch, as ``batches`` gave them.
        """
        try:
            yield
        except NonFiniteScores as error:
            raise NonFiniteScores(kept[error.prompt], error.token, self.what) from error

    def _read(self, number: int) -> list[_Prompt]:
        """The prompt as ids and pixels, in a list; an empty one if it is skipped."""
        name = f"{self.what} {number}"
        try:
            prompt = [self._put(name, piece) for piece in self.prompts[number]]
            alone = len(prompt) == 1 and not isinstance(prompt[0], (list, tuple))
            pieces = self.processor.pieces(name, prompt[0] if alone else prompt)
        except (ValueError, TypeError) as error:
            self._refuse(number, error)
            return []
        read = _Prompt(number, [*pieces, torch.tensor(self.ending, dtype=torch.int64)], self.seeds[number])
        return [read] if self._fits(read, self.markers * len(read.images)) else []

    def _put(self, name: str, piece: Any) -> Any:
        if self.template is None or not isinstance(piece, str):
            return piece
        if not piece.strip():
            raise ValueError(f"{name}: expected a text, got {piece!r}")
        return self.template.format(piece)

    def _selected(self, batch: list[_Prompt]) -> tuple[Tensor | None, VisualTokens | None, list[_Prompt]]:
        """Features and tokens of the images, and the prompts that can be used. One wait for the device; two for bare
        codes, which are part of the prompts' text then."""
        images = [image for prompt in batch for image in prompt.images]
        if not images:
            return None, None, batch
        tokenizer = self.model.visual_tokenizer
        device = tokenizer.quantize.embedding.weight.device
        parts = torch.cat(images).split(self.batch_size)
        features = torch.cat([tokenizer.encode_features(part.to(device, non_blocking=True)) for part in parts])
        seeds = torch.cat([prompt.seeds for prompt in batch]).to(device, non_blocking=True) if self.noisy else None
        selection = tokenizer.select(features, seeds, deterministic=not self.noisy)
        finite = features.isfinite().flatten(1).all(dim=1)
        lengths, is_finite = torch.stack((selection.cu_kept.diff().long(), finite.long())).tolist()

        kept: list[_Prompt] = []
        rows: list[int] = []
        end = 0
        for prompt in batch:
            begin, end = end, end + len(prompt.images)
            if not all(is_finite[begin:end]):
                reason = f"an image, or what the encoder makes of it, is NaN or Inf (overflow in {features.dtype}?)"
                self._refuse(prompt.number, ValueError(f"{self.what} {prompt.number}: {reason}"))
            elif self._fits(prompt, sum(lengths[begin:end]) + self.markers * (end - begin)):
                kept.append(prompt)
                rows += range(begin, end)
        if not rows:
            return None, None, kept
        of_image, index = torch.tensor(lengths)[rows], torch.tensor(rows).to(device, non_blocking=True)
        features, seeds = features[index], None if seeds is None else seeds[index]
        if self.kind == Segment.CODES:
            tokens = tokenizer.encode(features=features, seeds=seeds, deterministic=not self.noisy)
            return (features, tokens, kept) if self.markers else (None, None, self._as_text(kept, tokens, of_image))
        # Only their number counts: the rows become features.
        ids = torch.zeros(int(of_image.sum()), dtype=torch.int64, device=device)
        tokens = VisualTokens(ids, F.pad(of_image.cumsum(0), (1, 0)).int(), selection.keep[index] > 0.5)
        return features, tokens, kept

    def _as_text(self, prompts: list[_Prompt], tokens: VisualTokens, lengths: Tensor) -> list[_Prompt]:
        """The prompts with the ids of their images' codes in the place of these, like ids of text.

        lengths: of the images, on the CPU. The host waits for the codes.
        """
        codes = iter(tokens.ids.cpu().split(lengths.tolist()))
        put = []
        for prompt in prompts:
            own = {i: next(codes) for i, piece in enumerate(prompt.pieces) if piece.is_floating_point()}
            if any((ids < 0).any() for ids in own.values()):
                reason = "an image has no codes: the tokenizer's vectors for it are NaN or Inf"
                self._refuse(prompt.number, ValueError(f"{self.what} {prompt.number}: {reason}"))
                continue
            first = self.model.vocabulary.first_code_id
            pieces = [own[i] + first if i in own else piece for i, piece in enumerate(prompt.pieces)]
            put.append(prompt._replace(pieces=pieces))
        return put

    def _fits(self, prompt: _Prompt, of_images: int) -> bool:
        """Whether there is room for the prompt, with so many rows of images, and for what comes after; else refused."""
        length = of_images + sum(len(piece) for piece in prompt.pieces if not piece.is_floating_point())
        needed, positions = length + self.new_tokens - 1, self.model.config.text_config.max_position_embeddings
        if needed > positions:
            reason = (
                f"{len(prompt.images)} images and text of {length} tokens, and up to {self.new_tokens} new ones, need "
                f"{needed} positions, but the model's context has {positions}"
            )
            self._refuse(prompt.number, ValueError(f"{self.what} {prompt.number}: {reason}"))
        return needed <= positions

    def _refuse(self, number: int, error: Exception) -> None:
        if self.on_error == "raise":
            raise error
        self.skipped.append(Skipped(number, str(error)))


def _seeds_by_prompt(prompts: Sequence[Sequence[Any]], seeds: Tensor | Sequence[int] | None) -> list[Tensor]:
    """The seeds of each prompt's images; all empty where there are none."""
    counts = [sum(not isinstance(piece, str) for piece in prompt) for prompt in prompts]
    if seeds is None:
        return [torch.empty(0, dtype=torch.int64)] * len(counts)
    given = as_seeds("image_seeds", seeds).cpu()
    if given.shape != (sum(counts),):
        raise ValueError(f"image_seeds: expected {sum(counts)} seeds, one an image, got shape {tuple(given.shape)}")
    return list(given.split(counts))
