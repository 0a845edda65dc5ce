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
    width, pooled, own = conditioner.embed_dim, conditioner.pooled_dim, unet.config
    channels, what = (3, "pixels, without a VAE") if vae is None else (vae.config.latent_channels, "the VAE's latents")
    wanted: list[tuple[str, Any, str]] = [
        ("cross_attention_dim", width, f"cross_attention_dim {width}, the conditioner's width"),
        ("in_channels", channels, f"in_channels {channels} ({what})"),
        ("out_channels", channels, f"out_channels {channels} ({what})"),
    ]
    if pooled is None:
        wanted.append(("addition_embed_type", None, "no addition_embed_type for a low-res condition"))
    else:
        name, inputs = "projection_class_embeddings_input_dim", pooled + 6 * (own.get("addition_time_embed_dim") or 0)
        wanted.append(("addition_embed_type", "text_time", "addition_embed_type text_time for a high-res condition"))
        wanted.append((name, inputs, f"{name} {inputs}"))
    for name, value, told in wanted:
        if own[name] != value:
            raise ValueError(f"unet: expected {told}, got {own[name]!r}")
    if negative is not None and negative.embeds.shape[1] != width:
        raise ValueError(f"negative: expected rows of width {width}, got {negative.embeds.shape[1]}")


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
