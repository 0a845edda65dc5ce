"""The released visual tokenizer and its two decoders, from the release's `.bin` files."""

from __future__ import annotations

import logging
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from lavit.released.files import (
    DECODER_FILES,
    ENCODER_FILE,
    TOKENIZER_FILE,
    check_tensors,
    put,
    read_tensors,
    say_unused,
    tokenizer_folder,
)
from lavit.tokenizer.configuration import LaVITTokenizerConfig
from lavit.tokenizer.decoder import TokenDecoder
from lavit.tokenizer.model import LaVITTokenizer

logger = logging.getLogger(__name__)

# What training adds to a codebook and the release does not have.
OWN_TENSORS = {"quantize.cluster_size", "quantize.updates"}

# What `tokenizer_encoder.bin` may hold of the training that it comes from, and the release's own program leaves out:
# the decoder, which has a file of its own, and the codebook's averages, as BEiT v2 names them.
UNUSED_PARTS = ("decoder.", "decode_task_layer.")
UNUSED_TENSORS = {f"quantize.{name}" for name in ("cluster_size", "embedding.cluster_size", "embedding.embed_avg")}
UNUSED_TENSORS |= {"quantize.initted", "quantize.embedding.initted"}

# Whose linear layers the release rounds to its precision, and whose other parameters it keeps in float32. They are
# computed in float32 here.
ROUNDED = ("token_predictor", "encode_task_layer")


def load_released_tokenizer(
    folder: str | PathLike[str],
    *,
    config: LaVITTokenizerConfig | None = None,
    decoder: str = "lowres",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> LaVITTokenizer:
    """The released tokenizer from its folder `visual_tokenizer/`, or from a folder that holds one.

    config: sizes of another model in the same layout; by default the release's (preset "lavit-g"). Its merge is set to
        "dense", the release's exact formula, and its decoder_condition to ``decoder``.
    decoder: "lowres" (condition of an SD 1.5 U-Net) or "highres" (of an SDXL U-Net): which decoder file is read.
    dtype: of the weights. In float16 and bfloat16 what decides the ids stays in float32: the codebook, and the selector
        and the task layer, whose linear layers are rounded to ``dtype`` as in the release. The release computes these
        under autocast, and its dot products with the codes are rounded too; here they are not, and an id may differ
        where two codes are as near as that rounding. Its residual streams are float32, too, which here are ``dtype``:
        nearer to it is a model of float32 under ``torch.autocast``.
    device: where the weights go; None: the CPU.

    The encoder's weights may be in `eva_vitg_psz14.bin`, in `tokenizer_encoder.bin` or in both (the latter counts).
    Where the latter has no `vit_proj`, which nothing but understanding needs, the model has none either
    (projection_dim None). Tensors that the release leaves out (a decoder in `tokenizer_encoder.bin`, the averages of
    its codebook) are left out and named in the log. The weights are copied out of the files, one tensor at a time.

    Raises FileNotFoundError for a missing file and ValueError for a damaged one, or when tensors are missing,
    unexpected or of another shape: the file and all of them are named.
    """
    if decoder not in DECODER_FILES:
        raise ValueError(f"decoder: expected one of {', '.join(DECODER_FILES)}, got {decoder!r}")
    place = tokenizer_folder(folder)
    main, encoder, decoding = (place / name for name in (TOKENIZER_FILE, ENCODER_FILE, DECODER_FILES[decoder]))
    state = _used(read_tensors(main), main)
    inside = {name.removeprefix("encoder.") for name in state if name.startswith("encoder.")}
    if not inside and not encoder.is_file():
        raise FileNotFoundError(f"{encoder}: no such file, and {main.name} holds no encoder (encoder.*) in its place")
    sizes = (config or LaVITTokenizerConfig.preset("lavit-g")).to_dict()
    if sizes["projection_dim"] is not None and not any(name.startswith("vit_proj.") for name in state):
        logger.info("%s: no vit_proj.*, which nothing but understanding needs: the tokenizer has none", main)
        sizes["projection_dim"] = None
    with torch.device("meta"):
        model = LaVITTokenizer(LaVITTokenizerConfig(**{**sizes, "merge": "dense", "decoder_condition": decoder}))
    elsewhere = {name for name in model.state_dict() if name.startswith("decoder.")} | OWN_TENSORS
    if encoder.is_file():
        elsewhere |= {name for name in model.state_dict() if name.startswith("encoder.")}
    check_tensors(model, state, main, absent=elsewhere)
    decoder_state = read_tensors(decoding)
    check_tensors(model.decoder, decoder_state, decoding)
    if encoder.is_file():
        encoder_state = read_tensors(encoder)
        check_tensors(model.encoder, encoder_state, encoder)
        say_unused(encoder, inside, f"{main.name} holds them too")
        for name in inside:
            del encoder_state[name]
        put(model.encoder, encoder_state, dtype, device)
    put(model.decoder, decoder_state, dtype, device)
    put(model, state, dtype, device, in_float32=LaVITTokenizer._keep_in_fp32_modules_strict)
    _round_linear_layers(model, dtype)
    model.quantize.reset_statistics()
    return model.eval()


def _used(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Without what the release leaves out, which the log names."""
    left = {name for name in state if name in UNUSED_TENSORS or name.startswith(UNUSED_PARTS)}
    say_unused(path, left, "nor by the release")
    return {name: tensor for name, tensor in state.items() if name not in left}


def _round_linear_layers(model: LaVITTokenizer, dtype: torch.dtype) -> None:
    """What the parts that stay in float32 lose where the release has its linear layers in ``dtype``."""
    for part in ROUNDED:
        for layer in getattr(model, part).modules():
            if isinstance(layer, nn.Linear):
                for weight in layer.parameters():
                    weight.data = weight.data.to(dtype).to(weight.dtype)


def load_released_decoder(
    folder: str | PathLike[str],
    kind: str,
    *,
    config: LaVITTokenizerConfig | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
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
    state = read_tensors(path)
    check_tensors(model, state, path)
    put(model, state, dtype, device)
    return model.eval()
