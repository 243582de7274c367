"""How good is the network of a default search on unseen objects?

Five folds grouped by object: each is the test set of one search with its own seed, which splits the
other rows into training and validation. With `--test CSV` the test set is that file, and every search
uses the whole catalogue with another seed. Prints a line per search, then means and spread.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch.utils.data import DataLoader

from space_warps.data.augment import Augment
from space_warps.data.dataset import Space_Galaxi
from space_warps.data.loaders import create_train_val_dataloaders
from space_warps.evaluation.metrics import METRICS, Predictions, summarize_metrics
from space_warps.search.config import PLAIN_PRESET, SearchConfig
from space_warps.search.runner import LocalRunner
from space_warps.search.search import search
from space_warps.search.settings import config_diff, with_overrides
from space_warps.training.loop import evaluate

NUM_FOLDS = 5


def split_catalogue(
    folder: Path, features: list[str], fold: int, into: Path, num_seen: int = NUM_FOLDS - 1
) -> tuple[Path, Path]:
    """Write the folds of the search and the others to one catalogue each."""
    data = Space_Galaxi(folder / "annotations.csv", folder / "images", features=features)
    folds = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=0)
    labels, groups = data.catalogue.labels, data.catalogue.groups
    parts = [part for _, part in folds.split(labels, labels, groups)]
    seen = [parts[(fold + index) % NUM_FOLDS] for index in range(1, num_seen + 1)]
    is_seen = np.isin(np.arange(len(labels)), np.concatenate(seen))
    table = pd.read_csv(folder / "annotations.csv", dtype=str, keep_default_na=False)
    paths = into / f"seen_{fold}.csv", into / f"tested_{fold}.csv"
    for rows, path in zip((is_seen, ~is_seen), paths, strict=True):
        table[rows].to_csv(path, index=False)
    return paths


def grow(
    folder: Path, features: list[str], fold: int, changes: dict[str, Any], test: Path | None = None
) -> dict[str, Any]:
    """Search on all folds except one and evaluate on it, or on a test set."""
    with tempfile.TemporaryDirectory() as folder_of_folds:
        others, tested = folder / "annotations.csv", test
        if tested is None:
            others, tested = split_catalogue(folder, features, fold, Path(folder_of_folds))
        began = time.monotonic()
        loaders = create_train_val_dataloaders(
            others, folder / "images", Augment(), features=features, seed=fold
        )
        config = with_overrides(SearchConfig(seed=fold), changes)
        model, history = search(config, LocalRunner(*loaders, seed=fold))
        seconds = time.monotonic() - began
        unseen = Space_Galaxi(
            tested, folder / "images", features=features, classes=history.base_architecture.classes
        )
        measured = evaluate(model, DataLoader(unseen, 256))
    predictions = Predictions(
        measured.logits.numpy(),
        measured.labels.numpy(),
        unseen.catalogue.groups,
        history.base_architecture.classes,
    )
    result = summarize_metrics(predictions)
    final = history.final_result
    return {
        "fold": fold,
        **{name: round(result[name], 4) for name in METRICS},
        "num_rows": result["num_rows"],
        "widths": [spec.k for spec in model.architecture.blocks],
        "params": model.num_params,
        "selected": final.candidate.role if final else None,
        "val_acc": round(final.val_acc, 4) if final else None,
        "seconds": round(seconds, 1),
        "decisions": [f"{s.decision.action}: {s.decision.reason}" for s in history.steps],
        "final_training": history.final_training.reason if history.final_training else None,
        "stop_reason": history.stop_reason,
        "scores": np.round(predictions.logits, 4).tolist(),
        "labels": predictions.labels.tolist(),
    }


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalogue", type=Path, help="folder with annotations.csv and images/")
    parser.add_argument(
        "--features", nargs="*", default=[], help="feature columns, none by default"
    )
    parser.add_argument("--folds", nargs="*", type=int, default=list(range(NUM_FOLDS)))
    parser.add_argument("--test", type=Path, help="test set to use instead of folds")
    parser.add_argument("--plain", action="store_true", help="plain greedy growth")
    parser.add_argument(
        "--set", nargs="*", default=[], help="settings of SearchConfig, e.g. final.epochs=20"
    )
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    changes = config_diff(PLAIN_PRESET, SearchConfig()) if args.plain else {}
    changes |= {setting.split("=")[0]: json.loads(setting.split("=", 1)[1]) for setting in args.set}
    rows = []
    for fold in args.folds:
        row = grow(args.catalogue, args.features, fold, changes, args.test)
        rows.append(row)
        shown = {name: value for name, value in row.items() if name not in ("scores", "labels")}
        print(json.dumps(shown), flush=True)
        if args.json:
            about = {"machine": platform.platform(), "torch": torch.__version__}
            record = {**about, "features": args.features, "changes": changes, "rows": rows}
            args.json.write_text(json.dumps(record, indent=1) + "\n")
    for name in (*METRICS, "params", "seconds"):
        values = [row[name] for row in rows]
        spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
        print(f"{name:18} {np.mean(values):10.4f}  spread {spread:.4f}")


if __name__ == "__main__":
    main()
