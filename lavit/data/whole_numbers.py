"""Numbers that must be whole: one that is not is refused, instead of cut to another one."""

from __future__ import annotations

import operator
from typing import Any


def whole_number(name: str, value: Any) -> int:
    """The value as an int. TypeError naming the argument for a float, 1.0 too, and for what is no number."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, got {value!r}") from None
