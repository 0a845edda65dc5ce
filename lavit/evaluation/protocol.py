"""The paper's protocol of drawing images for the captions of a data set."""

from typing import Any

PROMPTS, SAMPLES = 30_000, 4
SETTINGS: dict[str, Any] = {"guidance": 2.0, "top_k": 200}
