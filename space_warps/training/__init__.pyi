from .calibration import apply_temperature as apply_temperature
from .calibration import fit_temperature as fit_temperature
from .config import EpochMetrics as EpochMetrics
from .config import TrainConfig as TrainConfig
from .loop import Evaluation as Evaluation
from .loop import TrainResult as TrainResult
from .loop import evaluate as evaluate
from .loop import train as train
