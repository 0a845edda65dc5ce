"""Models that have learned nothing, in the folders that training would leave."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler
from transformers import LlamaConfig, LlamaForCausalLM

from lavit.language.model import LaVIT
from lavit.language.processing import LaVITProcessor
from lavit.language.text_tokenizer import train_text_tokenizer
from lavit.pixels import LaVITPixelPipeline, PixelConditioner, small_unet
from lavit.shapes.questions import sentences
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig

SIDE, CODES = 32, 12
TINY = {
    "hidden_size": 16,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "merger_depth": 1,
    "decoder_depth": 1,
    "num_heads": 2,
    "num_codes": CODES,
    "code_dim": 4,
    "projection_dim": 8,
}


def tokenizer(seed: int = 1) -> LaVITTokenizer:
    """16 patches."""
    torch.manual_seed(seed)
    return LaVITTokenizer(LaVITTokenizerConfig.preset("small", image_size=SIDE, patch_size=8, **TINY)).eval()


def save_language_model(folder: Path, own: LaVITTokenizer) -> None:
    text = train_text_tokenizer(sentences()[:300], 300)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"eos_token_id": text.eos_token_id, "pad_token_id": text.pad_token_id}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, **special, vocab_size=len(text), max_position_embeddings=256))
    LaVIT.from_parts(llama, own).save_pretrained(folder)
    LaVITProcessor(LaVITImageProcessor(SIDE), text, len(text)).save_pretrained(folder)


def pixel_pipeline(own: LaVITTokenizer) -> LaVITPixelPipeline:
    torch.manual_seed(2)
    conditioner = PixelConditioner.for_tokenizer(own.config, condition_dim=8)
    unet = small_unet(SIDE, condition_dim=8, channels=(4, 8), heads=2, groups=2)
    return LaVITPixelPipeline(own, conditioner, unet, DDIMScheduler(), LaVITImageProcessor(SIDE))


def save_whole(folder: Path) -> Path:
    """A language model with a pixel pipeline in its folder `pixels`."""
    own = tokenizer()
    save_language_model(folder, own)
    pixel_pipeline(own).save_pretrained(folder / "pixels")
    return folder
