"""Modules built like the release's: the same names and shapes of parameters, the same arguments, the same arithmetic.

Written for the tests from the formulas; all rows, N x N weights in memory, loops over images, two passes a token.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from lavit.language.cache import CACHE

PATCHES_A_SIDE, PATCH, CODES, CODE_DIM = 6, 4, 64, 8
BEGIN, END, FIRST = 32000, 32001, 32002


class Norm(nn.LayerNorm):
    """Computed in float32 at least."""

    def forward(self, x):
        if x.dtype == torch.float64:
            return super().forward(x)
        return super().forward(x.float()).to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.act = nn.Linear(width, 3 * width), nn.GELU()
        self.fc2, self.drop = nn.Linear(3 * width, width), nn.Dropout(0.0)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def heads_apart(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def heads_together(x):
    return x.transpose(1, 2).flatten(2)


class EvaAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.subln, self.xattn, self.rope, self.window_size = False, False, None, None
        self.relative_position_bias_table = None
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.attn_drop, self.inner_attn_ln = nn.Dropout(0.0), nn.Identity()
        self.proj, self.proj_drop = nn.Linear(width, width), nn.Dropout(0.0)

    def forward(self, x, rel_pos_bias=None, attn_mask=None):
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        q, k, v = (heads_apart(p, self.num_heads) for p in F.linear(x, self.qkv.weight, bias).chunk(3, dim=-1))
        s = (q * self.scale) @ k.transpose(-1, -2)
        if rel_pos_bias is not None:
            s = s + rel_pos_bias.type_as(s)
        if attn_mask is not None:
            s = s.masked_fill(~attn_mask.bool()[:, None, None], -torch.inf)
        return self.proj_drop(self.proj(heads_together(self.attn_drop(s.softmax(dim=-1)) @ v)))


class EvaBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.attn = Norm(width, eps=1e-6), EvaAttention(width, heads)
        self.norm2, self.mlp = Norm(width, eps=1e-6), Mlp(width)

    def forward(self, x, rel_pos_bias=None, attn_mask=None):
        x = x + self.attn(self.norm1(x), rel_pos_bias=rel_pos_bias, attn_mask=attn_mask)
        return x + self.mlp(self.norm2(x))


class EvaEncoder(nn.Module):
    def __init__(self, width, heads, depth, side):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, side * side + 1, width) * 0.02)
        self.blocks = nn.ModuleList(EvaBlock(width, heads) for _ in range(depth))
        self.norm, self.head = Norm(width, eps=1e-6), nn.Linear(width, 5)

    def forward(self, x, return_all_features=False):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x if return_all_features else self.head(self.norm(x)[:, 0])


def weighted(scores, seen, eps=1e-6):
    """(exp(s - m) P + eps / N) / (sum exp(s - m) P + eps), m over all columns, in float32 at least."""
    n = scores.shape[-1]
    e = scores - scores.amax(dim=-1, keepdim=True)
    e = (e if e.dtype == torch.float64 else e.float()).exp() * seen
    return ((e + eps / n) / (e.sum(dim=-1, keepdim=True) + eps)).type_as(scores)


class CausalAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.attn_drop = nn.Linear(width, 3 * width), nn.Dropout(0.0)
        self.proj, self.proj_drop = nn.Linear(width, width), nn.Dropout(0.0)

    def forward(self, x, decisions):
        q, k, v = (heads_apart(p, self.num_heads) for p in self.qkv(x).chunk(3, dim=-1))
        eye = torch.eye(x.shape[1], dtype=decisions.dtype, device=x.device)
        keep = decisions[:, None, None, :]
        seen = (keep + (1 - keep) * eye).tril()
        a = self.attn_drop(weighted((q @ k.transpose(-1, -2)) * self.scale, seen))
        return self.proj_drop(self.proj(heads_together(a @ v)))


class CrossAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attn_drop, self.proj, self.proj_drop = nn.Dropout(0.0), nn.Linear(width, width), nn.Dropout(0.0)

    def forward(self, x, x_origin, decisions):
        rows = (self.query(x), self.key(x_origin), self.value(x_origin))
        q, k, v = (heads_apart(p, self.num_heads) for p in rows)
        seen = (1 - decisions)[:, None, None, :]
        a = self.attn_drop(weighted((q @ k.transpose(-1, -2)) * self.scale, seen))
        return self.proj_drop(self.proj(heads_together(a @ v)))


class MergerBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm0, self.token_causal_attn = Norm(width), CausalAttention(width, heads)
        self.norm1, self.token_cross_attn = Norm(width), CrossAttention(width, heads)
        self.norm2, self.mlp = Norm(width), Mlp(width)

    def forward(self, x, x_origin, decisions):
        x = x + self.token_causal_attn(self.norm0(x), decisions)
        x = x + self.token_cross_attn(self.norm1(x), x_origin, decisions)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    def __init__(self, width, heads, depth):
        super().__init__()
        self.blocks = nn.ModuleList(MergerBlock(width, heads) for _ in range(depth))
        self.ln_vision, self.norm = Norm(width), Norm(width)

    def forward(self, x, decisions):
        origin = self.ln_vision(x)
        for block in self.blocks:
            x = block(x, origin, decisions)
        return self.norm(x)


class Selector(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.in_conv = nn.Sequential(Norm(width), nn.Linear(width, width), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Linear(width // 2, width // 4),
            nn.GELU(),
            nn.Linear(width // 4, 2),
            nn.LogSoftmax(dim=-1),
        )

    def forward(self, x, policy):
        local, context = self.in_conv(x).chunk(2, dim=-1)
        mean = (context * policy).sum(dim=1, keepdim=True) / policy.sum(dim=1, keepdim=True)
        return self.out_conv(torch.cat((local, mean.expand_as(local)), dim=-1))


class Codebook(nn.Module):
    def __init__(self, codes, dim):
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(codes, dim), dim=-1))

    def forward(self, embed_id):
        return F.embedding(embed_id, self.weight)


class Quantizer(nn.Module):
    def __init__(self, codes, dim):
        super().__init__()
        self.codebook_dim, self.num_tokens, self.embedding = dim, codes, Codebook(codes, dim)

    def tokenize(self, z):
        z = F.normalize(z, dim=-1).reshape(-1, self.codebook_dim)
        book = self.embedding.weight
        ids = (z.square().sum(1, keepdim=True) + book.square().sum(1) - 2 * (z @ book.T)).argmin(dim=1)
        F.one_hot(ids, self.num_tokens).type(z.dtype)  # as there, for nothing
        return self.embedding(ids), ids


class Tokenizer(nn.Module):
    def __init__(self, width=48, heads=4, encoder_depth=2, depth=2, side=PATCHES_A_SIDE, codes=CODES, llm_width=24):
        super().__init__()
        self.encoder = EvaEncoder(width, heads, encoder_depth, side)
        self.encoder.requires_grad_(False)
        self.token_predictor = Selector(width)
        self.causal_encoder = Merger(width, heads, depth)
        self.quantize = Quantizer(codes, CODE_DIM)
        self.encode_task_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, CODE_DIM))
        self.vit_proj = nn.Linear(width, llm_width)

    def _merged(self, images):
        features = self.encoder(images, return_all_features=True)[:, 1:]
        ones = torch.ones(*features.shape[:2], 1, dtype=features.dtype, device=features.device)
        scores = self.token_predictor(features.float(), ones).reshape(len(features), -1, 2)
        keep = F.gumbel_softmax(scores, hard=True)[:, :, 0]
        return self.causal_encoder(features, keep), keep.long()

    def encode_features(self, x):
        merged, keep = self._merged(x)
        merged = self.vit_proj(merged)
        rows = merged.masked_select(keep.bool()[:, :, None]).reshape(-1, merged.shape[-1])
        return list(rows.split(keep.sum(dim=-1).tolist()))

    def tokenize_image(self, x_tensor, add_special=False, used_for_llm=True):
        merged, keep = self._merged(x_tensor)
        counts = keep.sum(dim=-1)
        rows = merged.masked_select(keep.bool()[:, :, None]).reshape(-1, merged.shape[-1])
        codes, ids = self.quantize.tokenize(self.encode_task_layer(rows.type_as(self.encode_task_layer[-1].weight)))
        if not used_for_llm:
            return codes, counts
        images = (ids + FIRST).split(counts.tolist())
        if add_special:
            begin, end = torch.tensor([[BEGIN], [END]], device=ids.device)
            return [torch.cat((begin, image, end)) for image in images]
        return images


class DecoderSelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.attn_drop = nn.Linear(width, 3 * width), nn.Dropout(0.0)
        self.proj, self.proj_drop = nn.Linear(width, width), nn.Dropout(0.0)

    def forward(self, x):
        q, k, v = (heads_apart(p, self.num_heads) for p in self.qkv(x).chunk(3, dim=-1))
        return self.proj(heads_together(((q @ k.transpose(-1, -2)) * self.scale).softmax(dim=-1) @ v))


class DecoderCrossAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attn_drop, self.proj, self.proj_drop = nn.Dropout(0.0), nn.Linear(width, width), nn.Dropout(0.0)

    def forward(self, x, codebook_embeds, codebook_mask):
        rows = (self.query(x), self.key(codebook_embeds), self.value(codebook_embeds))
        q, k, v = (heads_apart(p, self.num_heads) for p in rows)
        s = (q @ k.transpose(-1, -2)) * self.scale + (1.0 - codebook_mask[:, None, None]) * -10000.0
        return self.proj(heads_together(s.softmax(dim=-1) @ v))


class DecoderBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm0, self.self_attn = Norm(width), DecoderSelfAttention(width, heads)
        self.norm1, self.cross_attn = Norm(width), DecoderCrossAttention(width, heads)
        self.norm2, self.mlp = Norm(width), Mlp(width)

    def forward(self, x, codebook_embeds, codebook_mask):
        x = x + self.self_attn(self.norm0(x))
        x = x + self.cross_attn(self.norm1(x), codebook_embeds, codebook_mask)
        return x + self.mlp(self.norm2(x))


class Pool(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.c_proj = nn.Linear(width, out)

    def forward(self, x):
        return self.c_proj(x.mean(dim=1))


class Decoder(nn.Module):
    def __init__(self, kind="highres", width=48, heads=4, depth=2, patches=PATCHES_A_SIDE**2):
        super().__init__()
        self.kind = kind
        self.in_proj, self.pos_drop = nn.Linear(CODE_DIM, width), nn.Dropout(0.0)
        self.pos_embed = nn.Parameter(torch.randn(1, patches, width))
        self.query_embed = nn.Parameter(torch.randn(1, patches, width))
        self.blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(depth))
        self.norm = Norm(width)
        self.decode_task_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        if kind == "lowres":
            self.unet_proj = nn.Linear(width, 12)
        else:
            self.unet_proj_1, self.unet_proj_2 = nn.Linear(width, 12), nn.Linear(width, 10)
            self.unet_attnpool = Pool(width, 10)

    def forward(self, x, token_num):
        x = self.in_proj(x)
        parts, longest = x.split(token_num.tolist()), token_num.max().item()
        padded = x.new_zeros(len(parts), longest, x.shape[-1])
        mask = x.new_zeros(len(parts), longest)
        for i, part in enumerate(parts):
            padded[i, : len(part)] = part
            mask[i, : len(part)] = 1
        padded = self.pos_drop(padded + self.pos_embed[:, :longest])
        queries = self.query_embed.expand(len(parts), -1, -1)
        for block in self.blocks:
            queries = block(queries, codebook_embeds=padded, codebook_mask=mask)
        features = self.decode_task_layer(self.norm(queries))
        if self.kind == "lowres":
            return self.unet_proj(features)
        prompt = torch.cat((self.unet_proj_1(features), self.unet_proj_2(features)), dim=-1)
        return prompt, self.unet_attnpool(features)


class Words:
    """A tokenizer of words, each its length; padded at the left."""

    pad_token_id, padding_side = 2, "left"

    def __call__(self, prompts, padding, return_tensors, add_special_tokens):
        rows = [[3 + len(word) for word in prompt.split()] for prompt in prompts]
        longest = max(map(len, rows))
        ids = torch.tensor([[self.pad_token_id] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return Tokens(input_ids=ids, attention_mask=mask)


class Tokens(SimpleNamespace):
    def to(self, device):
        return Tokens(input_ids=self.input_ids.to(device), attention_mask=self.attention_mask.to(device))


def small_language_model(codes=CODES, width=24, depth=2, heads=2):
    config = LlamaConfig(
        vocab_size=FIRST + codes + 4,
        hidden_size=width,
        intermediate_size=4 * width // 3,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


class Generation(nn.Module):
    """The model for drawing images, its U-Net and VAE empty."""

    def __init__(self, kind="highres", load_tokenizer=True, language_model=None):
        super().__init__()
        self.llama_tokenizer, self.llama_model = Words(), language_model or small_language_model()
        self.llama_model.requires_grad_(False)
        self.visual_tokenizer = Tokenizer() if load_tokenizer else None
        if not load_tokenizer:
            self.quantize = Quantizer(CODES, CODE_DIM)
        self.tokenizer_decoder = Decoder(kind)
        self.unet, self.vae = nn.Linear(2, 2), nn.Linear(2, 2)

    @property
    def device(self):
        return self.tokenizer_decoder.pos_embed.device

    @property
    def dtype(self):
        return torch.float32

    def maybe_autocast(self, dtype=None):
        return nullcontext()

    @torch.no_grad()
    def generate_image_tokenids(
        self,
        prompts,
        use_nucleus_sampling=True,
        top_p=0.9,
        top_k=50,
        num_beams=1,
        temperature=1,
        num_return_images=1,
        length_penalty=1,
        max_length=200,
        min_length=20,
        guidance_scale=3.0,
        uncond_input_ids=None,
        is_token_prompt=False,
    ):
        if is_token_prompt:
            max_length = max(map(len, prompts))
            ids = torch.full((len(prompts), max_length), 2, device=self.device)
            mask = torch.zeros_like(ids)
            for i, prompt in enumerate(prompts):
                ids[i, -len(prompt) :], mask[i, -len(prompt) :] = prompt, 1
        else:
            tokens = self.llama_tokenizer(prompts, padding="longest", return_tensors="pt", add_special_tokens=False)
            ids, mask = tokens.to(self.device).input_ids, tokens.to(self.device).attention_mask
        ids = F.pad(ids, (0, 1), value=BEGIN).repeat_interleave(num_return_images, 0)
        mask = F.pad(mask, (0, 1), value=1).repeat_interleave(num_return_images, 0)
        alone, cache, other_cache = ids[:, -1:], None, None
        drawn, ended = [ids[:, -1]], torch.zeros_like(ids[:, -1], dtype=torch.bool)
        for number in range(max_length):
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            out = self.llama_model(
                inputs_embeds=self.llama_model.get_input_embeddings()(ids),
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{CACHE: cache},
            )
            other = self.llama_model(input_ids=alone, use_cache=True, **{CACHE: other_cache})
            cache, other_cache = getattr(out, CACHE), getattr(other, CACHE)
            c, u = out.logits[:, -1].log_softmax(-1), other.logits[:, -1].log_softmax(-1)
            scores = c if guidance_scale == 1 else u + guidance_scale * (c - u)
            if number < min_length:
                scores[:, END] = -torch.inf
            scores[:, 3:BEGIN] = -torch.inf
            scores = scores / temperature
            if top_k:
                scores[scores < scores.topk(min(top_k, scores.shape[-1])).values[:, -1:]] = -torch.inf
            if top_p < 1:
                ordered, order = scores.sort(-1)
                cut = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
                cut[:, -1] = False
                scores[torch.zeros_like(cut).scatter(1, order, cut)] = -torch.inf
            token = torch.multinomial(scores.softmax(-1), 1)[:, 0] if use_nucleus_sampling else scores.argmax(-1)
            token = token.where(~ended, 2)
            drawn.append(token)
            ended |= token == END
            if ended.all():
                break
            ids = alone = token[:, None]
            mask = F.pad(mask, (0, 1), value=1)
        return torch.stack(drawn, 1)

    @torch.no_grad()
    def generate_image_embeds(self, image_tokens):
        parts = [ids[ids >= FIRST] - FIRST for ids in image_tokens]
        counts = torch.tensor([len(part) for part in parts], device=self.device)
        book = (self.quantize if self.visual_tokenizer is None else self.visual_tokenizer.quantize).embedding
        return self.tokenizer_decoder(book(torch.cat(parts)).to(self.dtype), counts)
