"""A folder in the exact layout of the released LaVIT, with small random models in place of its own."""

from __future__ import annotations

import io
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, PNDMScheduler
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tiny_pixels import NUM_CODES, tiny_config, tiny_negative, tiny_unet, tiny_vae
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, LlamaConfig, LlamaForCausalLM

from lavit.language.continuous_features import Understanding
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig

WIDTH, TEXT_SIZE = 24, 340  # of the language model; ids of text, those of `tokenizer.model`

# As the release's: no learned position, no standardised features.
CONFIG = tiny_config(
    feature_position=False,
    standardize_features=False,
    merge="dense",
    min_keep=0,
    encoder_head_dim=6,
    projection_dim=WIDTH,
    initializer_range=0.3,  # wide enough for images to differ in what is kept and in their codes
)
KINDS = {"lowres": "pixel_decoding", "highres": "highres_pixel_decoding"}
OWN = {"quantize.cluster_size", "quantize.updates"}
TEXTS = (
    "a photo of a red cat on the table",
    "the question is what color is the dog",
    "Question: how many people are in the picture? Answer: three",
    "a painting of two white boats  and 10 birds",
)


def released_tokenizer(kind: str = "lowres") -> LaVITTokenizer:
    torch.manual_seed({"lowres": 0, "highres": 1}[kind])
    return LaVITTokenizer(LaVITTokenizerConfig(**{**CONFIG.to_dict(), "decoder_condition": kind})).eval()


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    whole = released_tokenizer().state_dict()
    rest = {k: t for k, t in whole.items() if not k.startswith(("encoder.", "decoder.")) and k not in OWN}
    torch.save(rest, folder / "tokenizer_encoder.bin")
    encoder = {k.removeprefix("encoder."): t for k, t in whole.items() if k.startswith("encoder.")}
    torch.save(encoder, folder / "eva_vitg_psz14.bin")
    for kind, name in (("lowres", "tokenizer_decoder.bin"), ("highres", "highres_tokenizer_decoder.bin")):
        torch.save(released_tokenizer(kind).decoder.state_dict(), folder / name)


def released_llama(dtype: torch.dtype = torch.float16) -> LlamaForCausalLM:
    torch.manual_seed(5)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "max_position_embeddings": 256}
    rows = TEXT_SIZE + 2 + NUM_CODES
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = LlamaConfig(hidden_size=WIDTH, vocab_size=rows, initializer_range=0.3, **sizes, **special)
    return LlamaForCausalLM(config).to(dtype).eval()


def visual_weights() -> dict[str, Tensor]:
    torch.manual_seed(6)
    return {k: t + 0.1 * torch.randn_like(t) for k, t in Understanding(CONFIG, WIDTH).state_dict().items()}


@lru_cache(1)
def sentencepiece_model() -> bytes:
    """A `tokenizer.model` as LLaMA's: pairs of bytes, whitespace kept, <unk>, <s> and </s> first."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(20 * TEXTS),
        model_writer=model,
        vocab_size=TEXT_SIZE,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    return model.getvalue()


def write_llama(folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """As two shards of `.bin`."""
    model = released_llama(dtype)
    model.config.save_pretrained(folder)
    state = model.state_dict()
    places = {name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(sorted(state))}
    for file in sorted(set(places.values())):
        torch.save({name: state[name] for name, place in places.items() if place == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def write_language_model(folder: Path, dtype: torch.dtype = torch.float16) -> None:
    folder.mkdir(parents=True)
    write_llama(folder, dtype)
    torch.save(visual_weights(), folder / "visual_weight.bin")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())


def write_pixels(folder: Path) -> None:
    """Both pixel folders, the U-Nets as `.bin`."""
    for kind, name in KINDS.items():
        tiny_unet(kind).save_pretrained(folder / name / "unet", safe_serialization=False)
        tiny_vae().save_pretrained(folder / name / "vae")
        scheduler: Any = PNDMScheduler if kind == "lowres" else EulerDiscreteScheduler
        scheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
            folder / name / "scheduler"
        )
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 8, "patch_size": 4}
    torch.manual_seed(7)
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=small, vision_config=vision, projection_dim=8))
    checker.save_pretrained(folder / "pixel_decoding" / "safety_checker")
    extractor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    extractor.save_pretrained(folder / "pixel_decoding" / "feature_extractor")
    torch.save(tiny_negative().embeds.detach()[None].clone(), folder / "pixel_decoding" / "uncond_embeddings.bin")


def write_release(folder: Path) -> Path:
    write_tokenizer(folder / "visual_tokenizer")
    write_language_model(folder / "language_model")
    write_pixels(folder)
    return folder
