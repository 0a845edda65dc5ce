"""From pictures to the tensor that the tokenizer reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_base import ImageProcessingMixin

from lavit.data.atomic_write import atomic_write

if TYPE_CHECKING:
    from lavit.tokenizer.model import LaVITTokenizer

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FILE_NAME = "preprocessor_config.json"
LAYOUTS = {"channels_first": ("(3, H, W)", 0), "channels_last": ("(H, W, 3)", 2)}
"""How arrays may lie, by their names in transformers: the shape and the axis of the channels."""

FITS = ("stretch", "crop", "pad")
"""How a picture that is no square becomes one."""


class LaVITImageProcessor(ImageProcessingMixin):
    """Resize to a square with PIL's bicubic filter, scale to [0, 1], normalise.

    size: side in pixels. mean, std: per channel, of pixels in [0, 1].
    fit: how a picture that is no square becomes one: "stretch", both sides to the size (the release); "crop", the short
        side to the size and the middle of the long one; "pad", the long side to the size between white margins.
    """

    def __init__(
        self,
        size: int = 224,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        fit: str = "stretch",
        **ignored: Any,
    ) -> None:
        unknown = set(ignored) - {"image_processor_type"}
        if unknown:
            raise ValueError(f"LaVITImageProcessor: unknown name {', '.join(map(repr, sorted(unknown)))}")
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"size: expected an integer of at least 1, got {size!r}")
        for name, value in (("mean", mean), ("std", std)):
            if len(value) != 3:
                raise ValueError(f"{name}: expected 3 numbers, one per channel, got {len(value)}")
        if min(std) <= 0:
            raise ValueError(f"std: expected positive numbers, got {tuple(std)}")
        if fit not in FITS:
            raise ValueError(f"fit: expected one of {', '.join(FITS)}, got {fit!r}")
        self.size, self.fit = size, fit
        self.mean = tuple(float(m) for m in mean)
        self.std = tuple(float(s) for s in std)

    def __call__(self, images: Any, *, input_data_format: str | None = None) -> Tensor:
        """One picture or several -> (B, 3, size, size) float32, normalised.

        A picture is a PIL image (any mode; converted to RGB), a uint8 array or tensor (H, W, 3), or a float tensor
        (3, H, W) with values in [0, 1]. Several are a list of these or a batch of the arrays; an empty list gives an
        empty batch.
        input_data_format: how all arrays and tensors lie, "channels_first" or "channels_last". None: as above where
            that gives 3 channels, else the other way round; so (3, H, 3) is channels last as uint8, and first as float.
        Raises TypeError for anything else, and ValueError for another channel count, a picture without pixels, and
        floats that are not finite or lie outside [0, 1] by more than rounding.
        """
        if input_data_format is not None and input_data_format not in LAYOUTS:
            raise ValueError(f"input_data_format: expected {' or '.join(LAYOUTS)}, got {input_data_format!r}")
        if isinstance(images, (np.ndarray, Tensor)) and images.ndim not in (3, 4):
            raise ValueError(f"images: expected an array of 3 or 4 dimensions, got shape {tuple(images.shape)}")
        pictures = one_by_one(images)
        if not pictures:
            return torch.empty(0, 3, self.size, self.size)
        places = ["" if picture is images else f" for image {i}" for i, picture in enumerate(pictures)]
        pixels = torch.stack([self._pixels(*one, input_data_format) for one in zip(pictures, places, strict=True)])
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return (pixels - mean) / std

    def resize(self, picture: Image.Image) -> Image.Image:
        """A picture as RGB of the size that the model reads: the slow part of ``__call__``, done before it."""
        picture = picture.convert("RGB")
        if picture.size == (self.size, self.size):
            return picture
        return self._squared(picture, "white")

    def seen(self, picture: Image.Image) -> Image.Image:
        """What the model sees of a picture, in the picture's own pixels: all of it, its middle, or it between white
        margins (`fit`). Patches divide this evenly."""
        width, height = picture.size
        if self.fit == "stretch" or width == height:
            return picture
        side = (min if self.fit == "crop" else max)(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        if self.fit == "crop":
            return picture.crop((left, top, left + side, top + side))
        square = Image.new("RGB", (side, side), "white")
        square.paste(picture, (-left, -top))
        return square

    def _squared(self, picture: Image.Image, margin: Any) -> Image.Image:
        """The picture, of any mode, resized to the square. margin: the colour of white."""
        size, (width, height) = self.size, picture.size
        bicubic = Image.Resampling.BICUBIC
        if self.fit == "stretch" or width == height:
            return picture.resize((size, size), bicubic)
        if self.fit == "crop":
            left, top = max(0, width - height) / 2, max(0, height - width) / 2
            return picture.resize((size, size), bicubic, box=(left, top, width - left, height - top))
        inner = tuple(max(1, round(size * side / max(width, height))) for side in (width, height))
        square = Image.new(picture.mode, (size, size), margin)
        square.paste(picture.resize((inner[0], inner[1]), bicubic), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return square

    def unnormalize(self, pixels: Tensor) -> Tensor:
        """The way back: (B, 3, H, W) normalised -> (B, H, W, 3) uint8."""
        mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (self.mean, self.std))
        scaled = (pixels.float() * std + mean).clamp(0, 1) * 255
        return scaled.round().to(torch.uint8).permute(0, 2, 3, 1)

    def _pixels(self, picture: Any, place: str, layout: str | None) -> Tensor:
        """One picture -> (3, size, size) float32 in [0, 1]. place: which one, at the end of errors."""
        if isinstance(picture, Tensor) and picture.is_floating_point():
            return self._resize_float(_checked_floats(picture.detach().cpu(), place, layout))
        if isinstance(picture, Tensor):
            picture = picture.cpu().numpy()
        if isinstance(picture, np.ndarray):
            picture = _from_array(picture, place, layout)
        if not isinstance(picture, Image.Image):
            got = f"{type(picture).__name__}{place}"
            raise TypeError(f"images: expected PIL images, uint8 arrays or float tensors, got {got}")
        if min(picture.size) < 1:
            raise ValueError(f"images: expected pixels, got a PIL image of {picture.width} x {picture.height}{place}")
        return torch.from_numpy(np.array(self.resize(picture))).permute(2, 0, 1).float() / 255

    def _resize_float(self, picture: Tensor) -> Tensor:
        """(3, H, W) float32 of any height and width -> (3, size, size)."""
        if picture.shape[1:] == (self.size, self.size):
            return picture
        return torch.from_numpy(np.stack([np.array(self._squared(Image.fromarray(c.numpy()), 1.0)) for c in picture]))

    def to_dict(self) -> dict[str, Any]:
        found = {"image_processor_type": type(self).__name__, "size": self.size, "mean": self.mean, "std": self.std}
        # Files and fingerprints of before have no word for what was the only way.
        return found if self.fit == "stretch" else {**found, "fit": self.fit}

    def as_tensor(self) -> Tensor:
        """The settings as numbers, for the fingerprint of what is computed with them."""
        how = [] if self.fit == "stretch" else [float(FITS.index(self.fit))]
        return torch.tensor([self.size, *self.mean, *self.std, *how])

    def save_pretrained(self, folder: str | PathLike[str]) -> None:  # type: ignore[override]
        """Write ``preprocessor_config.json`` into a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(folder) / FILE_NAME, "w") as file:
            file.write(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> LaVITImageProcessor:  # type: ignore[override]
        """Read it back. Raises FileNotFoundError naming the file when there is none."""
        return cls(**json.loads((Path(folder) / FILE_NAME).read_text(encoding="utf-8")))


def one_by_one(images: Any) -> list[Any]:
    """The images of a list or of an array (B, ...) of four dimensions, or the one that is given."""
    several = isinstance(images, (list, tuple)) or (isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4)
    return list(images) if several else [images]


def processor_for(
    image_size: int, folder: str | PathLike[str] | None = None, fit: str | None = None
) -> LaVITImageProcessor:
    """The image processor beside the model in a folder, where there is one, else CLIP's with the model's size.
    fit: instead of the processor's own."""
    own = folder is not None and (Path(folder) / FILE_NAME).is_file()
    found = LaVITImageProcessor.from_pretrained(str(folder)) if own else LaVITImageProcessor(size=image_size)
    return found if fit is None else LaVITImageProcessor(found.size, found.mean, found.std, fit)


AT_ONCE = 256  # images that are encoded together


def encode_images(tokenizer: LaVITTokenizer, processor: LaVITImageProcessor, images: Any) -> Tensor:
    """Images (n, H, W, 3) uint8 -> features (n, N, C) of the frozen encoder, on its device. ValueError for none."""
    if len(images) == 0:
        raise ValueError("images: expected at least one, got none")
    device = tokenizer.quantize.embedding.weight.device
    parts = (images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE))
    return torch.cat([tokenizer.encode_features(processor(part).to(device)) for part in parts])


def encoder_tensors(tokenizer: LaVITTokenizer, processor: LaVITImageProcessor) -> list[tuple[str, Tensor]]:
    """What the features of images depend on: encoder, standardisation, and the processor's settings."""
    found = dict(tokenizer.encoder.state_dict())
    if tokenizer.config.standardize_features:
        found |= {"mean": tokenizer.feature_mean, "std": tokenizer.feature_std}
    found["pixels"] = processor.as_tensor()
    return sorted(found.items())


def _from_array(picture: np.ndarray, place: str, layout: str | None) -> Image.Image:
    """A uint8 array as a PIL image."""
    if picture.dtype != np.uint8:
        got = f"{picture.dtype}{place}"
        raise TypeError(f"images: expected uint8 arrays (0 to 255) or float tensors (0 to 1), got {got}")
    axis = _channel_axis("uint8 arrays", picture.shape, place, layout, "channels_last", "channels_first")
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(picture, axis, -1)))


def _checked_floats(picture: Tensor, place: str, layout: str | None) -> Tensor:
    """A float tensor as (3, H, W) float32; its values are in [0, 1], but for rounding."""
    axis = _channel_axis("float tensors", tuple(picture.shape), place, layout, "channels_first", "channels_last")
    low, high = (float(bound) for bound in picture.aminmax())
    slack = max(0.5 / 255, 4 * torch.finfo(picture.dtype).eps)  # 0 or 255 as a byte, or a few roundings of the type
    if not (-slack <= low and high <= 1 + slack):  # NaN fails too
        raise ValueError(f"images: expected floats in [0, 1], got values from {low:g} to {high:g}{place}")
    return picture.movedim(axis, 0).to(torch.float32)


def _channel_axis(what: str, shape: tuple[int, ...], place: str, layout: str | None, *inferred: str) -> int:
    """The axis of the 3 channels: in the layout that is asked for, or in the first of the inferred that has them."""
    layouts = [LAYOUTS[name] for name in ((layout,) if layout is not None else inferred)]
    axis = next((axis for _, axis in layouts if len(shape) == 3 and shape[axis] == 3), None)
    if axis is None:
        wanted = " or ".join(form for form, _ in layouts)
        raise ValueError(f"images: expected {what} of shape {wanted}, got {shape}{place}")
    if 0 in shape:
        raise ValueError(f"images: expected {what} with pixels, got shape {shape}{place}")
    return axis
