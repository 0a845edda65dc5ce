"""The dynamic visual tokenizer: encoder, selector, merger, quantizer, decoder."""

from .configuration import LaVITTokenizerConfig
from .model import LaVITTokenizer, LaVITTokenizerOutput, VisualTokens
from .processing import LaVITImageProcessor

__all__ = [
    "LaVITImageProcessor",
    "LaVITTokenizer",
    "LaVITTokenizerConfig",
    "LaVITTokenizerOutput",
    "VisualTokens",
]
