"""Stage 2: one model that reads and writes text and images. Its rooms: `recipe`, `data`, `objective`, `train`,
`command`."""

from lavit.compatibility import forward

# Once a module; its names are in these rooms now.
__getattr__ = forward(__name__, [f"{__name__}.{room}" for room in ("train", "objective", "data", "command")])
