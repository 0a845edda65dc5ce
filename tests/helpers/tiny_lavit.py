"""A whole model of a few thousand parameters, and batches for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig

TEXT_SIZE = 43
NUM_CODES = 16
SIDE = 16


def tokenizer(**overrides: Any) -> LaVITTokenizer:
    """16 patches, 32 channels, 16 codes."""
    torch.manual_seed(0)
    sizes = {"image_size": SIDE, "hidden_size": 32, "encoder_depth": 1, "merger_depth": 1, "decoder_depth": 1}
    config = LaVITTokenizerConfig.preset(
        "small", **{**sizes, "num_codes": NUM_CODES, "code_dim": 8, "projection_dim": None, **overrides}
    )
    return LaVITTokenizer(config).eval()


def llama(vocab_size: int = TEXT_SIZE, **overrides: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(
        LlamaConfig(**{**sizes, "num_key_value_heads": 2, "vocab_size": vocab_size, **overrides})
    ).eval()


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
