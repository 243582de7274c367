from .baselines import BaselineResult as BaselineResult
from .baselines import compare_classical as compare_classical
from .baselines import compare_networks as compare_networks
from .evaluate import evaluate_run as evaluate_run
from .metrics import Predictions as Predictions
from .metrics import summarize_metrics as summarize_metrics
