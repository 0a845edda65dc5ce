"""Images from files, what is written about them, and batches from images."""

import lazy_loader

# Loaded on first use; what there is stands in __init__.pyi, for type checkers too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
