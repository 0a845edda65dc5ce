"""What is told of a run: dataclasses that become plain data."""

from __future__ import annotations

import dataclasses
from typing import Any


class Record:
    """A dataclass that gives its fields, and those of the dataclasses in them, by name."""

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]
