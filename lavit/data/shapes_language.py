"""The shapes world as training sequences: its scenes captioned, asked about, and asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np

from lavit.data.mixture import Sample, Source
from lavit.data.questions import KINDS as QUESTION_KINDS
from lavit.data.questions import PROMPT, Question, questions
from lavit.data.shapes import Scenes, ShapesWorld
from lavit.kernels import Loss, Segment

Encode = Callable[[str], list[int]]

KINDS = ("caption", "question", "image", "text")
ORDERS = tuple(permutations(range(len(QUESTION_KINDS))))
"""In which a scene's questions are asked, one order after the other."""


def encoder_of(tokenizer: Any) -> Encode:
    """A transformers text tokenizer as a function of text to ids, with nothing added."""
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def sample_of(kind: str, image: int, text: str, answer: str, encode: Encode, eos: int, predict_codes: bool) -> Sample:
    """A sample of one of ``KINDS``. text: the caption, the question, the prompt, or the text alone. answer: to a
    question. image: its number, where the kind has one. eos, predict_codes: see ``ShapesSource``."""
    if kind == "question":
        return conversation_of(image, ((text, answer),), encode, eos, predict_codes)
    words = encode(text)
    if kind == "caption":
        shown = Loss.ALL if predict_codes else Loss.NONE
        return Sample((Segment.FEATURES, Segment.TEXT), ([*words, eos],), (image,), (shown, Loss.CONTENT))
    if kind == "image":
        return Sample((Segment.TEXT, Segment.CODES), (words,), (image,))
    return Sample((Segment.TEXT,), ([*words, eos],))


def conversation_of(
    image: int, asked: Sequence[tuple[str, str]], encode: Encode, eos: int, predict_codes: bool
) -> Sample:
    """An image, then questions with their answers one after the other: (question, answer) pairs, of which the answers
    carry loss. The image is read once for all of them."""
    shown = Loss.ALL if predict_codes else Loss.NONE
    texts = [words for one, said in asked for words in (encode(PROMPT.format(one)), [*encode(f" {said}"), eos])]
    order = (Segment.FEATURES, *(Segment.TEXT,) * len(texts))
    return Sample(order, tuple(texts), (image,), (shown, *(Loss.NONE, Loss.CONTENT) * len(asked)))


@dataclass
class ShapesSource:
    """One kind of sample of every scene. Image i is scene i.

    kind: "caption", [image, text] with continuous features; "question", [image, question, answer, question, ...], of
    which the answers carry loss (*derived*: the paper trains on no questions), each scene's questions in an order of
    its own; "image", [text, image] with codes; "text", the caption alone. Captions and answers end with ``eos``.
    predict_codes: the codes of an image that is shown carry loss too (whether they did is not known). Nothing is put in
    front of a text, as in the release.
    """

    kind: str
    scenes: Scenes
    asked: Sequence[tuple[Question, ...]]
    encode: Encode
    eos: int
    predict_codes: bool = False
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        digest = hashlib.blake2b(np.ascontiguousarray(self.scenes.cells).tobytes(), digest_size=8)
        digest.update(f"{self.kind} {self.eos} {self.predict_codes}".encode())
        self.fingerprint = digest.hexdigest()
        self._captions = self.scenes.captions

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        if self.kind == "question":
            order = ORDERS[index % len(ORDERS)]
            asked = [(self.asked[index][k].text, self.asked[index][k].answer) for k in order]
            return conversation_of(index, asked, self.encode, self.eos, self.predict_codes)
        return sample_of(self.kind, index, self._captions[index], "", self.encode, self.eos, self.predict_codes)


def shapes_sources(
    world: ShapesWorld, scenes: Scenes, encode: Encode, eos: int, *, predict_codes: bool = False
) -> dict[str, Source]:
    """All kinds of samples of the world's first scenes, by name."""
    asked = questions(world, scenes.cells)
    return {kind: ShapesSource(kind, scenes, asked, encode, eos, predict_codes) for kind in KINDS}
