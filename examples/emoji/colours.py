"""Named colours: of the backgrounds, and of what is drawn, as computed from its pixels.

A pixel has the name of the shade that is nearest in CIE Lab. The main colour of a picture is the name that most pixels
of the emoji have; it is clear where at least half have it, and twice as many as have any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BACKGROUNDS = {
    "white": (250, 250, 250),
    "grey": (128, 128, 128),
    "black": (20, 20, 20),
    "red": (214, 48, 48),
    "yellow": (250, 204, 60),
    "green": (60, 160, 75),
    "blue": (50, 110, 215),
    "purple": (155, 60, 175),
}
"""RGB by name."""

SHADES = {
    "white": ((255, 255, 255), (250, 250, 250), (235, 235, 235), (225, 232, 236)),
    "grey": ((190, 190, 190), (158, 158, 158), (128, 128, 128), (97, 97, 97), (144, 164, 174), (96, 125, 139)),
    "black": ((0, 0, 0), (20, 20, 20), (33, 33, 33), (50, 50, 50), (66, 66, 66), (38, 50, 56)),
    "red": ((214, 48, 48), (244, 67, 54), (200, 30, 40), (160, 20, 30), (229, 57, 53), (245, 82, 20)),
    "orange": ((255, 138, 50), (245, 124, 0), (255, 160, 60), (235, 100, 30)),
    "yellow": ((252, 194, 27), (250, 204, 60), (255, 235, 59), (253, 216, 53), (255, 245, 157), (235, 190, 60)),
    "brown": ((121, 85, 72), (141, 110, 99), (93, 64, 55), (160, 110, 70), (84, 57, 48), (186, 140, 100)),
    "green": ((60, 160, 75), (76, 175, 80), (46, 125, 50), (139, 195, 74), (165, 214, 120), (0, 121, 107)),
    "blue": (
        *((33, 150, 243), (25, 118, 210), (13, 71, 161), (79, 195, 247), (63, 81, 181), (130, 177, 255)),
        *((0, 172, 193), (50, 110, 215), (1, 33, 105), (0, 0, 139), (48, 63, 159), (0, 56, 168)),
        *((0, 87, 115), (32, 112, 135), (64, 128, 150), (80, 155, 175)),
    ),
    "purple": ((156, 39, 176), (123, 31, 162), (155, 60, 175), (186, 104, 200), (103, 58, 183), (149, 117, 205)),
    "pink": ((240, 98, 146), (244, 143, 177), (236, 64, 122), (248, 187, 208), (255, 128, 171)),
}
"""RGB of several shades of each of the eleven colours."""

CLEAR_SHARE = 0.5
CLEAR_RATIO = 2.0
VISIBLE = 20.0
"""So far from the background, in CIE Lab, is a pixel seen."""
LOW_CONTRAST = 0.5
"""A picture of which fewer of the emoji's pixels are seen has low contrast."""

_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)


@dataclass(frozen=True)
class MainColour:
    """name: the commonest. share: of the pixels, that have it. clear: as the rule above says."""

    name: str
    share: float
    clear: bool


def lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB (..., 3) in [0, 255] -> CIE Lab (..., 3), white D65."""
    share = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _TO_XYZ.sum(1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


_NAMES = np.array([name for name, shades in SHADES.items() for _ in shades])
_SHADES = lab(np.array([shade for shades in SHADES.values() for shade in shades]))
_BACKGROUNDS = lab(np.array(list(BACKGROUNDS.values())))


def distance(rgb: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Between sRGB colours (..., 3): (...), in CIE Lab of 1976."""
    return np.linalg.norm(lab(rgb) - lab(other), axis=-1)


def shade_names(rgb: np.ndarray) -> np.ndarray:
    """The name of each of (n, 3) colours."""
    return _shade_names(lab(rgb))


def _shade_names(colours: np.ndarray) -> np.ndarray:
    # |a - b|^2 = |a|^2 - 2 a b + |b|^2, of which the first is the same for all shades.
    return _NAMES[((_SHADES**2).sum(1) - 2 * colours @ _SHADES.T).argmin(1)]


def nearest_background(rgb: np.ndarray) -> str:
    """The background that one colour (3,) is nearest to."""
    return list(BACKGROUNDS)[int(((_BACKGROUNDS - lab(rgb)) ** 2).sum(-1).argmin())]


def main_colour(rgb: np.ndarray) -> MainColour | None:
    """Of the pixels (n, 3) of an emoji; None where there is none. Of equals the first in the alphabet."""
    if len(rgb) == 0:
        return None
    names, counts = np.unique(shade_names(rgb), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    share = float(counts[order[0]] / len(rgb))
    second = float(counts[order[1]] / len(rgb)) if len(order) > 1 else 0.0
    return MainColour(str(names[order[0]]), share, share >= CLEAR_SHARE and share >= CLEAR_RATIO * second)


def seen_shares(rgb: np.ndarray) -> dict[str, float]:
    """Of the pixels (n, 3) of an emoji, n >= 1, how many are seen on each background."""
    far = np.linalg.norm(lab(rgb)[:, None] - _BACKGROUNDS, axis=-1)
    return dict(zip(BACKGROUNDS, (far > VISIBLE).mean(0).tolist(), strict=True))
