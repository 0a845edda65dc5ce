"""A language model small enough to compute again in full for every token."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lavit.kernels import Ragged
from lavit.language.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=40, num_codes=31)


def tiny_llama(dtype: torch.dtype = torch.float64, *, key_heads: int = 2, positions: int = 64) -> LlamaForCausalLM:
    """Two layers of width 32, weights large enough that the next token depends on the whole prompt; 5 unused ids."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCABULARY.size + 5,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=key_heads,
        max_position_embeddings=positions,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def prompt(length: int, seed: int = 0) -> Tensor:
    """(length,) text ids, the last one [IMG]."""
    ids = torch.randint(0, VOCABULARY.text_size, (length,), generator=torch.Generator().manual_seed(seed))
    ids[-1] = VOCABULARY.begin_id
    return ids


def prompts(*lengths: int) -> Ragged:
    return Ragged.from_list([prompt(length, seed) for seed, length in enumerate(lengths)])
