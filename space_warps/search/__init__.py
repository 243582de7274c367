"""Search for a network, block by block, with a control and paired tests at every step.

The names listed in `__init__.pyi` load on first use (SPEC 1).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
