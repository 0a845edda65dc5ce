"""Weights of the frozen encoder's linear layers in 8 bits, by torchao.

=================  =====================================================================  ===================
"float8"           weights and, on the fly, activations in float8, one scale a row        CUDA from sm_89 on
"int8"             weights and, on the fly, activations in int8, one scale a row          CPU, CUDA
"int8-weight-only" weights in int8, products in the encoder's dtype: half of its memory   CPU, CUDA
=================  =====================================================================  ===================

A row of activations is one patch, so that no image's tokens depend on its neighbours in the batch. What a choice does
to the tokens is measured by `lavit.tokenizer.agreement`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lavit.tokenizer.encoder import EvaEncoder

NAMES = ("float8", "int8", "int8-weight-only")
FLOAT8_CAPABILITY = (8, 9)


def check(name: str | None, device: torch.device, dtype: torch.dtype) -> None:
    """ValueError for a name that is not known, or that has nothing to run on; ImportError without torchao."""
    if name is None:
        return
    if name not in NAMES:
        raise ValueError(f"quantization: expected {', '.join(NAMES)} or None, got {name!r}")
    if name == "float8":
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < FLOAT8_CAPABILITY:
            raise ValueError(f"quantization: float8 needs a CUDA device of compute 8.9 or more, got {device}")
        if dtype != torch.bfloat16:
            raise ValueError(f"dtype: expected bfloat16 with quantization='float8', got {dtype}")
    try:
        import torchao  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"quantization={name!r} needs torchao ({error}): pip install 'lavit[quantization]'"
        ) from error


def quantize(encoder: EvaEncoder, name: str) -> None:
    """Replace the weights of the blocks' linear layers, in place. Names stay as they are."""
    from torchao.quantization import quantize_

    quantize_(encoder.blocks, _config(name), filter_fn=lambda module, _: isinstance(module, nn.Linear))


def _config(name: str) -> Any:
    from torchao import quantization as ao

    if name == "float8":
        return ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow())
    if name == "int8":
        return ao.Int8DynamicActivationInt8WeightConfig()
    return ao.Int8WeightOnlyConfig()
