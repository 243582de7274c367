from .evaluate import evaluate_run as evaluate_run
