from .loop import evaluate as evaluate
