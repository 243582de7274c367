from .history import SearchHistory as SearchHistory
from .runner import LocalRunner as LocalRunner
from .search import progressive_architecture_search as progressive_architecture_search
from .config import FinalConfig as FinalConfig
from .config import SearchConfig as SearchConfig
from .config import SelectionConfig as SelectionConfig
from .config import SpaceConfig as SpaceConfig
from .config import TrainingConfig as TrainingConfig
