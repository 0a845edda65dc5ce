"""The shapes world as training sequences: its scenes captioned, asked about, and asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lavit.data.mixture import Sample, Source
from lavit.data.questions import PROMPT, Question, questions
from lavit.data.shapes import Scenes, ShapesWorld
from lavit.kernels import Loss, Segment

Encode = Callable[[str], list[int]]

KINDS = ("caption", "question", "image", "text")


def encoder_of(tokenizer: Any) -> Encode:
    """A transformers text tokenizer as a function of text to ids, with nothing added."""
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def sample_of(kind: str, image: int, text: str, answer: str, encode: Encode, eos: int, predict_codes: bool) -> Sample:
    """A sample of one of ``KINDS``. text: the caption, the question, the prompt, or the text alone. answer: to a
    question. image: its number, where the kind has one. eos, predict_codes: see ``ShapesSource``."""
    shown = Loss.ALL if predict_codes else Loss.NONE
    if kind == "question":
        texts = (encode(PROMPT.format(text)), [*encode(f" {answer}"), eos])
        order = (Segment.FEATURES, Segment.TEXT, Segment.TEXT)
        return Sample(order, texts, (image,), (shown, Loss.NONE, Loss.CONTENT))
    words = encode(text)
    if kind == "caption":
        return Sample((Segment.FEATURES, Segment.TEXT), ([*words, eos],), (image,), (shown, Loss.CONTENT))
    if kind == "image":
        return Sample((Segment.TEXT, Segment.CODES), (words,), (image,))
    return Sample((Segment.TEXT,), ([*words, eos],))


@dataclass
class ShapesSource:
    """One kind of sample of every scene (four of it for questions). Image i is scene i.

    kind: "caption", [image, text] with continuous features; "question", [image, question, answer], of which the answer
    carries loss (*derived*: the paper trains on no questions); "image", [text, image] with codes; "text", the caption
    alone. Captions and answers end with ``eos``. predict_codes: the codes of an image that is shown carry loss too
    (whether they did is not known). Nothing is put in front of a text, as in the release.
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
        return len(self.scenes) * (len(self.asked[0]) if self.kind == "question" and self.asked else 1)

    def __getitem__(self, index: int) -> Sample:
        if self.kind == "question":
            scene, which = divmod(index, len(self.asked[0]))
            one = self.asked[scene][which]
            return sample_of(self.kind, scene, one.text, one.answer, self.encode, self.eos, self.predict_codes)
        return sample_of(self.kind, index, self._captions[index], "", self.encode, self.eos, self.predict_codes)


def shapes_sources(
    world: ShapesWorld, scenes: Scenes, encode: Encode, eos: int, *, predict_codes: bool = False
) -> dict[str, Source]:
    """All kinds of samples of the world's first scenes, by name."""
    asked = questions(world, scenes.cells)
    return {kind: ShapesSource(kind, scenes, asked, encode, eos, predict_codes) for kind in KINDS}
