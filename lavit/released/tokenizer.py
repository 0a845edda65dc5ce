"""The released visual tokenizer and its two decoders, from the release's `.bin` files."""

from __future__ import annotations

from os import PathLike

import torch

from lavit.released.files import DECODER_FILES, ENCODER_FILE, TOKENIZER_FILE, fill, read_tensors, tokenizer_folder
from lavit.tokenizer.configuration import LaVITTokenizerConfig
from lavit.tokenizer.decoder import TokenDecoder
from lavit.tokenizer.model import LaVITTokenizer

# What training adds to a codebook and the release does not have.
OWN_TENSORS = {"quantize.cluster_size", "quantize.updates"}


def load_released_tokenizer(
    folder: str | PathLike[str],
    *,
    config: LaVITTokenizerConfig | None = None,
    decoder: str = "lowres",
    dtype: torch.dtype = torch.float32,
) -> LaVITTokenizer:
    """The released tokenizer from its folder `visual_tokenizer/`, or from a folder that holds one.

    config: sizes of another model in the same layout; by default the release's (preset "lavit-g"). Its merge is set to
        "dense", the release's exact formula, and its decoder_condition to ``decoder``.
    decoder: "lowres" (condition of an SD 1.5 U-Net) or "highres" (of an SDXL U-Net): which decoder file is read.
    dtype: of the weights.

    The encoder's weights may be in `eva_vitg_psz14.bin`, in `tokenizer_encoder.bin` or in both (the latter counts).
    Raises FileNotFoundError for a missing file and ValueError for a damaged one, or when tensors are missing,
    unexpected or of another shape: all of them are named.
    """
    if decoder not in DECODER_FILES:
        raise ValueError(f"decoder: expected one of {', '.join(DECODER_FILES)}, got {decoder!r}")
    place = tokenizer_folder(folder)
    sizes = (config or LaVITTokenizerConfig.preset("lavit-g")).to_dict()
    state = {f"decoder.{name}": tensor for name, tensor in read_tensors(place / DECODER_FILES[decoder]).items()}
    if (place / ENCODER_FILE).exists():
        state |= {f"encoder.{name}": tensor for name, tensor in read_tensors(place / ENCODER_FILE).items()}
    state |= read_tensors(place / TOKENIZER_FILE)
    with torch.device("meta"):
        model = LaVITTokenizer(LaVITTokenizerConfig(**{**sizes, "merge": "dense", "decoder_condition": decoder}))
    fill(model, state, dtype, str(place), absent=OWN_TENSORS)
    model.quantize.reset_statistics()
    return model.eval()


def load_released_decoder(
    folder: str | PathLike[str],
    kind: str,
    *,
    config: LaVITTokenizerConfig | None = None,
    dtype: torch.dtype = torch.float32,
) -> TokenDecoder:
    """One of the two released decoders alone ("lowres" or "highres"), e.g. as the second of a tokenizer.

    Arguments and errors as in :func:`load_released_tokenizer`.
    """
    if kind not in DECODER_FILES:
        raise ValueError(f"kind: expected one of {', '.join(DECODER_FILES)}, got {kind!r}")
    path = tokenizer_folder(folder) / DECODER_FILES[kind]
    sizes = (config or LaVITTokenizerConfig.preset("lavit-g")).to_dict()
    with torch.device("meta"):
        model = TokenDecoder(LaVITTokenizerConfig(**{**sizes, "decoder_condition": kind}))
    fill(model, read_tensors(path), dtype, str(path))
    return model.eval()
