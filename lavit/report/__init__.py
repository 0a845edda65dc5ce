"""What the quickstart found, and the page and the figure that show it.

What draws is loaded on first use: the results alone need neither matplotlib nor jinja2.
"""

import lazy_loader

# Loaded on first use; what there is stands in __init__.pyi, for type checkers too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
