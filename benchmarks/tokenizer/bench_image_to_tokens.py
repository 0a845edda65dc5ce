"""From images to codes at the paper's size: the release's way and every mode of `for_inference`.

``pytest benchmarks/tokenizer/bench_image_to_tokens.py``; on a machine with other work with
``OMP_NUM_THREADS=1 ... --benchmark-timer=time.process_time``. Real width, depth and number of patches, random weights.

"release" is the release's formula on the same weights: attention with its weights in memory, the merger on all rows,
the whole matrix of distances and its one-hot rows; in float32, under bfloat16 autocast, and with weights in bfloat16 by
torch.compile, block by block. The last way and ours of the same precision are the fair pair.

Parity: the cosine of the encoder's features with float32's, patch by patch, at least `COSINE`; beside it how many
patches are kept alike, and how many of them have the same code. Random weights make codes that lie closer together
than a trained tokenizer's: see ``python -m lavit.tokenizer.agreement`` for one.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import measure
from benchmarks.tokenizer.bench_merger import release_attention
from lavit.kernels import Selection
from lavit.kernels.types import compute_dtype
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig
from lavit.tokenizer.agreement import Record, compare
from lavit.tokenizer.encoder import EvaBlock
from lavit.tokenizer.inference import as_dtype
from lavit.tokenizer.merger import MergerBlock
from lavit.tokenizer.quantization import check
from lavit.tokenizer.selector import in_precision

DRY = "LAVIT_DRY" in os.environ
COSINE = {"float32": 1 - 1e-6, "bfloat16": 0.999, "8 bits": 0.99}


@dataclass(frozen=True)
class Way:
    """precision: a name of `COSINE`. dtype: of the release's weights. modes: for `for_inference`; None: the release."""

    name: str
    precision: str
    dtype: str = "float32"
    modes: dict[str, Any] | None = field(default=None, hash=False)
    autocast: bool = False
    compile: bool = False
    on: tuple[str, ...] = ("cpu", "cuda")


LOW = {"dtype": "bfloat16", "merger_dtype": "bfloat16"}
BATCHES = {"cpu": (1,) if DRY else (1, 4), "cuda": (1, 8, 64)}
ON_CPU, ON_CUDA = ("cpu",), ("cuda",)
# On a GPU, where a minute may not be enough for all, in the order of importance.
WAYS = (
    Way("release, float32", "float32", on=ON_CPU),
    Way("lavit, float32", "float32", modes={}, on=ON_CPU),
    Way("lavit, float32, compiled", "float32", modes={"compile": True}, on=ON_CPU),
    Way("release, autocast", "bfloat16", autocast=True, on=ON_CPU),
    Way("lavit, bfloat16 encoder", "bfloat16", modes={"dtype": "bfloat16"}, on=ON_CPU),
    Way("release, bfloat16", "bfloat16", "bfloat16", on=ON_CUDA),
    Way("lavit, bfloat16, compiled", "bfloat16", modes=LOW | {"compile": True}),
    Way("release, bfloat16, compiled", "bfloat16", "bfloat16", compile=True),
    Way("lavit, float8, compiled", "8 bits", modes=LOW | {"quantization": "float8", "compile": True}, on=ON_CUDA),
    Way("lavit, bfloat16", "bfloat16", modes=LOW),
    Way("lavit, int8, compiled", "8 bits", modes=LOW | {"quantization": "int8", "compile": True}, on=ON_CPU),
    Way("lavit, int8 weights", "8 bits", modes=LOW | {"quantization": "int8-weight-only"}, on=ON_CPU),
)


# Way by way, since a model of this size is made once for all its batches; on a GPU also the encoder alone.
CASES = [
    pytest.param(way, kind, batch, part, id=f"{way.name}-{kind}-B{batch}-{part}".replace(", ", "-"))
    for way in WAYS
    for kind in way.on
    for batch in BATCHES[kind]
    for part in (("tokens", "encoder") if kind == "cuda" and batch == max(BATCHES[kind]) else ("tokens",))
]


@pytest.mark.parametrize(("way", "kind", "batch", "part"), CASES)
def bench_image_to_tokens(benchmark, device, way, kind, batch, part):
    if kind != device.type:
        pytest.skip(f"measured on {kind}")
    exact = first(recorded(kind), batch)
    model, pixels = model_of(way, kind), images(kind, batch)
    agreement = compare(exact, record(way, model, pixels))
    encode, codes = features_by(way, model), codes_by(way, model)
    work = {"operations": batch * operations(model.config)} if part == "encoder" else {}
    measure(
        benchmark,
        device,
        f"{'image to tokens' if part == 'tokens' else 'the encoder alone'}, lavit-g, B={batch}",
        (lambda: codes(pixels, None)) if part == "tokens" else lambda: encode(pixels),
        implementation=way.name,
        baseline=way.name == ("release, float32" if kind == "cpu" else "release, bfloat16"),
        passed=agreement.features >= COSINE[way.precision],
        parity={"cosine": agreement.features, "keep": agreement.keep, "ids": agreement.ids},
        rounds=2 if kind == "cpu" else None,
        samples=batch,
        **work,
    )


def operations(config: LaVITTokenizerConfig) -> float:
    """Multiplications and additions of the encoder's blocks for an image."""
    rows, width = config.num_patches + 1, config.hidden_size
    weights = 4 * width**2 + 2 * width * int(width * config.encoder_mlp_ratio)
    return 2.0 * config.encoder_depth * (rows * weights + 2 * rows**2 * width)


@lru_cache(maxsize=1)
def model_of(way: Way, device: str) -> LaVITTokenizer:
    if way.modes is not None:
        dtype = as_dtype("dtype", way.modes.get("dtype"), torch.float32)
        try:
            check(way.modes.get("quantization"), torch.device(device), dtype)
        except (ImportError, ValueError) as error:
            pytest.skip(str(error))
    model_of.cache_clear()
    gc.collect()
    return prepared(way, random_model(device), BATCHES[device])


def prepared(way: Way, model: LaVITTokenizer, batches: Sequence[int]) -> LaVITTokenizer:
    if way.modes is not None:
        return model.for_inference(**way.modes, batch_sizes=batches)
    dtype = as_dtype("dtype", way.dtype, torch.float32)
    model.encoder.to(dtype)
    model.causal_encoder.to(dtype)
    return model


@torch.no_grad()
def random_model(device: str, **overrides: Any) -> LaVITTokenizer:
    """Of the paper's size, but for what tokenizing does not use; without a random number for each of 1.4e9 weights."""
    unused: dict[str, Any] = {"encoder_head_dim": None, "decoder_depth": 1, "projection_dim": None}
    small = {"hidden_size": 176, "encoder_heads": 2, "num_heads": 2, "encoder_depth": 2, "merger_depth": 1}
    unused |= small if DRY else {}
    with torch.device("meta"):
        model = LaVITTokenizer(LaVITTokenizerConfig(**{**unused, **overrides}))
    model = model.to_empty(device=device).eval()
    noise = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)).to(device)  # a prime: no row repeats
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.LayerNorm):
                parameter.fill_(float(name == "weight"))
            else:
                flat, scale = parameter.view(-1), 1.0 if isinstance(module, nn.Embedding) else 0.02
                for begin in range(0, flat.numel(), len(noise)):
                    part = flat[begin : begin + len(noise)]
                    part.copy_(noise[: len(part)] * scale)
    model.quantize.embedding.weight.copy_(F.normalize(model.quantize.embedding.weight, dim=1))
    model.token_predictor.out_conv[-1].bias.copy_(torch.tensor([0.5, 1.0]).log())  # about a third is kept
    return model


@cache
def images(device: str, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(max(BATCHES[device]), 3, 224, 224, generator=generator).to(device)[:batch]


@cache
def recorded(device: str) -> Record:
    """Of the largest batch, in float32 by this library's eager way."""
    model = model_of(Way("lavit, float32", "float32", modes={}), device)
    parts = [model.encode_features(part) for part in images(device, max(BATCHES[device])).split(8)]
    return _record(model, torch.cat(parts), lambda features: ours(model, None, features))


def record(way: Way, model: LaVITTokenizer, pixels: Tensor) -> Record:
    features = features_by(way, model)(pixels)
    return _record(model, features, lambda features: codes_by(way, model)(None, features))


def _record(model: LaVITTokenizer, features: Tensor, codes: Callable[[Tensor], Tensor]) -> Record:
    keep = model.select(features.float(), seeds=range(len(features))).keep > 0.5
    return Record(features.float().cpu(), keep.cpu(), codes(features).cpu(), None)


def first(whole: Record, batch: int) -> Record:
    """The record of the first images of a batch."""
    keep = whole.keep[:batch]
    return Record(whole.features[:batch], keep, whole.ids[: int(keep.sum())], None)


def codes_by(way: Way, model: LaVITTokenizer) -> Callable[[Tensor | None, Tensor | None], Tensor]:
    if way.modes is not None:
        return lambda pixels, features: ours(model, pixels, features)
    return lambda pixels, features: release(way, model, pixels, features)


def features_by(way: Way, model: LaVITTokenizer) -> Callable[[Tensor], Tensor]:
    if way.modes is not None:
        return model.encode_features
    return lambda pixels: release_features(way, model, pixels)


def ours(model: LaVITTokenizer, pixels: Tensor | None, features: Tensor | None) -> Tensor:
    batch = len(pixels) if pixels is not None else len(features)  # type: ignore[arg-type]
    return model.encode(pixels, features=features, seeds=range(batch)).ids


# The release's way.


def block_of(way: Way, block: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return _compiled(block) if way.compile else block


@cache
def _compiled(block: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(block, dynamic=False)


def encoder_block(block: EvaBlock, x: Tensor) -> Tensor:
    attention = block.attn
    qkv = F.linear(block.norm1(x), attention.qkv.weight, attention.joined_bias())
    q, k, v = qkv.unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
    x = x + attention.proj((weights @ v).transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))


def merger_block(block: MergerBlock, x: Tensor, origin: Tensor, seen_causal: Tensor, seen_cross: Tensor) -> Tensor:
    causal, cross = block.token_causal_attn, block.token_cross_attn
    q, k, v = causal.qkv(block.norm0(x)).chunk(3, dim=-1)
    x = x + causal.proj(release_attention(q, k, v, seen_causal, causal.heads))
    q, k, v = cross.query(block.norm1(x)), cross.key(origin), cross.value(origin)
    x = x + cross.proj(release_attention(q, k, v, seen_cross, cross.heads))
    return x + block.mlp(block.norm2(x))


@torch.no_grad()
def release_features(way: Way, model: LaVITTokenizer, pixels: Tensor) -> Tensor:
    run = block_of(way, encoder_block)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=way.autocast):
        x = model.encoder.embed(pixels)
        for block in model.encoder.blocks:
            x = run(block, x)
    return x[:, 1:]


@torch.no_grad()
def release(way: Way, model: LaVITTokenizer, pixels: Tensor | None, features: Tensor | None) -> Tensor:
    x = release_features(way, model, pixels) if pixels is not None else features
    assert x is not None
    selection = model.select(x.float(), seeds=range(len(x)))
    run = block_of(way, merger_block)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=way.autocast):
        seen, origin = masks(selection, x.dtype), model.causal_encoder.ln_vision(x)
        for block in model.causal_encoder.blocks:
            x = run(block, x, origin, *seen)
        merged = model.causal_encoder.norm(x)[selection.keep > 0.5]
    rows = merged.to(compute_dtype(merged))  # the release, too, decides ids in float32
    z, codebook = model.quantize.normalize(in_precision(model.encode_task_layer, rows)), model.quantize.codebook()
    distance = z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.T
    ids = distance.argmin(1)
    F.one_hot(ids, len(codebook)).to(z.dtype)  # which the release makes, and never uses
    return ids


def masks(selection: Selection, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    n = selection.keep.shape[1]
    keep, eye = selection.keep[:, None, None, :].to(dtype), torch.eye(n, dtype=dtype, device=selection.keep.device)
    return (keep * (1 - eye) + eye).tril(), (1 - keep).expand(-1, -1, n, -1)
