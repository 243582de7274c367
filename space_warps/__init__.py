"""Grow a compact image classifier, block by block, for your own catalogue of cutouts.

The names listed in `__init__.pyi` are here at once; torch and the rest are loaded on first use
of one (see SPEC 1, https://scientific-python.org/specs/spec-0001).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
