"""The whole released model: a LLaMA checkpoint, the visual tokenizer, and the merger and projector trained with it."""

from __future__ import annotations

import json
import logging
import pickle
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lavit.language.vocabulary import Vocabulary
from lavit.released.files import (
    DECODER_FILES,
    TOKENIZER_FILE,
    check_loaded,
    check_tensors,
    lacks,
    put,
    read_json,
    read_tensors,
    say_unused,
    unprefixed,
)
from lavit.released.memory import own_weights
from lavit.released.tokenizer import load_released_tokenizer
from lavit.tokenizer.configuration import LaVITTokenizerConfig

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from lavit.language.continuous_features import Understanding
    from lavit.language.model import LaVIT
    from lavit.language.processing import LaVITProcessor
    from lavit.tokenizer.model import LaVITTokenizer

logger = logging.getLogger(__name__)

# Those of `language_model/`: the LLaMA's own, one of which holds or lists its weights, and the visual parts' beside it.
VISUAL_FILE, CONFIG_FILE = "visual_weight.bin", "config.json"
INDEX = ".index.json"
WEIGHT_FILES = tuple(name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", INDEX))

TEXT_FILES = ("tokenizer.model", "tokenizer.json")

# What older LLaMA checkpoints hold beside their weights, and their configuration already says.
OLD_TENSORS = "rotary_emb.inv_freq"

# By what of the tokenizer an image is read, beside the merger and the projector of `visual_weight.bin`.
SHARED_PARTS = ("encoder.", "token_predictor.")


def load_released_lavit(
    folder: str | PathLike[str],
    *,
    config: LaVITTokenizerConfig | None = None,
    decoder: str = "lowres",
    text_size: int = 32000,
    dtype: torch.dtype | None = None,
    visual_dtype: torch.dtype = torch.float32,
    device_map: Any = None,
) -> LaVIT:
    """The released model from its folder, which holds `visual_tokenizer/` and `language_model/`.

    `language_model/` is a LLaMA checkpoint, whole or in shards, `.safetensors` or `.bin` (the former counts where there
    are both), whose vocabulary has [IMG], [/IMG] and the codes already; :func:`load_released_processor` reads its text
    tokenizer. `language_model/visual_weight.bin` has the merger and the projector that were trained with it: images are
    read by these, and written with the codes of the tokenizer's own merger. Its names are *derived*:
    `causal_encoder.*` and `vit_proj.*`, as those of the same parts in the release's tokenizer, with or without
    `visual_tokenizer.` before them. Others are left out and named in the log.

    config, decoder: of the visual tokenizer, as in :func:`load_released_tokenizer`; merge is "dense" for both mergers.
    text_size: number of text ids; [IMG] is the one after them. dtype: of the language model; None: as it is stored.
    visual_dtype: of the visual tokenizer, the second merger and the projector; see :func:`load_released_tokenizer` for
        what stays in float32.
    device_map: of the language model, as transformers takes it (a device, "auto", ...), for which it needs the package
        accelerate; the visual parts go where its embedding is. None: the CPU.

    The weights are copied out of the files, which may change afterwards; besides the model about one tensor is in
    memory. No code of a file is run. Raises FileNotFoundError that names every missing file, and ValueError for a
    language model of another kind, for one with fewer rows than there are ids, and where
    :func:`load_released_tokenizer` does.
    """
    from lavit.language import attention
    from lavit.language.configuration import LaVITConfig
    from lavit.language.model import LaVIT
    from lavit.language.text_settings import RELEASED, carry_settings

    if decoder not in DECODER_FILES:
        raise ValueError(f"decoder: expected one of {', '.join(DECODER_FILES)}, got {decoder!r}")
    visual, language = Path(folder) / "visual_tokenizer", Path(folder) / "language_model"
    check_parts(visual, language, decoder)
    settings = config or LaVITTokenizerConfig.preset("lavit-g")
    width = check_language_config(language / CONFIG_FILE, Vocabulary(text_size, settings.num_codes))
    llama = load_language_model(language, dtype, device_map)
    place: Any = llama.get_input_embeddings().weight.device
    if place.type == "meta":  # offloaded
        place = torch.device("cpu")
    tokenizer = load_released_tokenizer(visual, config=settings, decoder=decoder, dtype=visual_dtype, device=place)
    understanding = load_understanding(language / VISUAL_FILE, tokenizer, width, visual_dtype, place)
    # As LaVIT.from_parts, but for a second merger that would be made only to be replaced.
    if llama.config._attn_implementation in ("sdpa", "eager"):
        llama.set_attn_implementation(attention.NAME)
    with torch.device("meta"):
        # Lest a saved model's visual weights are rounded when they are read again.
        exact = "float32" if visual_dtype == torch.float32 else None
        sizes = LaVITConfig(
            llama.config,  # type: ignore[arg-type]
            tokenizer.config,  # type: ignore[arg-type]
            text_size,
            prompt_images="bare_codes",
            answer_early_stopping=True,
            visual_dtype=exact,
        )
        model = LaVIT(sizes, llama, tokenizer)
    model.understanding = understanding
    for task, written in RELEASED.items():
        carry_settings(model, task, written)
    return model.eval()


def load_released_processor(
    folder: str | PathLike[str], *, config: LaVITTokenizerConfig | None = None, text_size: int = 32000
) -> LaVITProcessor:
    """The image transform and the text tokenizer of the released folder.

    The text tokenizer is made of `language_model/tokenizer.model`, as in the release, which takes the packages of
    `lavit[released]`; without them, or without that file, of `language_model/tokenizer.json`, which agrees with it but
    for leading spaces. Tokens that were added with ids from ``text_size`` on (a `<pad>`) are left out: these ids are
    [IMG], [/IMG] and codes. Pads are </s>, as in the release.
    Raises FileNotFoundError where both files are missing, and ImportError that names the extra.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from lavit.language.processing import LaVITProcessor
    from lavit.language.text_tokenizer import BOS, EOS, UNK, sentencepiece_tokenizer
    from lavit.tokenizer.processing import LaVITImageProcessor

    image = LaVITImageProcessor((config or LaVITTokenizerConfig.preset("lavit-g")).image_size)
    pieces, fast = (Path(folder) / "language_model" / name for name in TEXT_FILES)
    if not pieces.is_file() and not fast.is_file():
        raise FileNotFoundError(f"the released model has no text tokenizer: neither {pieces} nor {fast} is there")
    if pieces.is_file():
        try:
            return LaVITProcessor(image, sentencepiece_tokenizer(pieces), text_size)
        except ImportError as error:
            if not fast.is_file():
                raise
            logger.warning("%s; %s is read in its place, where leading spaces are other tokens", error, fast)
    content = read_json(fast)
    added = [token for token in content.get("added_tokens", []) if token["id"] >= text_size]
    say_unused(fast, {token["content"] for token in added}, "their ids are no text ids")
    content["added_tokens"] = [token for token in content.get("added_tokens", []) if token not in added]
    try:
        backend = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # tokenizers raises no kind of its own
        raise ValueError(f"{fast}: damaged, or no tokenizer ({error})") from error
    special = {"unk_token": UNK, "bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **special, padding_side="left", clean_up_tokenization_spaces=False
    )
    return LaVITProcessor(image, tokenizer, text_size)


def load_understanding(
    path: Path, tokenizer: LaVITTokenizer, width: int, dtype: torch.dtype, device: torch.device | str | None = None
) -> Understanding:
    """The merger and the projector of `visual_weight.bin`, to language models of this width.

    What the file holds beside them is named in the log. ValueError where it lacks some of them, and where it holds
    another encoder or selector than the tokenizer's, by which the release would read images and this library cannot.
    """
    from lavit.language.continuous_features import Understanding

    state = unprefixed(read_tensors(path), "visual_tokenizer.", path)
    with torch.device("meta"):
        understanding = Understanding(tokenizer.config, width)  # type: ignore[arg-type]
    wanted = understanding.state_dict()
    rest = {name for name in state if name not in wanted}
    used = {name: tensor for name, tensor in state.items() if name in wanted}
    check_tensors(understanding, used if used.keys() == wanted.keys() else state, path)
    others = _others(tokenizer, {name: state[name] for name in rest if name.startswith(SHARED_PARTS)})
    if others:
        raise ValueError(
            f"{path}: expected the encoder and the selector of {TOKENIZER_FILE}, or none, got others, by which the "
            f"release would read images: {', '.join(others)}"
        )
    say_unused(path, rest, "beside the merger and the projector")
    del state  # what put() copies is to be freed by it
    put(understanding, used, dtype, device)
    return understanding


def _others(tokenizer: LaVITTokenizer, state: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not the tokenizer's, up to the precision of whichever is stored more coarsely."""
    own, found = tokenizer.state_dict(), []
    for name, tensor in state.items():
        if name not in own:
            continue
        ours, theirs = own[name].cpu().double(), tensor.double()
        eps = max(torch.finfo(dtype).eps for dtype in (tokenizer.dtype, tensor.dtype))
        if ours.shape != theirs.shape or (ours - theirs).abs().max() > eps * ours.abs().max():
            found.append(name)
    return sorted(found)


def check_parts(visual: Path, language: Path, decoder: str) -> None:
    """FileNotFoundError for what the release's folder lacks; the encoder may be in either of two files."""
    wanted = [visual / TOKENIZER_FILE, visual / DECODER_FILES[decoder], language / CONFIG_FILE, language / VISUAL_FILE]
    missing = [str(path) for path in wanted if not path.is_file()]
    weights = [language / name for name in WEIGHT_FILES if (language / name).is_file()]
    if none := lacks(language, WEIGHT_FILES):
        missing.append(none)
    elif weights[0].name.endswith(INDEX):
        files = read_json(weights[0]).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise ValueError(f"{weights[0]}: expected the file of every tensor under weight_map, got {files!r}")
        missing += [str(language / name) for name in sorted(set(files.values())) if not (language / name).is_file()]
    if missing:
        raise FileNotFoundError(f"the released model lacks {', '.join(missing)}")
    for other in weights[1:]:
        logger.warning("%s: not read, %s beside it is", other, weights[0].name)


def check_language_config(path: Path, vocabulary: Vocabulary) -> int:
    """The width of the language model, if it is a LLaMA with a row for every id."""
    settings = read_json(path)
    if settings.get("model_type") != "llama":
        raise ValueError(f"{path}: model_type: expected llama, got {settings.get('model_type')!r}")
    for name, least in (("hidden_size", 1), ("vocab_size", vocabulary.size)):
        got = settings.get(name)
        if not isinstance(got, int) or got < least:
            ids = f"{vocabulary.text_size} text ids, [IMG], [/IMG] and {vocabulary.num_codes} codes"
            why = f" ({ids}): a checkpoint of another vocabulary?" if name == "vocab_size" else ""
            raise ValueError(f"{path}: {name}: expected at least {least}{why}, got {got!r}")
    return int(settings["hidden_size"])


def load_language_model(folder: Path, dtype: torch.dtype | None, device_map: Any = None) -> LlamaForCausalLM:
    """transformers' way, but strict: every tensor is in the files, and nothing else; and in memory of its own."""
    from transformers import LlamaForCausalLM

    stored = stored_dtype(folder)
    try:
        loaded: Any = LlamaForCausalLM.from_pretrained(
            folder,
            # Casting is left to own_weights, which needs no memory for it; not where the weights go to other devices.
            dtype=stored if device_map is None or dtype is None else dtype,
            device_map=device_map,
            local_files_only=True,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (SafetensorError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        first_line = str(error).split("\n")[0]
        raise ValueError(f"{folder}: a weights file is damaged or no file of tensors ({first_line})") from error
    model, info = loaded
    check_loaded(folder, info, OLD_TENSORS)
    own_weights(model, dtype)
    model.config.dtype = dtype or stored
    return model  # type: ignore[no-any-return]


def stored_dtype(folder: Path) -> torch.dtype:
    """The precision of the weights in a LLaMA's files: that of the first tensor. ValueError naming a damaged file."""
    first = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if first is None:
        raise FileNotFoundError(f"{folder}: no weights (none of {', '.join(WEIGHT_FILES)})")
    names = read_json(first)["weight_map"].values() if first.name.endswith(INDEX) else [first.name]
    found = []
    for path in (folder / name for name in sorted(set(names))):
        if path.suffix == ".bin":
            found += [tensor.dtype for tensor in read_tensors(path).values()]
            continue
        try:
            with safe_open(path, framework="pt") as file:
                found += [file.get_tensor(name).dtype for name in islice(file.keys(), 1)]
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged, cut short, or not a file of tensors ({error})") from error
    return next((dtype for dtype in found if dtype.is_floating_point), torch.float32)
