"""Put a trained network to work: predictions for arrays and catalogues, and outliers.

The names listed in `__init__.pyi` load on first use (SPEC 1).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
