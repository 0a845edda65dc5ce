"""How frozen encoders of other libraries are named, for recipes and whatever else is to import no torch."""

from __future__ import annotations

LIBRARIES = ("timm", "transformers")


def is_external(encoder: str | None) -> bool:
    """Whether the words name an encoder of another library."""
    return encoder is not None and encoder.partition(":")[0] in LIBRARIES and ":" in encoder
