"""One vocabulary for text and images: text ids first, then [IMG], [/IMG] and the codes, as the release has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """Which ids are text, markers and codes.

    text_size: number of text ids, 0 to text_size - 1 (LLaMA-2: 32000). num_codes: K of the visual tokenizer (16384).
    The release's layout: 32000 [IMG], 32001 [/IMG], code k = 32002 + k; 48386 ids in all. Raises ValueError for a size
    below 1.
    """

    text_size: int
    num_codes: int

    def __post_init__(self) -> None:
        for name in ("text_size", "num_codes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number >= 1, got {getattr(self, name)}")

    @property
    def begin_id(self) -> int:
        """[IMG]: an image begins."""
        return self.text_size

    @property
    def end_id(self) -> int:
        """[/IMG]: an image has ended."""
        return self.text_size + 1

    @property
    def first_code_id(self) -> int:
        """Code 0; code k is at ``first_code_id + k``."""
        return self.text_size + 2

    @property
    def size(self) -> int:
        """Number of ids in use."""
        return self.text_size + 2 + self.num_codes
