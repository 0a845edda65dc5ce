"""The release's model for drawing images: guided sampling of image tokens with both streams in one pass a token."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lavit.acceleration.guided_sampling import BEGIN, FIRST_CODE, Draw, guided_ids, neutral
from lavit.acceleration.registry import Case, Part, change_of, register
from lavit.acceleration.structure import Odd, arguments, child, expect_arguments

TOKEN_IDS = (
    "prompts, use_nucleus_sampling=True, top_p=0.9, top_k=50, num_beams=1, temperature=1, num_return_images=1, "
    "length_penalty=1, max_length=200, min_length=20, guidance_scale=3.0, uncond_input_ids=None, is_token_prompt=False"
)


class Generation:
    @torch.no_grad()
    def generate_image_tokenids(
        self: Any,
        prompts: Any,
        use_nucleus_sampling: bool = True,
        top_p: float = 0.9,
        top_k: int = 50,
        num_beams: int = 1,
        temperature: float = 1,
        num_return_images: int = 1,
        length_penalty: float = 1,
        max_length: int = 200,
        min_length: int = 20,
        guidance_scale: float = 3.0,
        uncond_input_ids: Tensor | None = None,
        is_token_prompt: bool = False,
    ) -> Tensor:
        """(B * num_return_images, 1 + T) ids, [IMG] first, padded behind [/IMG]. Beams, another unconditional prompt
        and a single stream go the release's own way."""
        guided = guidance_scale is not None and guidance_scale != 1 and uncond_input_ids is None
        if not (guided and use_nucleus_sampling and num_beams == 1 and temperature > 0 and neutral(self.llama_model)):
            change = change_of(self)
            assert change is not None
            return change.own.generate_image_tokenids(
                self,
                prompts,
                use_nucleus_sampling,
                top_p,
                top_k,
                num_beams,
                temperature,
                num_return_images,
                length_penalty,
                max_length,
                min_length,
                guidance_scale,
                uncond_input_ids,
                is_token_prompt,
            )
        ids, mask = _prompts(self, prompts, is_token_prompt)
        if is_token_prompt:
            max_length = ids.shape[1]  # as in the release: as many tokens as the longest prompt has
        begin = torch.full_like(ids[:, :1], BEGIN)
        ids, mask = torch.cat((ids, begin), dim=1), torch.cat((mask, torch.ones_like(begin)), dim=1)
        draw = Draw(guidance_scale, temperature, top_k, top_p, min_length, max_length)
        pad = self.llama_tokenizer.pad_token_id
        with self.maybe_autocast():
            return guided_ids(self.llama_model, ids, mask, num_return_images, pad, draw)

    @torch.no_grad()
    def generate_image_embeds(self: Any, image_tokens: Any) -> Any:
        """What conditions the U-Net. One wait for all images where their ids are one tensor."""
        codes = (image_tokens if isinstance(image_tokens, Tensor) else torch.cat(list(image_tokens))) - FIRST_CODE
        chosen = codes >= 0
        if isinstance(image_tokens, Tensor):
            lengths = chosen.sum(dim=1)
        else:
            lengths = torch.stack([part.sum() for part in chosen.split([len(ids) for ids in image_tokens])])
        quantize = self.quantize if self.visual_tokenizer is None else self.visual_tokenizer.quantize
        vectors = quantize.embedding(codes[chosen]).to(self.dtype)
        return self.tokenizer_decoder(vectors, lengths.to(self.device))


def _prompts(model: Any, prompts: Any, as_ids: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, L), padded at the left."""
    device, tokenizer = model.llama_model.device, model.llama_tokenizer
    tokenizer.padding_side = "left"
    if not as_ids:
        tokens = tokenizer(prompts, padding="longest", return_tensors="pt", add_special_tokens=False).to(device)
        return tokens.input_ids, tokens.attention_mask
    longest = max(len(ids) for ids in prompts)
    rows = torch.full((len(prompts), longest), tokenizer.pad_token_id, dtype=torch.int64, device=device)
    mask = torch.zeros_like(rows)
    for row, seen, ids in zip(rows, mask, prompts, strict=True):
        row[longest - len(ids) :] = ids
        seen[longest - len(ids) :] = 1
    return rows, mask


def generation_alike(module: Any) -> bool:
    held = {"llama_model", "tokenizer_decoder", "unet", "vae"} <= set(module._modules)
    return held and arguments(module, "generate_image_tokenids") is not None


def check_generation(module: Any) -> None:
    expect_arguments(module, "generate_image_tokenids", TOKEN_IDS)
    expect_arguments(module, "generate_image_embeds", "image_tokens")
    for name in ("llama_tokenizer", "maybe_autocast", "dtype", "device"):
        if not hasattr(type(module), name) and name not in vars(module):
            raise Odd(f"has no {name}")
    tokenizer = getattr(module, "visual_tokenizer", None)
    book = child(module if tokenizer is None else tokenizer, "quantize.embedding").weight
    model: Any = child(module, "llama_model")
    for path in ("model", "lm_head"):
        child(model, path)
    wanted, rows = FIRST_CODE + len(book), len(model.get_input_embeddings().weight)
    if rows < wanted or len(model.lm_head.weight) != rows:
        raise Odd(f"llama_model: expected embeddings and a head of {wanted} ids at least, got {rows}")


def generation_cases(module: Any, normal: Callable[..., Tensor]) -> Iterable[Case]:
    device = module.llama_model.device
    prompts = [torch.tensor([5, 6, 7], device=device), torch.tensor([8, 9], device=device)]

    def ids(model: Any) -> Tensor:
        return model.generate_image_tokenids(prompts, min_length=2, guidance_scale=1.5, top_p=1.0, is_token_prompt=True)

    yield ids
    tokens = torch.tensor([[BEGIN, FIRST_CODE, FIRST_CODE + 1, 2], [BEGIN, FIRST_CODE + 2, 2, 2]], device=device)
    yield lambda model: model.generate_image_embeds(tokens)


def generation_devices(module: Any) -> Iterable[nn.Module]:
    spread = len(getattr(module.llama_model, "hf_device_map", None) or {}) > 1
    return [part for name, part in module.named_children() if not (spread and name == "llama_model")]


class Untouched:
    """What is known and gains nothing: a part whose modules are always left, so that a report says why."""


def untouched(name: str, alike: Callable[[nn.Module], bool], reason: str) -> Part:
    def check(module: Any) -> None:
        raise Odd(reason)

    return Part(name, alike, check, Untouched, lambda module, normal: ())


register(
    Part(
        "image generation",
        generation_alike,
        check_generation,
        Generation,
        generation_cases,
        on_one_device=generation_devices,
    )
)
register(
    untouched(
        "text generation",
        lambda module: {"llama_model", "visual_tokenizer"} == set(module._modules),
        "captions and answers are transformers' beam search, one pass a token already; images come by its tokenizer",
    )
)
register(
    untouched(
        "U-Net",
        lambda module: {"conv_in", "time_proj", "down_blocks", "mid_block", "up_blocks"} <= set(module._modules),
        "both streams of guidance are one pass already, with diffusers' own attention",
    )
)
