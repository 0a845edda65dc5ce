"""``lavit quickstart``: all three stages in minutes, on whatever machine this is, with a report at the end.

It draws the shapes world, trains a small encoder and a small tokenizer on it, tokenizes held-out scenes and real
photographs, and asks what the tokens still know. Then a small language model learns to caption the scenes, to answer
questions about them, and to write the tokens of scenes that it is asked for or asked to change; and a small U-Net
learns to paint what tokens say. No data, network or GPU is needed.
"""

import lazy_loader

# Loaded on first use; what there is stands in __init__.pyi, for type checkers too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
