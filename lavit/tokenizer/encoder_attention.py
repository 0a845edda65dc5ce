"""Attention of the frozen encoder: which implementations are here, and which is fastest at its shape, by measurement.

The paper's heads have 88 channels, which no implementation was made for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lavit.tokenizer.layers import Attend, to_all

# An implementation other than PyTorch's own choice must be faster by this factor: a clock that is off by a little must
# not change which one runs, and with it the last bits.
MARGIN = 1.1
ROUNDS = 5


@dataclass(frozen=True)
class Measured:
    """seconds: the least of a few calls, or None where it does not run; problem: then why."""

    name: str
    seconds: float | None
    problem: str | None = None


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v with its N x N weights in memory: two matrix products, in the precision of ``q``."""
    q, k, v = (x.transpose(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    return ((q @ k.transpose(-2, -1)).softmax(dim=-1) @ v).transpose(1, 2)


def flash_attn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The package's own kernel."""
    from flash_attn import flash_attn_func

    return flash_attn_func(q, k, v)


def by_backend(backend: SDPBackend) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return attend


# The first is PyTorch's own choice, and that of training.
ON_CPU: dict[str, Attend] = {"sdpa": to_all, "explicit": explicit}
ON_CUDA: dict[str, Attend] = {
    "sdpa": to_all,
    "sdpa flash": by_backend(SDPBackend.FLASH_ATTENTION),
    "sdpa cudnn": by_backend(SDPBackend.CUDNN_ATTENTION),
    "sdpa efficient": by_backend(SDPBackend.EFFICIENT_ATTENTION),
    "flash-attn": flash_attn,
}


def implementations(device_type: str) -> dict[str, Attend]:
    return ON_CUDA if device_type == "cuda" else ON_CPU


@cache
def measured(
    device: torch.device, dtype: torch.dtype, batch: int = 1, rows: int = 257, heads: int = 16, width: int = 88
) -> tuple[Measured, ...]:
    """Every implementation on (batch, rows, heads, width), in the order of :func:`implementations`; once a process."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, rows, 3, heads, width, generator=generator).to(device, dtype)
    return tuple(_measure(name, attend, qkv) for name, attend in implementations(device.type).items())


def fastest(found: tuple[Measured, ...]) -> str:
    """The name of the fastest; of PyTorch's own choice, the first, unless another is faster by `MARGIN`.

    Where it does not run, on a GPU without memory left, say, any other that does."""
    own = found[0]
    runs = {one.name: one.seconds for one in found[1:] if one.seconds is not None}
    best = min(runs, key=lambda name: runs[name], default=own.name)
    return best if best in runs and (own.seconds is None or runs[best] * MARGIN < own.seconds) else own.name


@torch.no_grad()
def _measure(name: str, attend: Attend, qkv: Tensor) -> Measured:
    if name == "flash-attn" and find_spec("flash_attn") is None:
        return Measured(name, None, "not installed")
    q, k, v = qkv.unbind(2)
    try:
        seconds = _seconds(lambda: attend(q, k, v), qkv.device)
    except (RuntimeError, ImportError) as error:
        return Measured(name, None, (str(error).splitlines() or [type(error).__name__])[0][:100])
    return Measured(name, seconds)


def _seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    """The least of some runs, behind two that are not counted: what else the machine does only adds."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time  # work, whoever else is on the machine
    times = []
    for _ in range(2 + ROUNDS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begun = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - begun)
    return min(times[2:])
