from .config import Config as Config
from .config import read_config as read_config
from .config import read_run_config as read_run_config
from .config import to_yaml as to_yaml
