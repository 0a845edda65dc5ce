"""The shapes world as training sequences: its scenes captioned, asked about, and asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np

from lavit.data.mixture import Sample, Source
from lavit.data.sequences import KINDS, Sequencing
from lavit.shapes.questions import KINDS as QUESTION_KINDS
from lavit.shapes.questions import Question, questions
from lavit.shapes.world import Scenes, ShapesWorld

ORDERS = tuple(permutations(range(len(QUESTION_KINDS))))
"""In which a scene's questions are asked, one order after the other."""


@dataclass
class ShapesSource:
    """One kind of sample of every scene. Image i is scene i.

    kind: "caption", [image, text] with continuous features; "question", [image, question, answer, question, ...], of
    which the answers carry loss (*derived*: the paper trains on no questions), each scene's questions in an order of
    its own; "image", [text, image] with codes; "unprompted", the codes alone, which is what guidance leads away from
    (*derived*); "text", the caption alone.
    """

    kind: str
    scenes: Scenes
    asked: Sequence[tuple[Question, ...]]
    sequencing: Sequencing
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        digest = hashlib.blake2b(np.ascontiguousarray(self.scenes.cells).tobytes(), digest_size=8)
        digest.update(f"{self.kind} {self.sequencing.fingerprint}".encode())
        self.fingerprint = digest.hexdigest()
        self._captions = self.scenes.captions

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        if self.kind == "question":
            order = ORDERS[index % len(ORDERS)]
            asked = [(self.asked[index][k].text, self.asked[index][k].answer) for k in order]
            return self.sequencing.conversation(index, asked)
        return self.sequencing.sample(self.kind, index, self._captions[index], "")


def shapes_sources(world: ShapesWorld, scenes: Scenes, sequencing: Sequencing) -> dict[str, Source]:
    """All kinds of samples of the world's first scenes, by name."""
    asked = questions(world, scenes.cells)
    return {kind: ShapesSource(kind, scenes, asked, sequencing) for kind in KINDS}
