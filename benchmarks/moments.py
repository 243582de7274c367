"""Should a candidate inherit the moments of AdamW with its parent's weights?

A network of one block is trained for the epochs of a step, with one cycle of the learning rate. Then it
goes on for another step, in two ways: as it is, which is what a control or a candidate of a further rung
does, and with a second block. Each of them begins with empty moments, as a search does it, and with those
that its parent's training left, wherever a weight is the parent's. A row is what keeping them adds to
the validation log-loss, for a seed, which settles split, weights and order. Seeds share the objects of
the catalogue, so that standard errors over seeds are rather too small.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import commit, machine

import space_warps.training.loop as training
from space_warps.core import write_json
from space_warps.data.augment import Augment
from space_warps.data.loaders import create_train_val_dataloaders
from space_warps.models.blocks import BlockSpec
from space_warps.models.saved_model import SavedModel
from space_warps.search.candidate_training import init_model
from space_warps.search.config import SearchConfig
from space_warps.search.records import Candidate
from space_warps.search.runner import LocalRunner

Moments = dict[str, dict[str, torch.Tensor]]


@contextmanager
def inheriting(moments: Moments) -> Iterator[Moments]:
    """Within the block optimizers begin with these moments; those of the last one are filled in."""
    left: Moments = {}
    plain, made = training.build_optimizer, []

    def build(model: torch.nn.Module, *args: Any, **options: Any) -> torch.optim.Optimizer:
        optimizer = plain(model, *args, **options)
        for name, weight in model.named_parameters():
            existing = moments.get(name, {})
            if existing and existing["exp_avg"].shape == weight.shape:
                optimizer.state[weight] = {key: value.clone() for key, value in existing.items()}
        made.append((optimizer, model))
        return optimizer

    training.build_optimizer = build
    try:
        yield left
    finally:
        training.build_optimizer = plain
    optimizer, model = made[-1]
    left |= {name: optimizer.state[weight] for name, weight in model.named_parameters()}


def added(folder: Path, features: list[str], seed: int, config: SearchConfig) -> dict[str, float]:
    """What keeping the moments adds to the validation log-loss, as it is and with a block more."""
    loaders = create_train_val_dataloaders(
        folder / "annotations.csv",
        folder / "images",
        Augment(),
        features=features,
        train_ratio=0.7,
        seed=seed,
    )
    empty = LocalRunner(*loaders, device="cpu", seed=seed).base_model
    first = BlockSpec(16, kernel_size=5, downsample=3)

    def fit(blocks: tuple[BlockSpec, ...], start: SavedModel, moments: Moments) -> tuple[Any, ...]:
        """Train from there; the network, its log-loss, and the moments that are left."""
        epochs, depth = config.epochs_per_eval, 1 + bool(start.architecture.blocks)
        plan = config.plan(epochs, (depth - 1) * epochs, seed + depth)
        model = init_model(Candidate(depth, 0, blocks, plan, depth > 1, 0.0), start)
        with inheriting(moments) as left:
            done = training.train(model, *loaders, plan)
        model.load_state_dict(done.state_dict)
        return SavedModel.from_model(model), done.best.val_loss, left

    parent, _, left = fit((first,), empty, {})
    result = {}
    for message, blocks in (("as it is", (first,)), ("a block more", (first, BlockSpec(32)))):
        without, kept = (fit(blocks, parent, moments)[1] for moments in ({}, left))
        result[message] = kept - without
    return result


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalogue", type=Path, help="folder with annotations.csv and images")
    parser.add_argument("--features", nargs="*", default=[], help="columns, none by default")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(8)))
    parser.add_argument("--epochs", type=int, default=SearchConfig.epochs_per_eval)
    parser.add_argument("--json", type=Path, help="file to keep the figures in")
    requested = parser.parse_args()
    config = SearchConfig(epochs_per_eval=requested.epochs)
    rows = []
    for seed in requested.seeds:
        rows.append(added(requested.catalogue, requested.features, seed, config))
        print(seed, *(f"{message}: {more:+.4f}" for message, more in rows[-1].items()), flush=True)
    for message in rows[0]:
        values = np.array([row[message] for row in rows])
        error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
        print(f"{message}: {values.mean():+.4f} +- {error:.4f}")
    if requested.json:
        about = {
            "features": requested.features,
            "epochs": requested.epochs,
            "seeds": requested.seeds,
        }
        text = {"machine": machine(), "commit": commit(), "asked": about, "rows": rows}
        write_json(requested.json, text)


if __name__ == "__main__":
    main()
