"""Whether the parts of a pipeline are there and fit together; every error names the part at fault."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lavit.pixels.conditioner import NegativeEmbeds, PixelConditioner
from lavit.tokenizer import LaVITTokenizer

INDEX_FILE = "model_index.json"


def check_parts(
    tokenizer: LaVITTokenizer, conditioner: PixelConditioner, unet: Any, vae: Any, negative: NegativeEmbeds | None
) -> None:
    """ValueError naming the part whose sizes do not fit the others'."""
    config = tokenizer.config
    features = (config.num_patches, config.decoder_out_dim or config.hidden_size)
    taken = (conditioner.num_patches, conditioner.in_dim)
    if features != taken:
        raise ValueError(f"conditioner: expected one for features (B, {features[0]}, {features[1]}), got {taken}")
    if unet.config.cross_attention_dim != conditioner.embed_dim:
        got, wanted = unet.config.cross_attention_dim, conditioner.embed_dim
        raise ValueError(f"unet: expected cross_attention_dim {wanted}, the conditioner's width, got {got}")
    channels = 3 if vae is None else vae.config.latent_channels
    for name in ("in_channels", "out_channels"):
        if unet.config[name] != channels:
            what = "pixels, without a VAE" if vae is None else "the VAE's latents"
            raise ValueError(f"unet: expected {name} {channels} ({what}), got {unet.config[name]}")
    if conditioner.pooled_dim is not None:
        if unet.config.addition_embed_type != "text_time":
            got = unet.config.addition_embed_type
            raise ValueError(f"unet: expected addition_embed_type text_time for a high-res condition, got {got!r}")
        wanted = conditioner.pooled_dim + 6 * unet.config.addition_time_embed_dim
        got = unet.config.projection_class_embeddings_input_dim
        if got != wanted:
            raise ValueError(f"unet: expected projection_class_embeddings_input_dim {wanted}, got {got}")
    elif unet.config.addition_embed_type is not None:
        got = unet.config.addition_embed_type
        raise ValueError(f"unet: expected no addition_embed_type for a low-res condition, got {got!r}")
    if negative is not None and negative.embeds.shape[1] != conditioner.embed_dim:
        raise ValueError(f"negative: expected rows of width {conditioner.embed_dim}, got {negative.embeds.shape[1]}")


def check_folder(folder: Path, given: Collection[str]) -> None:
    """FileNotFoundError naming every part that a saved pipeline's folder lacks, but for those that are given."""
    index = folder / INDEX_FILE
    if not index.is_file():
        raise FileNotFoundError(f"{index}: no such file; a pipeline's folder, as save_pretrained writes it, has one")
    parts = json.loads(index.read_text(encoding="utf-8"))
    named = [name for name, part in parts.items() if isinstance(part, list) and part[0] is not None]
    missing = [str(folder / name) for name in named if name not in given and not (folder / name).is_dir()]
    if missing:
        raise FileNotFoundError(f"the pipeline lacks {', '.join(missing)}")
