"""How far a command has come, told now and then."""

from __future__ import annotations

import sys
from collections.abc import Callable


def tenths(task: str, *, end: bool = False, silent: bool = False) -> Callable[[int, int], None]:
    """To be called with how many are done, of how many: says every tenth of the way, after the first. end: and when all
    are done. silent: says nothing, as of other processes than the first."""
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if not silent and (end or done < total) and 10 * done // total > told:
            told = 10 * done // total
            print(f"{task}: {done} of {total}", file=sys.stderr, flush=True)

    return tell
