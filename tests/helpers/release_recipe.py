"""A small model in the release's layout whose weights are numbers of a formula, the same on every machine.

The golden files `tests/golden/release_*` hold what the release's own code made of these weights and inputs; nothing of
them is stored. numpy's ``RandomState`` never changes, and only its uniform numbers are used, whose bits depend on no
mathematical library.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

TEXT_SIZE, NUM_CODES = 32000, 16384  # the release's: it has them as constants
SIDE, PATCHES, WIDTH = 112, 64, 176
LLAMA = {
    "vocab_size": TEXT_SIZE + 2 + NUM_CODES,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
TOKENIZER: dict[str, Any] = {
    "image_size": SIDE,
    "hidden_size": WIDTH,
    "encoder_depth": 2,
    "encoder_heads": 2,
    "encoder_head_dim": 48,
    "merger_depth": 2,
    "decoder_depth": 2,
    "num_heads": 2,
    "projection_dim": 64,
    "condition_dim": 32,
    "condition_dim_2": 40,
}
NEGATIVES = 7
CHARACTERS = [" ", *".,:?\n", *map(chr, range(ord("a"), ord("z") + 1)), *map(chr, range(ord("A"), ord("Z") + 1))]
EOS, FIRST_CHARACTER = 2, 3


def uniform(name: str, *shape: int) -> np.ndarray:
    """Float64 of mean 0 and deviation 1, by the name."""
    return (np.random.RandomState(zlib.crc32(name.encode())).random_sample(shape) - 0.5) * 12**0.5


def noise(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(uniform(name, *shape)).float()


def gumbel(name: str, *shape: int) -> Tensor:
    """Noise of a selection, between -1.7 and 1.7."""
    return noise(name, *shape)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    values = uniform(name, *shape)
    if name.endswith("bias"):
        values *= 0.1
    elif len(shape) == 1:
        values = 1 + 0.1 * values
    elif "embed" not in name:
        values /= np.prod(shape[1:]) ** 0.5
    return torch.from_numpy(values).float()


def fill(module: nn.Module, part: str) -> Any:
    """Every parameter by ``part`` and its own name."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(weight(f"{part}: {name}", tuple(parameter.shape)))
    return module.eval()


def shape_head(language_model: nn.Module, *, eos: float = 1.5, end: float = 3.5) -> Any:
    """Scores so far apart that there is something to choose: text of the tokenizer's characters alone.

    eos, end: factors of the rows of EOS and of [/IMG], which say how often texts and images end.
    """
    head = language_model.lm_head.weight
    with torch.no_grad():
        head *= 3
        head[FIRST_CHARACTER + len(CHARACTERS) : TEXT_SIZE] = 0
        head[:EOS] = 0
        head[TEXT_SIZE] = 0
        head[EOS] *= eos
        head[TEXT_SIZE + 1] *= end
    return language_model


def picture(number: int, size: tuple[int, int] = (71, 48)) -> Image.Image:
    """Of another size than the model's: smooth colours and a little noise."""
    width, height = size
    random = np.random.RandomState(number)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    planes = [127 + 100 * np.sign(np.mod(x * random.randint(1, 5) + y * random.randint(1, 5), 24) - 12) for _ in "rgb"]
    return Image.fromarray((np.stack(planes, -1) + random.randint(-20, 20, (height, width, 3))).astype(np.uint8))


def text_tokenizer() -> Any:
    """One id a character; ids 0, 1 and 2 are the release's <unk>, <s> and </s>."""
    names = ["<unk>", "<s>", "</s>", *CHARACTERS]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(names[:FIRST_CHARACTER])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


# Inputs.

ENDING = 2.0  # a further factor of EOS's row, for texts that mostly end early
RECORDED = [0, 1, 10, 19, 20]  # the draws whose distributions are kept

IMAGE_CASES: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
    ("guided", ("a dog", "two red squares on a blue ground", "x", "snow, at night."), {"num_return_images": 2}),
    ("plain", ("a dog", "two red squares on a blue ground"), {"guidance": 1.0, "top_k": 20, "temperature": 1.5}),
    ("nucleus", ("a dog", "two red squares on a blue ground"), {"guidance": 1.5, "top_p": 0.9}),
)
MULTIMODAL: tuple[tuple[int | str, ...], ...] = (
    (3, "it is running in the snow"),
    ("a cat beside this", 4, "and below this", 5),
    (6, 7),
)
"""Prompts of texts and of pictures by number."""


def picture_size(number: int) -> tuple[int, int]:
    """(width, height), of every shape, one of them the model's own."""
    return ((71, 48), (48, 71), (SIDE, SIDE), (130, 150))[number % 4]


def questions(count: int) -> list[str]:
    words = ("what is it?", "how many dogs are in the snow?", "is it red, or blue?", "why?")
    return [words[i % len(words)] for i in range(count)]


def draws(name: str, count: int, tokens: int = 600) -> Tensor:
    """The random numbers in [0, 1) of ``count`` samples."""
    return torch.from_numpy(uniform(f"draws {name}", count, tokens) / 12**0.5 + 0.5)


def decoded() -> list[list[int]]:
    """Codes of images to be drawn: one of every place, one of few."""
    return [
        np.random.RandomState(length).randint(0, NUM_CODES, length).tolist() for length in (PATCHES, 23)
    ]
