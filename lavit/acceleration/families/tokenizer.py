"""The release's tokenizer: from images to codes or features, waiting for the device once, and its quantizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.acceleration.guided_sampling import BEGIN, END, FIRST_CODE
from lavit.acceleration.packed_merger import merge_kept, passed_by
from lavit.acceleration.registry import Case, Part, first_tensor, policy_of, register
from lavit.acceleration.structure import (
    Odd,
    arguments,
    child,
    expect_arguments,
    expect_linear,
    expect_names,
    expect_no_dropout,
    expect_norm,
    expect_shape,
    expect_types,
    has_hooks,
    has_names,
    holds,
)
from lavit.kernels import Selection, nearest_code, pack, partition
from lavit.tokenizer.merger import Layout

DISTANCES = 1 << 22
"""Distances in memory at once, where they are computed in the precision of autocast."""


class Quantizer:
    """The nearest code of each unit vector, without the n x K distances, and without their one-hot rows."""

    def tokenize(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        z = F.normalize(z, p=2, dim=-1).reshape(-1, self.codebook_dim)
        codebook = self.embedding.weight
        with torch.no_grad():
            if policy_of(self) == "exact" and torch.is_autocast_enabled(z.device.type):
                ids = nearest_under_autocast(z, codebook)
            else:
                # A row with NaN gets -1 here and in the release the first code.
                ids = nearest_code(z, codebook, metric="euclidean", normalize_x=False).clamp(min=0)
        return self.embedding(ids), ids


def nearest_under_autocast(z: Tensor, codebook: Tensor) -> Tensor:
    """arg min |z|^2 + |c|^2 - 2 z.c with the product in the precision of autocast, in which the release takes it."""
    length = codebook.pow(2).sum(dim=1)
    rows = max(1, DISTANCES // max(len(codebook), 1))
    ids = [(r.pow(2).sum(dim=1, keepdim=True) + length - 2 * (r @ codebook.T)).argmin(dim=1) for r in z.split(rows)]
    return torch.cat(ids) if ids else torch.zeros(0, dtype=torch.int64, device=z.device)


class Tokenizer:
    """Codes and features of images. Rows are picked by offsets that the host reads once; what follows the merger works
    on the kept rows only."""

    def encode_features(self: Any, x: Tensor) -> list[Tensor]:
        rows, counts, _ = kept_rows(self, x)
        return list(torch.split(self.vit_proj(rows), counts))

    def tokenize_image(self: Any, x_tensor: Tensor, add_special: bool = False, used_for_llm: bool = True) -> Any:
        rows, counts, lengths = kept_rows(self, x_tensor)
        latents = self.encode_task_layer(rows.type_as(self.encode_task_layer[-1].weight))
        codes, ids = self.quantize.tokenize(latents)
        if not used_for_llm:
            return codes, lengths
        images = torch.split(ids + FIRST_CODE, counts)
        if not add_special:
            return images
        begin, end = ids.new_full((1,), BEGIN), ids.new_full((1,), END)
        return [torch.cat((begin, image, end)) for image in images]


def kept_rows(tokenizer: Any, images: Tensor) -> tuple[Tensor, list[int], Tensor]:
    """The merged rows (T, C) of the kept patches, and how many an image has: on the host and as (B,) int64.

    The noise of the selection is drawn from the same generator, in the same order, as the release draws it.
    """
    features = tokenizer.encoder(images, return_all_features=True)[:, 1:, :]
    ones = features.new_ones(*features.shape[:2], 1)
    scores = tokenizer.token_predictor(features.to(torch.float32), ones).reshape(len(features), -1, 2)
    keep = F.gumbel_softmax(scores, hard=True)[:, :, 0]
    selection = Selection(keep, keep, *partition(keep.detach()))
    lengths = selection.cu_kept.diff().long()
    counts = lengths.tolist()  # the one wait
    patches = features.shape[1]
    layout = Layout.from_sizes(selection, [sum(counts), max(counts, default=0), min(counts, default=patches)])
    merger = tokenizer.causal_encoder
    # A selector that learns is told by all rows what a dropped patch would have changed.
    if policy_of(tokenizer) == "fast" and not keep.requires_grad and not any(map(has_hooks, passed_by(merger))):
        return merge_kept(merger, features, layout), counts, lengths
    merged = merger(features, keep)
    return pack(merged, selection.order, selection.cu_kept, total=layout.total), counts, lengths


def quantizer_alike(module: Any) -> bool:
    return holds(module, ("embedding",)) and arguments(module, "tokenize") is not None


def check_quantizer(module: Any) -> None:
    expect_names(module, ("embedding",))
    book = child(module, "embedding")
    if not has_names(book, (), ("weight",)) or book.weight.dim() != 2:
        raise Odd("embedding: expected a codebook (K, D) alone")
    if module.codebook_dim != book.weight.shape[1]:
        raise Odd(f"codebook_dim: expected {book.weight.shape[1]}, got {module.codebook_dim}")
    expect_arguments(module, "tokenize", "z")


def quantizer_cases(module: Any, normal: Callable[..., Tensor]) -> Iterable[Case]:
    z = normal(2, 19, module.codebook_dim)
    learned = z[0, :1].clone().requires_grad_()  # one row: its code is another only where two tie
    yield lambda quantizer: quantizer.tokenize(z)[1]
    yield lambda quantizer: quantizer.tokenize(learned)[0]
    yield lambda quantizer: gradient_to(learned, quantizer.tokenize(learned)[0])


def gradient_to(rows: Tensor, codes: Tensor) -> Tensor:
    """Of the codes' sum: none is zeros. A straight-through gradient is the same values and another gradient."""
    if not codes.requires_grad:
        return torch.zeros_like(rows)
    (gradient,) = torch.autograd.grad(codes.sum(), rows, allow_unused=True)
    return torch.zeros_like(rows) if gradient is None else gradient


def tokenizer_alike(module: Any) -> bool:
    return holds(module, ("encoder", "token_predictor", "causal_encoder", "quantize"))


def check_tokenizer(module: Any) -> None:
    names = ("encoder", "token_predictor", "causal_encoder", "quantize", "encode_task_layer", "vit_proj")
    expect_names(module, names)
    merger = child(module, "causal_encoder")
    expect_names(merger, ("blocks", "ln_vision", "norm"))
    width = child(module, "encode_task_layer.0").weight.shape[1]
    code = child(module, "quantize.embedding").weight.shape[1]
    expect_types(module, "encode_task_layer", nn.Linear, nn.Tanh, nn.Linear)
    expect_linear(module, "encode_task_layer.0", width, width)
    expect_linear(module, "encode_task_layer.2", width, code)
    expect_shape("vit_proj.weight", module.vit_proj.weight, (module.vit_proj.weight.shape[0], width))
    for norm in ("ln_vision", "norm"):
        expect_norm(merger, norm, width)
    for number, block in enumerate(child(merger, "blocks").children()):
        check_block(block, width, f"causal_encoder.blocks.{number}")
    expect_arguments(merger, "forward", "x, decisions")
    expect_arguments(module, "encode_features", "x")
    expect_arguments(module, "tokenize_image", "x_tensor, add_special=False, used_for_llm=True")


def check_block(block: Any, width: int, name: str) -> None:
    try:
        expect_names(block, ("norm0", "token_causal_attn", "norm1", "token_cross_attn", "norm2", "mlp"))
    except Odd as odd:
        raise Odd(f"{name} {odd}") from None
    for norm in ("norm0", "norm1", "norm2"):
        expect_norm(block, norm, width)
    hidden = child(block, "mlp.fc1").weight.shape[0]
    expect_linear(block, "mlp.fc1", width, hidden)
    expect_linear(block, "mlp.fc2", hidden, width)
    expect_no_dropout(block)


def tokenizer_needs(module: Any) -> Iterable[tuple[str, str]]:
    yield "token_predictor", "selector"
    yield "quantize", "quantizer"
    for number in range(len(child(module, "causal_encoder.blocks")._modules)):
        yield f"causal_encoder.blocks.{number}.token_causal_attn", "merger self-attention"
        yield f"causal_encoder.blocks.{number}.token_cross_attn", "merger cross-attention"


def tokenizer_cases(module: Any, normal: Callable[..., Tensor]) -> Iterable[Case]:
    """With features of a few patches in the encoder's place, which is what it is and is called alike by both."""
    width = module.encode_task_layer[0].in_features
    features = normal(2, 1 + 24, width)
    like = first_tensor(module)
    features = features.to(like.dtype)

    def instead(call: Callable[[Any], Any]) -> Case:
        def run(tokenizer: Any) -> Any:
            encoder = tokenizer._modules["encoder"]
            tokenizer._modules["encoder"] = _Given(features)
            try:
                return call(tokenizer)
            finally:
                tokenizer._modules["encoder"] = encoder

        return run

    images = normal(2, 3, 2, 2)
    yield instead(lambda tokenizer: tokenizer.encode_features(images))
    yield instead(lambda tokenizer: tokenizer.tokenize_image(images))
    yield instead(lambda tokenizer: tokenizer.tokenize_image(images, add_special=True))
    yield instead(lambda tokenizer: tokenizer.tokenize_image(images, used_for_llm=False)[1])


class _Given(nn.Module):
    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor, return_all_features: bool = False) -> Tensor:
        return self.features if return_all_features else self.features[:, 0]


register(Part("quantizer", quantizer_alike, check_quantizer, Quantizer, quantizer_cases))
register(Part("tokenizer", tokenizer_alike, check_tokenizer, Tokenizer, tokenizer_cases, tokenizer_needs))
