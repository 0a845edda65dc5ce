"""The frozen encoder made ready for inference: weights in few bits, blocks compiled, batches of fixed sizes.

What runs in place of the blocks, by :meth:`LaVITTokenizer.for_inference`:

- ``compile`` on a CPU with weights in bfloat16: every product by oneDNN on weights that were laid out for it once, bias
  and GELU in the product's epilogue. With matrices of this size products are nearly all of the time, and nothing has to
  be compiled. A merger in bfloat16 has its products by the same.
- ``compile`` on a CPU with quantization="int8": products of int8, and what stands between two of them in one pass each
  (`lavit.kernels.int8_rows`).
- ``compile`` elsewhere: one block by torch.compile, the same code for all of them, their weights being arguments.
- on a GPU the whole encoder in one CUDA graph for each batch size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.kernels import int8_rows
from lavit.tokenizer.encoder import EvaAttention, EvaBlock, EvaEncoder
from lavit.tokenizer.encoder_attention import fastest, implementations, measured
from lavit.tokenizer.layers import LayerNorm, self_attention
from lavit.tokenizer.quantization import check, int8_weight, quantize

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST_SIZES = 8  # the compiler gives up beyond
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Mode:
    """How a tokenizer was prepared. dtype: of the encoder's weights. merger_dtype: of the merger's.

    rounded: whether weights were changed. attention: the implementation's name. products: who multiplies, "eager",
    "oneDNN", "int8 rows" or "torch.compile".
    """

    dtype: torch.dtype
    merger_dtype: torch.dtype
    compile: bool
    quantization: str | None
    batch_sizes: tuple[int, ...]
    rounded: bool = False
    attention: str = "sdpa"
    products: str = "eager"

    @property
    def asked(self) -> tuple[Any, ...]:
        """What the caller decides."""
        return self.dtype, self.merger_dtype, self.compile, self.quantization, self.batch_sizes


def as_dtype(name: str, given: torch.dtype | str | None, otherwise: torch.dtype) -> torch.dtype:
    """A dtype of `DTYPES` by itself or by name; None is ``otherwise``."""
    if given is None:
        return otherwise
    found = DTYPES.get(given) if isinstance(given, str) else given
    if found is None or found not in DTYPES.values():
        raise ValueError(f"{name}: expected {', '.join(DTYPES)} or None, got {given!r}")
    return found


def as_batch_sizes(given: Sequence[int]) -> tuple[int, ...]:
    """Sorted, each once."""
    listed = list(given) if isinstance(given, Iterable) else []
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in listed)
    if not whole or not 1 <= len(set(listed)) <= MOST_SIZES:
        raise ValueError(f"batch_sizes: expected one to {MOST_SIZES} positive whole numbers, got {given!r}")
    return tuple(sorted(set(listed)))


def prepare(
    encoder: EvaEncoder,
    merger: nn.Module,
    *,
    dtype: torch.dtype | str | None,
    merger_dtype: torch.dtype | str | None,
    compile: bool,
    quantization: str | None,
    batch_sizes: Sequence[int],
) -> None:
    """Prepare the encoder, and cast the merger, where they are. See :meth:`LaVITTokenizer.for_inference`."""
    weight = encoder.pos_embed
    mode = Mode(
        as_dtype("dtype", dtype, weight.dtype),
        as_dtype("merger_dtype", merger_dtype, next(merger.parameters()).dtype),
        compile,
        quantization,
        as_batch_sizes(batch_sizes),
    )
    before = encoder.prepared
    if isinstance(before, Prepared):
        if before.mode.asked != mode.asked:
            raise RuntimeError(
                f"for_inference: this tokenizer is prepared already, as {before.mode}; load it again to have {mode}"
            )
        return
    check(quantization, weight.device, mode.dtype)
    same = quantization is None and mode.dtype == weight.dtype
    mode = replace(mode, rounded=not same or mode.merger_dtype != next(merger.parameters()).dtype)
    out_dtype = weight.dtype if same else torch.float32
    as_before = same and not compile
    encoder.requires_grad_(False).to(mode.dtype)
    merger.to(mode.merger_dtype)
    attentions = [module for module in encoder.modules() if isinstance(module, EvaAttention)]
    for attention in attentions:
        attention.join_bias()
    if quantization is not None:
        quantize(encoder, quantization)
    mode = _with_attention(encoder, attentions, mode)
    run, mode = _runner(encoder, mode)
    if compile and packs(weight.device, mode.merger_dtype):
        for layer in [module for module in merger.modules() if type(module) is nn.Linear]:
            layer.forward = PackedLinear(layer)  # type: ignore[assignment]
    encoder.prepared = Prepared(encoder, run, mode, None if as_before else out_dtype)
    encoder.register_load_state_dict_pre_hook(_refuse_weights)


class Prepared:
    """Images (B, 3, S, S) -> rows (B, 1 + N, C) in ``out_dtype``, by ``run`` on batches of the sizes that it wants.

    out_dtype: None where nothing was changed; autocast is then the caller's, as it was.
    """

    def __init__(self, encoder: EvaEncoder, run: Run, mode: Mode, out_dtype: torch.dtype | None) -> None:
        weight = encoder.pos_embed
        self.run, self.mode, self.out_dtype = run, mode, out_dtype
        self.device, self.dtype = weight.device, weight.dtype
        self.weight = weight

    def __call__(self, images: Tensor) -> Tensor:
        if (self.weight.device, self.weight.dtype) != (self.device, self.dtype):
            raise RuntimeError(
                f"for_inference: prepared on {self.device} in {self.dtype}, now on {self.weight.device} in "
                f"{self.weight.dtype}; move and cast a tokenizer before it is prepared"
            )
        if self.out_dtype is None:
            return self.run(images)
        if len(images) == 0:  # for which not every product of int8 is made
            return images.new_zeros(0, *self.weight.shape[1:], dtype=self.out_dtype)
        with torch.autocast(self.device.type, enabled=False):
            return self._batches(images, self.out_dtype)

    def _batches(self, images: Tensor, out_dtype: torch.dtype) -> Tensor:
        if self.mode.products != "torch.compile":
            return self.run(images).to(out_dtype)
        rows, begun = [], 0
        for count, size in shares(len(images), self.mode.batch_sizes):
            part = images[begun : begun + count]
            if count < size:
                part = torch.cat((part, part.new_zeros(size - count, *part.shape[1:])))
            rows.append(self.run(part)[:count].to(out_dtype))
            begun += count
        return rows[0] if len(rows) == 1 else torch.cat(rows)


def shares(count: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """How ``count`` images are run in batches of ``sizes`` (ascending): (images, size of their batch), in order.

    The smallest batch that takes all that are left, if they fill more than half of it or there is no smaller one;
    else as many as fill one.
    """
    found = []
    while count:
        fits = [size for size in sizes if size >= count]
        full = [size for size in sizes if size <= count]
        if fits and (not full or count > fits[0] // 2):
            found.append((count, fits[0]))
            break
        found.append((full[-1], full[-1]))
        count -= full[-1]
    return found


def _with_attention(encoder: EvaEncoder, attentions: list[EvaAttention], mode: Mode) -> Mode:
    """The fastest attention for the blocks; without ``compile`` PyTorch's own choice stays, and with it every bit."""
    weight = encoder.pos_embed
    if not mode.compile or not attentions:
        return mode
    batch, heads = mode.batch_sizes[-1] if weight.device.type == "cuda" else 1, attentions[0].heads
    shape = batch, weight.shape[1], heads, weight.shape[2] // heads
    name = fastest(measured(weight.device, mode.dtype, *shape))
    for attention in attentions:
        attention.attend = implementations(weight.device.type)[name]
    return replace(mode, attention=name)


def _runner(encoder: EvaEncoder, mode: Mode) -> tuple[Run, Mode]:
    """What turns images into rows, and the mode with its name."""
    blocks: list[Run] = list(encoder.blocks)  # type: ignore[arg-type]
    if not mode.compile:
        return _through(encoder, blocks), mode
    if mode.quantization is None and packs(encoder.pos_embed.device, mode.dtype):
        blocks = [PackedBlock(block) for block in encoder.blocks]  # type: ignore[arg-type]
        return _through(encoder, blocks), replace(mode, products="oneDNN")
    if mode.quantization == "int8" and runs_int8_rows(encoder.pos_embed.device, mode.dtype):
        blocks = [Int8Block(block) for block in encoder.blocks]  # type: ignore[arg-type]
        return _through(encoder, blocks), replace(mode, products="int8 rows")
    keep_compiled_code()
    # One function with the block as its argument: its weights are inputs of the code, not constants in it. The compiler
    # counts what it has made of a code object, and gives up after eight: every tokenizer has one of its own.
    code = FunctionType(_block.__code__.replace(), globals())
    compiled = torch.compile(code, dynamic=False)
    blocks = [partial(compiled, block) for block in encoder.blocks]
    run = _through(encoder, blocks)
    if encoder.pos_embed.device.type == "cuda":
        run = Graphs(run)
    return run, replace(mode, products="torch.compile")


def _block(block: EvaBlock, x: Tensor) -> Tensor:
    return block(x)


def _through(encoder: EvaEncoder, blocks: Sequence[Run]) -> Run:
    def run(images: Tensor) -> Tensor:
        x = encoder.embed(images)
        for block in blocks:
            x = block(x)
        return x

    return run


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies ``dtype`` here on weights that are laid out once.

    Not float32, of which the second layout would cost 4 GB more for a tenth of the time.
    """
    if device.type != "cpu" or dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


class PackedLinear:
    """What a linear layer computes, by oneDNN on weights laid out once, and again when they have changed.

    Where gradients are asked for, which oneDNN's products do not have, the layer's own product.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.packed, self.of = self._pack()

    def _pack(self) -> tuple[Tensor, tuple[int, ...]]:
        return torch.ops.mkldnn._reorder_linear_weight(self.layer.weight.detach()), self._state()

    def _state(self) -> tuple[int, ...]:
        weight = self.layer.weight
        return weight.data_ptr(), 0 if weight.is_inference() else weight._version

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return F.linear(x, weight, bias)
        if self.of != self._state():
            self.packed, self.of = self._pack()
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, "none", [], "")


class PackedBlock:
    """A block of the encoder by oneDNN: products in bfloat16 on weights laid out once, GELU in the product's epilogue.

    What the blocks hand on, (B, N, C), is float32, as are the norms: rounded at each of 80 sums it would lose more than
    the products do.
    """

    def __init__(self, block: EvaBlock) -> None:
        attention, mlp = block.attn, block.mlp
        self.heads, self.attend = attention.heads, attention.attend
        self.norm1, self.norm2 = Norm(block.norm1), Norm(block.norm2)
        self.qkv, self.proj, self.fc1, self.fc2 = (
            (torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach()), layer.bias)
            for layer in (attention.qkv, attention.proj, mlp.fc1, mlp.fc2)
        )

    def __call__(self, x: Tensor) -> Tensor:
        product, dtype = torch.ops.mkldnn._linear_pointwise, self.qkv[1].dtype
        x = x.float()
        qkv = product(self.norm1(x).to(dtype), *self.qkv, "none", [], "")
        x = x + product(self_attention(qkv, self.heads, self.attend), *self.proj, "none", [], "")
        hidden = product(self.norm2(x).to(dtype), *self.fc1, "gelu", [], "none")
        return x.add_(product(hidden, *self.fc2, "none", [], ""))


class Norm:
    """LayerNorm in float32, of rows in float32."""

    def __init__(self, norm: LayerNorm) -> None:
        self.shape, self.eps = norm.normalized_shape, norm.eps
        self.weight, self.bias = norm.weight.detach().float(), norm.bias.detach().float()

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


def runs_int8_rows(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the compiled form of what stands between products of int8 is there; of the plain one torch.compile makes
    something faster."""
    return dtype in int8_rows.TYPES and int8_rows.OPERATION.choose("auto", device) == "cpp"


class Int8Block:
    """A block of the encoder with products of int8: rows of activations are rounded as they come, one scale each.

    Between blocks float32, as in :class:`PackedBlock`; attention in the encoder's dtype.
    """

    def __init__(self, block: EvaBlock) -> None:
        attention, mlp = block.attn, block.mlp
        self.heads, self.attend, self.dtype = attention.heads, attention.attend, attention.q_bias.dtype
        self.norm1, self.norm2 = Norm(block.norm1), Norm(block.norm2)
        self.qkv, self.proj, self.fc1, self.fc2 = (
            (*int8_weight(layer.weight), layer.bias.detach().float())
            for layer in (attention.qkv, attention.proj, mlp.fc1, mlp.fc2)
        )

    def __call__(self, x: Tensor) -> Tensor:
        shape, x = x.shape, x.float().flatten(0, 1)
        qkv = int8_rows.scale_products(*_sums(int8_rows.quantize_rows(self.norm1(x)), self.qkv), dtype=self.dtype)
        attended = self_attention(qkv.unflatten(0, shape[:2]), self.heads, self.attend).flatten(0, 1)
        x = int8_rows.scale_products(*_sums(int8_rows.quantize_rows(attended), self.proj), residual=x)
        hidden = int8_rows.gelu_products(*_sums(int8_rows.quantize_rows(self.norm2(x)), self.fc1))
        return int8_rows.scale_products(*_sums(hidden, self.fc2), residual=x).unflatten(0, shape[:2])


def _sums(rows: tuple[Tensor, Tensor], layer: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of products, the scales of both factors, and the bias."""
    (q, scale), (weight, columns, bias) = rows, layer
    return torch._int_mm(q, weight.t()), scale, columns, bias


class Graphs:
    """A run on a GPU as CUDA graphs, one for each shape of its input, recorded when a shape first comes."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.recorded: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape)
        if shape not in self.recorded:
            self.recorded[shape] = self._record(images.float())
        graph, given, result = self.recorded[shape]
        given.copy_(images)
        graph.replay()
        return result.clone()  # the next replay writes over it

    def _record(self, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        given = images.clone()
        stream = torch.cuda.Stream(images.device)
        stream.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and lets libraries choose, outside of the recording
                self.run(given)
        torch.cuda.current_stream(images.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next((graph.pool() for graph, _, _ in self.recorded.values()), None)
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            result = self.run(given)
        return graph, given, result


def keep_compiled_code() -> None:
    """Have inductor keep its code in the user's cache rather than the folder of temporary files, which is emptied.

    A set TORCHINDUCTOR_CACHE_DIR, or XDG_CACHE_HOME for where caches are, is respected.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(cache) / "lavit" / "inductor"))


def _refuse_weights(*_: Any) -> None:
    raise RuntimeError("for_inference: a prepared tokenizer takes no other weights; load them before it is prepared")
