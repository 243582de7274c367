from .folder import RunFolder as RunFolder
from .monitor import RunMonitor as RunMonitor
from .one_call import progressive_architecture_search as progressive_architecture_search
from .progress import ProgressBar as ProgressBar
from .state import read_history as read_history
from .trackers import open_tracker as open_tracker
from .tree import RunTree as RunTree
