from .app import Dashboard as Dashboard
from .controller import RunController as RunController
