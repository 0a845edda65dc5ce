"""The whole released model: a LLaMA checkpoint, the visual tokenizer, and the merger and projector trained with it."""

from __future__ import annotations

import pickle
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from lavit.language.vocabulary import Vocabulary
from lavit.released.files import DECODER_FILES, TOKENIZER_FILE, fill, read_json, read_tensors, unprefixed
from lavit.released.tokenizer import load_released_tokenizer
from lavit.tokenizer.configuration import LaVITTokenizerConfig
from lavit.tokenizer.pretrained import check_fit

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from lavit.language.model import LaVIT

# Those of `language_model/`: the LLaMA's own, one of which holds or lists its weights, and the visual parts' beside it.
VISUAL_FILE, CONFIG_FILE = "visual_weight.bin", "config.json"
INDEX = ".index.json"
WEIGHT_FILES = tuple(name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", INDEX))

# What older LLaMA checkpoints hold beside their weights, and their configuration already says.
OLD_TENSORS = "rotary_emb.inv_freq"


def load_released_lavit(
    folder: str | PathLike[str],
    *,
    config: LaVITTokenizerConfig | None = None,
    decoder: str = "lowres",
    text_size: int = 32000,
    dtype: torch.dtype | None = None,
    visual_dtype: torch.dtype = torch.float32,
) -> LaVIT:
    """The released model from its folder, which holds `visual_tokenizer/` and `language_model/`.

    `language_model/` is a LLaMA checkpoint, whole or in shards, `.safetensors` or `.bin`, whose vocabulary has [IMG],
    [/IMG] and the codes already; its text tokenizer is transformers' to read. `language_model/visual_weight.bin` has
    the merger and the projector that were trained with it: images are read by these, and written with the codes of the
    tokenizer's own merger. Its names are *derived*: `causal_encoder.*` and `vit_proj.*`, as those of the same parts in
    the release's tokenizer, with or without `visual_tokenizer.` before them.

    config, decoder: of the visual tokenizer, as in :func:`load_released_tokenizer`; merge is "dense" for both mergers.
    text_size: number of text ids; [IMG] is the one after them. dtype: of the language model; None: as it is stored.
    visual_dtype: of the visual tokenizer, the second merger and the projector.

    No code of a file is run. Raises FileNotFoundError that names every missing file, and ValueError for a language
    model of another kind, for one with fewer rows than there are ids, and where :func:`load_released_tokenizer` does.
    """
    from lavit.language.continuous_features import Understanding
    from lavit.language.model import LaVIT

    if decoder not in DECODER_FILES:
        raise ValueError(f"decoder: expected one of {', '.join(DECODER_FILES)}, got {decoder!r}")
    visual, language = Path(folder) / "visual_tokenizer", Path(folder) / "language_model"
    check_parts(visual, language, decoder)
    settings = config or LaVITTokenizerConfig.preset("lavit-g")
    width = check_language_config(language / CONFIG_FILE, Vocabulary(text_size, settings.num_codes))
    tokenizer = load_released_tokenizer(visual, config=settings, decoder=decoder, dtype=visual_dtype)
    with torch.device("meta"):
        understanding = Understanding(tokenizer.config, width)  # type: ignore[arg-type]
    path = language / VISUAL_FILE
    fill(understanding, unprefixed(read_tensors(path), "visual_tokenizer.", path), visual_dtype, str(path))
    model = LaVIT.from_parts(load_language_model(language, dtype), tokenizer, text_size=text_size)
    model.config.prompt_images, model.config.answer_early_stopping = "bare_codes", True
    model.understanding = understanding
    return model.eval()


def check_parts(visual: Path, language: Path, decoder: str) -> None:
    """FileNotFoundError for what the release's folder lacks; the encoder may be in either of two files."""
    wanted = [visual / TOKENIZER_FILE, visual / DECODER_FILES[decoder], language / CONFIG_FILE, language / VISUAL_FILE]
    missing = [str(path) for path in wanted if not path.is_file()]
    weights = next((language / name for name in WEIGHT_FILES if (language / name).is_file()), None)
    if weights is None:
        missing.append(f"{language / WEIGHT_FILES[0]} (or {', '.join(WEIGHT_FILES[1:])})")
    elif weights.name.endswith(INDEX):
        files = read_json(weights).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise ValueError(f"{weights}: expected the file of every tensor under weight_map, got {files!r}")
        missing += [str(language / name) for name in sorted(set(files.values())) if not (language / name).is_file()]
    if missing:
        raise FileNotFoundError(f"the released model lacks {', '.join(missing)}")


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


def load_language_model(folder: Path, dtype: torch.dtype | None) -> LlamaForCausalLM:
    """transformers' way, but strict: every tensor is in the files, and nothing else."""
    from transformers import LlamaForCausalLM

    try:
        loaded: Any = LlamaForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            local_files_only=True,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first_line = str(error).split("\n")[0]
        raise ValueError(f"{folder}: a weights file is damaged or no file of tensors ({first_line})") from error
    model, info = loaded
    unexpected = [name for name in info["unexpected_keys"] if not name.endswith(OLD_TENSORS)]
    check_fit(f"{folder}: the tensors do not fit the model", {**info, "unexpected_keys": unexpected})
    return model  # type: ignore[no-any-return]
