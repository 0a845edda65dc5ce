"""Texts and images as training sequences: what a sample of each kind holds, and which of it carries loss."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lavit.data.mixture import Sample
from lavit.kernels import Loss, Segment

PROMPT = "Question: {} Answer:"
"""How the release asks."""

MOST_ASKED = 8
"""Questions about one image that a sample asks at most."""

Encode = Callable[[str], list[int]]

KINDS = ("caption", "question", "image", "unprompted", "text")
EDIT = "edit"
"""[image, text, image], a kind of its own: it has two images (*derived*: the paper trains on none, the release draws
images for such prompts)."""


@dataclass(frozen=True)
class Sequencing:
    """How texts and images become sequences.

    encode: text to ids, with nothing added. eos: the id that ends captions, answers and texts. Nothing is put in front
    of a text, as in the release. predict_codes: the codes of an image that is shown carry loss too (whether they did is
    not known). predict_prompts: so does the text before an image (the paper: cross-entropy at every position).
    edits_of: how an edit shows the image that is to be changed: as "features", or as "codes".
    """

    encode: Encode
    eos: int
    predict_codes: bool = False
    predict_prompts: bool = True
    edits_of: str = "features"

    def sample(self, kind: str, image: int, text: str, answer: str) -> Sample:
        """A sample of one of ``KINDS``. text: the caption, the question, the prompt, or the text alone. answer: to a
        question. image: its number, where the kind has one."""
        if kind == "question":
            return self.conversation(image, ((text, answer),))
        words = self.encode(text)
        if kind == "caption":
            order = (Segment.FEATURES, Segment.TEXT)
            return Sample(order, ([*words, self.eos],), (image,), (self._shown, Loss.CONTENT))
        if kind == "image":
            return Sample((Segment.TEXT, Segment.CODES), (words,), (image,), (self._asked_for, Loss.ALL))
        if kind == "unprompted":
            return Sample((Segment.CODES,), (), (image,), (Loss.ALL,))
        return Sample((Segment.TEXT,), ([*words, self.eos],))

    def conversation(self, image: int, asked: Iterable[tuple[str, str]], room: int | None = None) -> Sample:
        """An image, then questions with their answers one after the other: (question, answer) pairs, of which the
        answers carry loss. The image is read once for all of them. room: ids of text at most, but one pair there is."""
        texts: list[list[int]] = []
        taken = 0
        for one, said in asked:
            pair = [self.encode(PROMPT.format(one)), [*self.encode(f" {said}"), self.eos]]
            taken += sum(map(len, pair))
            if texts and room is not None and taken > room:
                break
            texts += pair
        order = (Segment.FEATURES, *(Segment.TEXT,) * len(texts))
        return Sample(order, tuple(texts), (image,), (self._shown, *(Loss.NONE, Loss.CONTENT) * (len(texts) // 2)))

    def edit(self, before: int, text: str, after: int) -> Sample:
        """An image, the words that ask for a change, and the image that they ask for. Its codes carry loss, and the
        words with ``predict_prompts``."""
        shown = Segment.CODES if self.edits_of == "codes" else Segment.FEATURES
        order = (shown, Segment.TEXT, Segment.CODES)
        return Sample(order, (self.encode(text),), (before, after), (self._shown, self._asked_for, Loss.ALL))

    @property
    def fingerprint(self) -> str:
        codes = " codes" if self.edits_of == "codes" else ""
        return f"{self.eos} {self.predict_codes} {self.predict_prompts}{codes}"

    @property
    def _shown(self) -> Loss:
        return Loss.ALL if self.predict_codes else Loss.NONE

    @property
    def _asked_for(self) -> Loss:
        return Loss.CONTENT if self.predict_prompts else Loss.NONE


def encoder_of(tokenizer: Any) -> Encode:
    """A transformers text tokenizer as a function of text to ids, with nothing added."""
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


@dataclass
class ListedSource:
    """Samples of one kind, from a list.

    kind: one of ``KINDS`` or ``EDIT``. entries: (number of the image, text, answer) of each, as ``Sequencing.sample``
    takes them, what a kind has not being 0 or ""; of ``EDIT`` (number of the image that is shown, text, number of the
    image that it asks for).
    """

    kind: str
    entries: Sequence[tuple[Any, ...]]
    sequencing: Sequencing
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        kinds = (*KINDS, EDIT)
        if self.kind not in kinds:
            raise ValueError(f"kind: expected one of {', '.join(kinds)}, got {self.kind!r}")
        digest = hashlib.blake2b(f"{self.kind} {self.sequencing.fingerprint}".encode(), digest_size=8)
        for entry in self.entries:
            digest.update(repr(entry).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        if self.kind == EDIT:
            return self.sequencing.edit(*self.entries[index])
        return self.sequencing.sample(self.kind, *self.entries[index])


@dataclass
class AskedSource:
    """Questions about images, each with others about the same image, which is read once for all of them.

    entries: (number of the image, question, answer) of each. A sample for each entry: it is asked first, then those
    that follow it among its image's, in a circle, `MOST_ASKED` in all, as far as there is room.
    room: ids of text in a sample at most; None: any number.
    """

    entries: Sequence[tuple[int, str, str]]
    sequencing: Sequencing
    room: int | None = None
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        about = f"asked {MOST_ASKED} {self.room} {self.sequencing.fingerprint}"
        digest = hashlib.blake2b(about.encode(), digest_size=8)
        self._of_image: dict[int, list[int]] = {}
        for number, entry in enumerate(self.entries):
            digest.update(repr(entry).encode())
            self._of_image.setdefault(entry[0], []).append(number)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        image = self.entries[index][0]
        others = self._of_image[image]
        first = others.index(index)
        turned = [*others[first:], *others[:first]][:MOST_ASKED]
        return self.sequencing.conversation(image, [self.entries[number][1:] for number in turned], self.room)

    @property
    def repeats(self) -> float:
        """How often all samples together show each question, on average, where there is room."""
        shown = sum(len(others) * min(len(others), MOST_ASKED) for others in self._of_image.values())
        return shown / max(len(self.entries), 1)
