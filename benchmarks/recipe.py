"""Which parts of the recipe improve a network? One part at a time is changed.

One fixed network is cross-validated over folds of whole objects. Prints accuracy and log-loss for
each choice, and the difference to the recipe with its spread over folds.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from space_warps.core import autocast, deterministic, seeded
from space_warps.data.augment import NO_AUGMENT, STRONG_AUGMENT, Augment
from space_warps.data.dataset import Space_Galaxi, measure_input_statistics
from space_warps.data.loaders import EpochSampler, iterate_batches
from space_warps.models.blocks import BlockSpec
from space_warps.models.encoders import ImageEncoder
from space_warps.models.model import Architecture, ProgressiveModel
from space_warps.training.config import TrainConfig, build_optimizer, build_schedule
from space_warps.training.loop import evaluate, prepare_model


@dataclass(frozen=True)
class Choice:
    """A recipe: network, training and augmentation."""

    train_config: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=30))
    augment: Augment = field(default_factory=Augment)
    batch_size: int = 32
    blocks: tuple[BlockSpec, ...] = (BlockSpec(16, downsample=3), BlockSpec(32), BlockSpec(64))
    pool_sigmas: tuple[float, ...] = (0.2, 0.45)
    asinh_softening: float = 0.1
    sky_view: bool = True
    tta: bool = True  # Average predictions over all orientations
    average: float = 0.0  # Decay of the moving average of weights; 0 is off
    precision: str = "float32"  # Of the convolutions


class ImageTwice(ImageEncoder):
    """The standardized image in both channels: as wide as with the sky view, but without it."""

    def forward(self, images: Tensor) -> Tensor:
        """Standardize."""
        scaled = (images - self.mean) / self.std
        return torch.cat([scaled, scaled], dim=1)


BASE = Choice()


def choices() -> dict[str, Choice]:
    """Every recipe by name; the others are compared with the first one."""
    config, blocks = BASE.train_config, BASE.blocks
    wide = tuple(replace(spec, k=2 * spec.k) for spec in blocks)
    deep = tuple(BlockSpec(k) for k in (16, 32, 64, 64))
    large = (replace(blocks[0], kernel_size=5), *blocks[1:])
    return {
        "recipe": BASE,
        "global average pooling": replace(BASE, pool_sigmas=()),
        "no channel relative to the sky": replace(BASE, sky_view=False),
        "stretch not inverted": replace(BASE, asinh_softening=100.0),
        "no test-time augmentation": replace(BASE, tta=False),
        "no augmentation": replace(BASE, augment=NO_AUGMENT),
        "free rotation, scale, brightness, noise": replace(BASE, augment=STRONG_AUGMENT),
        "free rotation only": replace(BASE, augment=Augment(rotation=180)),
        "constant learning rate 1e-3": replace(
            BASE, train_config=replace(config, schedule="constant", lr=1e-3)
        ),
        "learning rate 1e-2": replace(BASE, train_config=replace(config, lr=1e-2)),
        "weight decay 0.2": replace(BASE, train_config=replace(config, weight_decay=0.2)),
        "no label smoothing": replace(BASE, train_config=replace(config, label_smoothing=0.0)),
        "averaged weights": replace(BASE, average=0.99),
        "dropout of channels 0.1": replace(
            BASE, blocks=tuple(replace(spec, dropout=0.1) for spec in blocks)
        ),
        "batch size 64": replace(BASE, batch_size=64),
        "stem kernel 5": replace(BASE, blocks=large),
        "twice as wide": replace(BASE, blocks=wide),
        "4 blocks, all downsampling by 2": replace(BASE, blocks=deep),
        "60 epochs": replace(BASE, train_config=replace(config, epochs=60)),
        "bfloat16": replace(BASE, precision="bfloat16"),
    }


def build(choice: Choice, data: Space_Galaxi, seed: int) -> ProgressiveModel:
    """Build the network of a choice with its initial weights."""
    architecture = Architecture(
        data.image_shape,
        data.classes,
        data.catalogue.feature_names,
        measure_input_statistics(data),
        choice.blocks,
        pool_sigmas=choice.pool_sigmas,
        asinh_softening=choice.asinh_softening,
        tta=choice.tta,
    )
    with seeded(seed):
        model = ProgressiveModel(architecture)
    if not choice.sky_view:
        model.encoder = ImageTwice(
            architecture.input_statistics.image_mean, architecture.input_statistics.image_std
        )
    return model


def fit(choice: Choice, model: nn.Module, loader: DataLoader[Any], seed: int) -> nn.Module:
    """Train with the package's optimizer and schedule, in a loop that can average weights."""
    prepare_model(model, "cpu")
    optimizer = build_optimizer(model, choice.train_config)
    schedule = build_schedule(optimizer, choice.train_config, len(loader))
    averaged = None
    if choice.average:
        decay = get_ema_multi_avg_fn(choice.average)
        averaged = AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
    for epoch in range(choice.train_config.epochs):
        model.train()
        with seeded(seed, epoch), deterministic(), autocast(choice.precision, "cpu"):
            for images, labels, features in iterate_batches(loader, "cpu", epoch):
                loss = functional.cross_entropy(
                    model(images, features),
                    labels,
                    label_smoothing=choice.train_config.label_smoothing,
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                if averaged is not None:
                    averaged.update_parameters(model)
    return averaged.module if averaged is not None else model


def run(choice: Choice, data: Space_Galaxi, fold: int, num_folds: int) -> dict[str, float]:
    """Train on all folds but one and evaluate on that one."""
    labels, groups = data.catalogue.labels, data.catalogue.groups
    folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=0)
    train_rows, test_rows = list(folds.split(labels, labels, groups))[fold]
    train = data.subset(train_rows, choice.augment)
    loader = DataLoader(
        train,
        choice.batch_size,
        sampler=EpochSampler(len(train), fold),
        drop_last=len(train) % choice.batch_size == 1,
    )
    began = time.monotonic()
    model = fit(choice, build(choice, train, fold), loader, fold)
    seconds = time.monotonic() - began
    result = evaluate(model, DataLoader(data.subset(test_rows), 256))
    return {"accuracy": result.accuracy, "log_loss": result.loss, "seconds": seconds}


def show(name: str, rows: list[dict[str, float]], base: list[dict[str, float]]) -> None:
    """Print a line of the table."""
    text = f"{name:40}"
    for metric in ("accuracy", "log_loss"):
        values = np.array([row[metric] for row in rows])
        gain = values - np.array([row[metric] for row in base[: len(rows)]])
        spread = gain.std(ddof=1) if len(gain) > 1 else float("nan")
        text += f"  {values.mean():.3f}  {gain.mean():+.3f} ({spread:.3f})"
    print(f"{text}  {np.median([row['seconds'] for row in rows]):6.0f} s", flush=True)


def main(make_choices: Callable[[], dict[str, Choice]] = choices) -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalogue", type=Path, help="folder with annotations.csv and images/")
    parser.add_argument("--features", nargs="*", default=[], help="columns, none by default")
    parser.add_argument("--only", nargs="*", default=list(make_choices()), help="names of choices")
    parser.add_argument("--folds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--num-folds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    data = Space_Galaxi(
        args.catalogue / "annotations.csv",
        args.catalogue / "images",
        features=args.features,
    )
    print(f"{'':40}  accuracy  difference  log-loss  difference (spread over folds)")
    results: dict[str, list[dict[str, float]]] = {}
    for name in dict.fromkeys(["recipe", *args.only]):
        choice = make_choices()[name]
        results[name] = [run(choice, data, fold, args.num_folds) for fold in args.folds]
        show(name, results[name], results["recipe"])
        if args.json:
            about = {"machine": platform.platform(), "torch": torch.__version__}
            content = {
                **about,
                "folds": args.folds,
                "features": args.features,
                "rows": results,
            }
            args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
