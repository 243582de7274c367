"""Should a candidate inherit the moments of AdamW along with its parent's weights?

A network of one block is trained for the epochs of a step, with one cycle of the learning rate. It is
then trained for another step, in two ways: unchanged, as a control is, and with a second block. Each
starts with empty moments, as a search does, and with the moments of its parent's training, for weights
that come from the parent. A row gives the increase of the validation log-loss due to keeping the moments,
for a seed, which determines split, weights and order. Seeds share the objects of the catalogue, so the
standard errors over seeds are somewhat too small.
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
    """Start optimizers with these moments; yields a dict that receives those of the last one."""
    final: Moments = {}
    original, built = training.build_optimizer, []

    def build(model: torch.nn.Module, *args: Any, **options: Any) -> torch.optim.Optimizer:
        optimizer = original(model, *args, **options)
        for name, weight in model.named_parameters():
            inherited = moments.get(name, {})
            if inherited and inherited["exp_avg"].shape == weight.shape:
                optimizer.state[weight] = {key: value.clone() for key, value in inherited.items()}
        built.append((optimizer, model))
        return optimizer

    training.build_optimizer = build
    try:
        yield final
    finally:
        training.build_optimizer = original
    optimizer, model = built[-1]
    final |= {name: optimizer.state[weight] for name, weight in model.named_parameters()}


def increase_of_loss(
    folder: Path, features: list[str], seed: int, config: SearchConfig
) -> dict[str, float]:
    """Increase of the validation log-loss due to keeping the moments, without and with a block."""
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
        """Train; returns the network, its log-loss and the final moments."""
        epochs, step = config.epochs_per_eval, 1 + bool(start.architecture.blocks)
        plan = config.plan(epochs, (step - 1) * epochs, seed + step)
        model = init_model(Candidate(step, 0, blocks, plan, step > 1, 0.0), start)
        with inheriting(moments) as final:
            done = training.train(model, *loaders, plan)
        model.load_state_dict(done.state_dict)
        return SavedModel.from_model(model), done.best.val_loss, final

    parent, _, inherited = fit((first,), empty, {})
    result = {}
    for name, blocks in (("unchanged", (first,)), ("one more block", (first, BlockSpec(32)))):
        without, kept = (fit(blocks, parent, moments)[1] for moments in ({}, inherited))
        result[name] = kept - without
    return result


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalogue", type=Path, help="folder with annotations.csv and images")
    parser.add_argument(
        "--features", nargs="*", default=[], help="feature columns, none by default"
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(8)))
    parser.add_argument("--epochs", type=int, default=SearchConfig.epochs_per_eval)
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    config = SearchConfig(epochs_per_eval=args.epochs)
    rows = []
    for seed in args.seeds:
        rows.append(increase_of_loss(args.catalogue, args.features, seed, config))
        print(seed, *(f"{name}: {value:+.4f}" for name, value in rows[-1].items()), flush=True)
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
        print(f"{name}: {values.mean():+.4f} +- {error:.4f}")
    if args.json:
        options = {
            "features": args.features,
            "epochs": args.epochs,
            "seeds": args.seeds,
        }
        record = {"machine": machine(), "commit": commit(), "options": options, "rows": rows}
        write_json(args.json, record)


if __name__ == "__main__":
    main()
