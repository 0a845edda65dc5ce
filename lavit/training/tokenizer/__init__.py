"""Stage 1: the dynamic visual tokenizer. Its rooms: `recipe`, `data`, `objective`, `train`, `command`."""

from lavit.compatibility import forward

# Once a module; its names are in these rooms now.
_ROOMS = ("train", "objective", "initialization", "data", "command")
__getattr__ = forward(__name__, [f"{__name__}.{room}" for room in _ROOMS])
