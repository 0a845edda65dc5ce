"""Images as continuous features for the language model: a second merger and the projector, trained with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.kernels import Ragged, Selection, partition
from lavit.kernels.checks import as_seeds
from lavit.kernels.types import compute_dtype
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig, VisualTokens
from lavit.tokenizer.merger import Layout, Merger
from lavit.tokenizer.model import describe_non_finite


class Understanding(nn.Module):
    """The merger and the projector that are trained with the language model (the release's `visual_weight.bin`).

    What an image is *read* by; images are *written* with the codes of the stage-1 merger, which stays as it is. Encoder
    and selector are the tokenizer's, frozen. The parameters have the release's names.
    """

    def __init__(self, config: LaVITTokenizerConfig, width: int) -> None:
        super().__init__()
        self.form = config.merge
        self.causal_encoder = Merger(config)
        self.vit_proj = nn.Linear(config.hidden_size, width)

    @torch.no_grad()
    def start_from(self, tokenizer: LaVITTokenizer) -> None:
        """Copy the tokenizer's merger, and its projection where it has one to this width; else the projector stays new.

        Raises RuntimeError, naming the tensors, for a tokenizer of other sizes.
        """
        self.causal_encoder.load_state_dict(tokenizer.causal_encoder.state_dict())
        projection = getattr(tokenizer, "vit_proj", None)
        if projection is not None and projection.weight.shape == self.vit_proj.weight.shape:
            self.vit_proj.load_state_dict(projection.state_dict())

    def forward(self, features: Tensor, layout: Layout) -> Ragged:
        """features (B, N, C) as the selector saw them (``LaVITTokenizer.positioned``) -> (T, width) kept rows."""
        merged = self.causal_encoder(features.to(self.causal_encoder.norm.weight.dtype), layout, self.form)
        return merged.with_values(self.vit_proj(merged.values.to(self.vit_proj.weight.dtype)))


class ImageRows(NamedTuple):
    """The tokens of a batch of n images: Ti in all, image after image.

    lengths: (n,) int64 on the CPU, tokens of each image. codes: (Ti,) int64, 0 where they were not asked for.
    features: (Tf, width) of the images wanted as features, which are the tokens feature_places (Tf,); None without any.
    merged: (Tm, C) rows of the stage-1 merger of the images wanted as codes, which are the tokens merged_places (Tm,);
        None where nothing needed them.
    """

    lengths: Tensor
    codes: Tensor
    features: Tensor | None = None
    feature_places: Tensor | None = None
    merged: Tensor | None = None
    merged_places: Tensor | None = None


def image_rows(
    tokenizer: LaVITTokenizer,
    understanding: Understanding,
    as_codes: Tensor,
    as_features: Tensor,
    *,
    images: Tensor | None = None,
    features: Tensor | None = None,
    tokens: VisualTokens | None = None,
    wants_merged: bool = False,
    seeds: Tensor | Sequence[int] | None = None,
    deterministic: bool = False,
    noise: Tensor | None = None,
) -> ImageRows:
    """Tokenize a batch of n images, each once, and merge by the stage-1 merger, by the understanding one, or by both.

    as_codes, as_features: (n,) bool on the CPU, what is wanted of each image.
    images: (n, 3, S, S), normalised, or features: (n, N, C) of ``encode_features``; neither is needed where ``tokens``
        are given and codes are all that is wanted.
    tokens: of these images, from ``LaVITTokenizer.encode``: then nothing is selected or quantised again.
    wants_merged: give ``merged`` with tokens too.
    seeds, deterministic, noise: of the selection, as in ``LaVITTokenizer.select``.
    The gradient reaches the understanding merger and projector only. The host waits for the device once, to learn how
    many tokens each image has; not at all for ``tokens`` whose offsets are on the CPU.
    Raises ValueError for another number of images or patches, for features that are missing, and for NaN or Inf,
    naming the images.
    """
    device = tokenizer.quantize.embedding.weight.device
    source = _features(tokenizer, as_codes.shape[0], images, features, device)
    if as_codes.shape[0] == 0:
        return ImageRows(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64, device=device))
    wants_merged = bool(as_codes.any()) and (wants_merged or tokens is None)
    if source is None and (wants_merged or bool(as_features.any())):
        raise ValueError("images, features: expected one of them, got none")
    with torch.no_grad():
        if tokens is None:
            assert source is not None
            if seeds is not None:
                seeds = as_seeds("seeds", seeds, device)
            selection = tokenizer.select(source, seeds, deterministic, noise)
            finite = source.isfinite().all().long().view(1)
            *numbers, is_finite = torch.cat((selection.cu_kept.diff().long(), finite)).tolist()
            if not is_finite:
                raise ValueError(describe_non_finite(images, source))
            lengths = torch.tensor(numbers, dtype=torch.int64)
        else:
            _check_tokens(tokens, as_codes.shape[0], tokenizer.num_patches)
            lengths = tokens.cu_seqlens.diff().long().cpu()
            keep = tokens.keep.to(device, non_blocking=True)
            selection = Selection(keep.float(), keep.float(), *partition(keep))
    x = None if source is None else tokenizer.positioned(source).detach()
    rows = ImageRows(lengths, torch.zeros(int(lengths.sum()), dtype=torch.int64, device=device))
    if as_features.any():
        assert x is not None
        read = understanding(*_of(x, selection, lengths, as_features))
        rows = rows._replace(features=read.values, feature_places=_places(lengths, as_features, device))
    if tokens is not None:
        rows = rows._replace(codes=tokens.ids[: rows.codes.shape[0]].to(device, non_blocking=True))
    if wants_merged:
        assert x is not None
        places = _places(lengths, as_codes, device)
        with torch.no_grad():
            chosen, layout = _of(x.to(tokenizer.causal_encoder.norm.weight.dtype), selection, lengths, as_codes)
            merged = tokenizer.causal_encoder(chosen, layout, tokenizer.config.merge).values
            if tokens is None:
                rows = rows._replace(codes=rows.codes.index_copy(0, places, tokenizer.ids_of(merged)))
        rows = rows._replace(merged=merged, merged_places=places)
    return rows


def _features(
    tokenizer: LaVITTokenizer, count: int, images: Tensor | None, features: Tensor | None, device: torch.device
) -> Tensor | None:
    if images is not None and features is not None:
        raise ValueError("images, features: expected at most one of them, got both")
    given = images if images is not None else features
    if given is None:
        return None
    name = "features" if images is None else "images"
    if given.shape[0] != count:
        raise ValueError(f"{name}: expected {count}, one for each segment of an image, got {given.shape[0]}")
    if images is not None:
        return tokenizer.encode_features(images.to(device, non_blocking=True))
    expected = (tokenizer.num_patches, tokenizer.config.hidden_size)
    if given.dim() != 3 or given.shape[1:] != expected:
        raise ValueError(f"features: expected shape ({count}, {expected[0]}, {expected[1]}), got {tuple(given.shape)}")
    given = given.to(device, non_blocking=True)
    return given.to(compute_dtype(given))


def _check_tokens(tokens: VisualTokens, count: int, patches: int) -> None:
    if tokens.cu_seqlens.shape != (count + 1,):
        got = tokens.cu_seqlens.shape[0] - 1
        raise ValueError(f"tokens: expected those of {count} images, one for each segment of an image, got {got}")
    if tokens.keep.shape != (count, patches):
        raise ValueError(f"tokens.keep: expected shape ({count}, {patches}), got {tuple(tokens.keep.shape)}")


def _of(x: Tensor, selection: Selection, lengths: Tensor, wanted: Tensor) -> tuple[Tensor, Layout]:
    """The wanted images' features and layout. Nothing is read from the device, nothing copied where all are wanted."""
    patches = x.shape[1]
    kept = lengths[wanted]
    if not wanted.all():
        index = wanted.nonzero().flatten().to(x.device, non_blocking=True)
        x = x[index]
        cu_kept, cu_dropped = (F.pad(n.cumsum(0), (1, 0)).int() for n in (kept, patches - kept))
        selection = Selection(
            selection.keep[index],
            selection.prob[index],
            selection.order[index],
            cu_kept.to(x.device, non_blocking=True),
            cu_dropped.to(x.device, non_blocking=True),
        )
    return x, Layout.from_sizes(selection, [int(kept.sum()), int(kept.max()), int(kept.min())])


def _places(lengths: Tensor, wanted: Tensor, device: torch.device) -> Tensor:
    """Which of all images' tokens are those of the wanted images: (Tw,). Found on the CPU, which knows its size."""
    return wanted.repeat_interleave(lengths).nonzero().flatten().to(device, non_blocking=True)
