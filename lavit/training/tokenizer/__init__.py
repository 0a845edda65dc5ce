"""Stage 1: the dynamic visual tokenizer. Its four rooms: `recipe`, `data`, `objective`, `train`; `command` reads the
words of ``lavit train tokenizer``."""

from lavit.compatibility import forward

# Once a module; its names are in these rooms now.
_ROOMS = ("train", "objective", "initialization", "data", "command")
__getattr__ = forward(__name__, [f"{__name__}.{room}" for room in _ROOMS])
