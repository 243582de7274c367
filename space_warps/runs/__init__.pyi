from .progress import ProgressBar as ProgressBar
from .folder import RunFolder as RunFolder
