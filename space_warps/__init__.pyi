from .audit import Audit as Audit
from .augment import Augment as Augment
from .blocks import BlockSpec as BlockSpec
from .blocks import build_block as build_block
from .blocks import register_block as register_block
from .core import InputError as InputError
from .dataset import Space_Galaxi as Space_Galaxi
from .evaluation import evaluate_run as evaluate_run
from .history import SearchHistory as SearchHistory
from .loaders import create_train_val_dataloaders as create_train_val_dataloaders
from .loaders import set_epoch as set_epoch
from .model import Architecture as Architecture
from .model import ProgressiveModel as ProgressiveModel
from .page import write_report as write_report
from .progress import ProgressBar as ProgressBar
from .growth import plot_accuracy_vs_depth as plot_accuracy_vs_depth
from .runner import LocalRunner as LocalRunner
from .runs import RunFolder as RunFolder
from .search import progressive_architecture_search as progressive_architecture_search
from .settings import SearchConfig as SearchConfig
from .simulate import sample_catalogue as sample_catalogue
from .snapshot import load_snapshot as load_snapshot
from .train import evaluate as evaluate

__version__: str
