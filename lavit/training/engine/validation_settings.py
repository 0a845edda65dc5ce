"""What the settings of validation may be. Recipes import it, so it imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lavit.data.split import check_share

FOLDER = "folder of held-out images, of the form of data; none: see validation_share"
SHARE = "share of the images of data that is held out, by a hash of their names"
IMAGES = "of the held-out images, how many at most are looked at"
"""Help of the settings validation, validation_share and validation_images of every stage."""


def check_validation(config: Any, shapes: str) -> None:
    """ValueError for settings of validation that cannot be. shapes: what the world without files is called."""
    check_share("validation_share", config.validation_share)
    if config.validation_images < 1:
        raise ValueError(f"validation_images: expected a number >= 1, got {config.validation_images}")
    if config.validation is None:
        return
    if config.validation_share:
        raise ValueError(f"validation_share: expected 0 beside validation, got {config.validation_share}")
    if config.data == shapes:
        raise ValueError(
            f"validation: expected none with --data {shapes}, got {config.validation}; validation_share takes scenes "
            "of the world's own test part"
        )


def check_apart(data: str, validation: str) -> None:
    """ValueError where the images of one folder are among those of the other."""
    own, other = Path(data).resolve(), Path(validation).resolve()
    if own.is_relative_to(other) or other.is_relative_to(own):
        raise ValueError(
            f"validation: expected a folder apart from data ({data}), got {validation}; validation_share holds out "
            "images of one folder"
        )
