"""A small LaVIT that is asked for captions, answers and image tokens, what it is asked, and its processor."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from tiny_lavit import SIDE, llama, tokenizer

from lavit.kernels import Ragged
from lavit.language import LaVIT, LaVITProcessor
from lavit.language.text_tokenizer import train_text_tokenizer
from lavit.tokenizer import LaVITImageProcessor

CAPTIONS = ["a red circle", "a blue square and a green triangle", "nothing"]
QUESTIONS = [("what colour?", "red"), ("how many?", "two"), ("is it round?", "no, it is a square")]
SHORT = {"min_new": 1, "max_new": 6}
FEW = {"min_tokens": 1, "max_tokens": 7}
CONTEXT = 96


def new_processor() -> LaVITProcessor:
    words = [*CAPTIONS, *(f"Question: {question} Answer: {answer}" for question, answer in QUESTIONS)] * 2
    return LaVITProcessor(LaVITImageProcessor(SIDE), train_text_tokenizer(words, 340))


def new_model(processor: LaVITProcessor, **settings: Any) -> LaVIT:
    """In float64, where rounding decides nothing; large weights, so that each prompt has its own continuation."""
    sizes = {"initializer_range": 0.3, "max_position_embeddings": CONTEXT}
    return LaVIT.from_parts(llama(processor.text_size, **sizes), tokenizer(), **settings).double()


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def file_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def embedded(model: LaVIT, processor: LaVITProcessor, prompts: list[Any], **reading: Any) -> Ragged:
    """What the model is to go on from, by the processor and the model's own packing."""
    given = processor(prompts, begin_image=reading.pop("begin_image", False))
    images = given.images if given.images is None else given.images.double()
    batch = model.assemble(given.text, given.segments, images=images, **{"deterministic": True, **reading})
    return Ragged(model.embed(batch).detach(), batch.sequences.cu_seqlens, batch.max_seqlen)


def lists(codes: Ragged) -> list[list[int]]:
    return [row.tolist() for row in codes.unbind()]


PROMPTS = ["a red circle", [picture(0), "but blue"], ["a", "square"], picture(1), [picture(2), "and", picture(3)]]


def codes_of(model: LaVIT, processor: LaVITProcessor, prompts: list[Any] = PROMPTS, **settings: Any) -> list[list[int]]:
    return lists(model.generate_tokens(prompts, processor, **{**FEW, **settings}).codes)

