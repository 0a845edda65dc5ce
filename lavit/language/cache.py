"""A key-value cache of fixed size and the forward pass of one token over it.

transformers' ``StaticCache`` reads all its slots for every token, cannot drop rows, and leaves mask and rotation to be
made anew in every pass. All rows of a batch padded on the left write to the same slot, and when a generation begins its
positions are known: so the rotations are made once, the mask changes in one place a token, and only slots in use are
read. What a layer computes is in `lavit.language.step_layers`.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, LlamaModel
from transformers.cache_utils import DynamicLayer

from lavit.kernels.add_rms_norm.library import OPERATION as ADD_RMS_NORM
from lavit.kernels.decode_attention.library import OPERATION as DECODE_ATTENTION
from lavit.language.packed_layers import norm_of
from lavit.language.step_layers import step_layers

# The attention on a GPU wants rows of the mask that begin at multiples of 16 bytes, else it copies the mask.
ALIGNED = 16

# What transformers calls a cache that it is given: renamed in 5.24 or so.
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"


class PromptCache(DynamicCache):
    """transformers' cache for prompts that are padded on the left, into which no padding goes.

    A padding row has no token to attend to. Eager attention makes NaN of it where all its scores become -inf: always in
    float64, whose least number, which the mask adds, is -inf in the softmax's float32; in float16 if the scores are
    below -16. In the next layer a true row gives the padding weight 0, and 0 * NaN is NaN. So keys and values of
    padding rows are zeros, before attention reads them.
    """

    def __init__(self, mask: Tensor) -> None:
        """mask: (N, P) bool, true at the tokens of the prompts, which are read first and in one pass."""
        super().__init__()
        self.padding = ~mask[:, None, :, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.get_seq_length(layer_idx) == 0:
            padding = self.padding.to(key_states.device)  # layers may lie on several
            key_states, value_states = (x.masked_fill(padding, 0) for x in (key_states, value_states))
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


class KeyValueCache:
    """Keys and values of every layer for N sequences that end together, and what the coming tokens need.

    keys, values: for each layer (N, key-value heads, L, head dim). mask: (N, 1, 1, L), 0 at slots to be read.
    cos, sin: (N, new tokens, head dim) rotations of the coming tokens; of sin the first half is negated.
    slot, token: (1,) int64 on the device, where the next token is written and which of the new ones it is.
    """

    def __init__(
        self, model: LlamaForCausalLM, prefilled: DynamicCache, mask: Tensor, rows: Tensor, new_tokens: int
    ) -> None:
        """prefilled: the cache of the prompts, padded on the left, which is emptied. mask: (B, P) bool, true at the
        prompts' tokens. rows: (N,) int64, the prompt of each sequence. new_tokens: how many tokens will be fed, >= 1.
        """
        self.model = model.model
        self.layers = step_layers(model.model)
        batch, self.prompt = mask.shape
        length = -(-(self.prompt + new_tokens) // ALIGNED) * ALIGNED
        padding = ~mask[rows, None, :, None]
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        for layer in prefilled.layers:
            assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
            for kept, found in ((self.keys, layer.keys), (self.values, layer.values)):
                # Zeros: a slot that is not to be read has weight 0, which must not meet a NaN.
                kept.append(found.new_zeros(len(rows), found.shape[1], length, found.shape[3]))
                kept[-1][:, :, : self.prompt] = found[rows].masked_fill_(padding, 0)
            layer.keys = layer.values = None
        like = self.keys[0]
        # Chosen once: a check of every call's arguments would take longer than a small model's attention.
        impl = "auto" if self._of_one_dtype() else "reference"
        self._attend = DECODE_ATTENTION.module(impl, like).decode_attention
        self._add_norm = ADD_RMS_NORM.module(impl, like).add_rms_norm
        hidden = torch.finfo(like.dtype).min
        self.mask = like.new_full((batch, 1, 1, length), hidden)
        self.mask[:, 0, 0, : self.prompt].masked_fill_(mask, 0)
        self.mask = self.mask[rows]
        positions = mask.sum(1, keepdim=True) + torch.arange(new_tokens, device=mask.device)
        cos, sin = self.model.rotary_emb(like, positions)
        half = sin.shape[-1] // 2
        self.cos = cos[rows]
        self.sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)[rows]
        self.slot = torch.full((1,), self.prompt, dtype=torch.int64, device=mask.device)
        self.token = torch.zeros_like(self.slot)

    def _of_one_dtype(self) -> bool:
        """Whether a pass meets one dtype only; autocast and models of mixed precision leave it to PyTorch's operations
        what becomes of two."""
        found = {x.dtype for x in (*self.keys, *self.values, *self.model.parameters()) if x.is_floating_point()}
        return len(found) == 1 and not torch.is_autocast_enabled(self.keys[0].device.type)

    def select(self, rows: Tensor) -> None:
        """Keep these sequences, (N',) int64; in new memory, so what was recorded over the old one is void."""
        self.keys = [x[rows] for x in self.keys]
        self.values = [x[rows] for x in self.values]
        self.mask, self.cos, self.sin = self.mask[rows], self.cos[rows], self.sin[rows]

    def step(self, ids: Tensor, fed: int | None) -> Tensor:
        """One token a sequence: ids (N,) -> last hidden states (N, H), normed, as the head reads them.

        fed: new tokens fed before this one, as the host knows it, so that slots beyond them are not read; None reads
        all slots, for a recording that is to serve every token.
        """
        window = self.mask.shape[-1]
        if fed is not None:
            window = min(window, -(-(self.prompt + fed + 1) // ALIGNED) * ALIGNED)
        self.mask.index_fill_(3, self.slot, 0)
        cos, sin = self.cos.index_select(1, self.token), self.sin.index_select(1, self.token)
        x, delta = self.model.embed_tokens(ids), None
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            x, normed = self._add_norm(x, delta, *layer.attention_norm)
            qkv = layer.qkv(normed)
            read = self._attend(qkv, keys, values, self.mask, cos, sin, self.slot, window, layer.scaling)
            x, normed = self._add_norm(x, layer.out(read), *layer.mlp_norm)
            delta = layer.mlp(normed)
        self.slot += 1
        self.token += 1
        return self._add_norm(x, delta, *norm_of(self.model.norm))[1]
