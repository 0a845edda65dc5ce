"""Prompts of text and images, in any order, to what the model reads, and ids back to text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import cached_file

from lavit.data.atomic_write import atomic_write
from lavit.data.images import load_image
from lavit.kernels import Ragged, Segment, segment_order
from lavit.language.configuration import LaVITConfig
from lavit.tokenizer.processing import FILE_NAME as IMAGE_FILE
from lavit.tokenizer.processing import LaVITImageProcessor

PROCESSOR_FILE = "processor_config.json"


class Prompts(NamedTuple):
    """A batch of prompts, all on the CPU; ``inputs()`` is what ``LaVIT.assemble`` takes.

    text: ids (Tt,), one sequence for each piece of text. segments: (S,), one sequence for each prompt; images are
    FEATURES, which a model reads. images: (n, 3, S, S), normalised, or None without any.
    indices: for each of these prompts, which of the given ones it is. skipped: (index, reason) of those left out.
    """

    text: Ragged
    segments: Ragged
    images: Tensor | None
    indices: list[int]
    skipped: list[tuple[int, str]]

    def inputs(self) -> dict[str, Any]:
        return {"text": self.text, "segments": self.segments, "images": self.images}


class LaVITProcessor(ProcessorMixin):
    """The image transform and the text tokenizer of a LaVIT, saved beside it in one folder.

    image_processor: a LaVITImageProcessor. tokenizer: of transformers, usually the LLaMA checkpoint's own. text_size:
    number of text ids of the model (``LaVITConfig.text_size``); None: as many as the tokenizer knows.
    Raises TypeError for parts of another kind and ValueError for a tokenizer with more ids than ``text_size``.
    """

    image_processor: LaVITImageProcessor
    tokenizer: Any

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, text_size: int | None = None) -> None:
        super().__init__(image_processor, tokenizer)
        self.text_size = len(tokenizer) if text_size is None else text_size
        if len(tokenizer) > self.text_size:
            raise ValueError(
                f"tokenizer: expected at most {self.text_size} ids, the model's text ids, got {len(tokenizer)}; "
                "what it has beyond would be read as [IMG], [/IMG] or codes"
            )

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        wanted = {"image_processor": LaVITImageProcessor, "tokenizer": PreTrainedTokenizerBase}[argument_name]
        if not isinstance(argument, wanted):
            raise TypeError(f"{argument_name}: expected a {wanted.__name__}, got {type(argument).__name__}")
        return wanted

    def __call__(  # type: ignore[override]
        self, prompts: Sequence[Any], *, begin_image: bool = False, errors: str = "raise"
    ) -> Prompts:
        """prompts: for each a string, an image, or a list of strings and images in any order.

        An image is a path (pathlib.Path), the bytes of a file, a PIL image, what LaVITImageProcessor takes, or pixels
        that it has made, (1, 3, S, S) floats; a string is always text. Nothing is added to a text, as in the release.
        begin_image: end every prompt with [IMG], for the model to go on with an image.
        errors: "raise" or "skip", which leaves out the prompts at fault and tells them in ``skipped``.
        Raises ValueError naming the prompt and the piece: nothing in it, an image that cannot be read or is cut short,
        an id that is no text id; TypeError for what is neither text nor image.
        """
        if errors not in ("raise", "skip"):
            raise ValueError(f"errors: expected raise or skip, got {errors!r}")
        if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Sequence):
            raise TypeError(f"prompts: expected a list of prompts, got {type(prompts).__name__}")
        usable: list[list[Tensor]] = []
        indices: list[int] = []
        skipped: list[tuple[int, str]] = []
        for index, prompt in enumerate(prompts):
            try:
                pieces = self.pieces(f"prompt {index}", prompt)
            except (ValueError, TypeError) as error:
                if errors == "raise":
                    raise
                skipped.append((index, str(error)))
                continue
            if begin_image:
                pieces.append(torch.tensor([self.text_size]))
            indices.append(index)
            usable.append(pieces)
        pixels = [piece for pieces in usable for piece in pieces if piece.is_floating_point()]
        return Prompts(*segmented(usable), torch.cat(pixels) if pixels else None, indices, skipped)

    def pieces(self, name: str, prompt: Any) -> list[Tensor]:
        """Ids (t,) of every text that is not empty, and pixels (1, 3, S, S) of every image, in their order.

        name: what errors call the prompt; they are those of a call.
        """
        pieces: list[Tensor] = []
        side = self.image_processor.size
        for place, item in enumerate(prompt if isinstance(prompt, (list, tuple)) else [prompt]):
            where = f"{name}, piece {place}" if isinstance(prompt, (list, tuple)) else name
            if isinstance(item, str):
                ids = self._ids(where, item)
                pieces += [ids] if ids.numel() else []
            elif isinstance(item, (PathLike, bytes, Image.Image)):
                pieces.append(self.image_processor(load_image(item, name=f"{where}: {_title(item)}")))
            elif isinstance(item, (np.ndarray, Tensor)) and item.ndim == 3:
                try:
                    pieces.append(self.image_processor(item))
                except (ValueError, TypeError) as error:
                    raise type(error)(f"{where}: {error}") from error
            elif isinstance(item, Tensor) and item.is_floating_point() and item.shape == (1, 3, side, side):
                pieces.append(item.detach().cpu())
            else:
                shape = f" of shape {tuple(item.shape)}" if isinstance(item, (np.ndarray, Tensor)) else ""
                raise TypeError(f"{where}: expected a string or one image, got {type(item).__name__}{shape}")
        if not pieces:
            raise ValueError(f"{name}: expected text or an image, got an empty prompt")
        return pieces

    def _ids(self, where: str, text: str) -> Tensor:
        try:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        except (UnicodeEncodeError, TypeError) as error:  # half of a surrogate pair
            raise ValueError(f"{where}: {text!r} cannot be encoded ({error})") from error
        wrong = [i for i in ids if not 0 <= i < self.text_size]
        if wrong:
            raise ValueError(f"{where}: expected text ids 0 to {self.text_size - 1}, got {wrong[0]}")
        return torch.tensor(ids, dtype=torch.int64)

    def decode_text(self, ids: Ragged) -> list[str]:
        """Generated text ids, a ragged batch, as strings without special tokens."""
        return [self.tokenizer.decode(row.tolist(), skip_special_tokens=True) for row in ids.unbind()]

    # Files.

    def to_dict(self) -> dict[str, Any]:
        parts = {"image_processor": self.image_processor.to_dict(), "text_size": self.text_size}
        return {"processor_class": type(self).__name__, **parts}

    def save_pretrained(
        self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write the image processor's, the tokenizer's and its own file into a folder, the model's for instance."""
        if push_to_hub:
            raise ValueError("push_to_hub: expected False; upload the folder with huggingface_hub")
        folder = Path(save_directory)
        self.image_processor.save_pretrained(folder)
        files = self.tokenizer.save_pretrained(folder)
        with atomic_write(folder / PROCESSOR_FILE, "w") as file:
            file.write(json.dumps(self.to_dict(), indent=2) + "\n")
        return [*files, str(folder / IMAGE_FILE), str(folder / PROCESSOR_FILE)]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> LaVITProcessor:
        """Read it back from a folder or from the Hub. Raises OSError naming a file that is missing."""
        source = str(pretrained_model_name_or_path)
        found = [cached_file(source, name, **kwargs) for name in (IMAGE_FILE, PROCESSOR_FILE)]
        image, own = (json.loads(Path(str(path)).read_text(encoding="utf-8")) for path in found)
        tokenizer = AutoTokenizer.from_pretrained(source, **kwargs)
        return cls(LaVITImageProcessor(**image), tokenizer, own["text_size"])


def segmented(prompts: list[list[Tensor]], image: Segment = Segment.FEATURES) -> tuple[Ragged, Ragged]:
    """The texts of prompts of ids (t,) and float pixels, and the order of these pieces; ``image``: what pixels are."""
    texts = [piece for pieces in prompts for piece in pieces if not piece.is_floating_point()]
    order = [[image if piece.is_floating_point() else Segment.TEXT for piece in pieces] for pieces in prompts]
    return Ragged.from_list(texts) if texts else no_ids(), segment_order(order)


def no_ids() -> Ragged:
    """A batch without any sequence."""
    return Ragged(torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int32), 0)


def _title(item: Any) -> str:
    return str(item) if isinstance(item, PathLike) else str(getattr(item, "filename", "") or "the image")


AutoProcessor.register(LaVITConfig, LaVITProcessor, exist_ok=True)
