from .app import Dashboard as Dashboard
