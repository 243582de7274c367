"""Which parts of the recipe pay? One fixed network, trained with one part changed at a time.

Folds of whole objects of a catalogue; no row of a test fold takes any part in its training. Prints
accuracy and log-loss for each choice, and the difference to the recipe with its spread over folds.
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
    """One recipe."""

    plan: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=30))
    augment: Augment = field(default_factory=Augment)
    batch_size: int = 32
    blocks: tuple[BlockSpec, ...] = (BlockSpec(16, downsample=3), BlockSpec(32), BlockSpec(64))
    windows: tuple[float, ...] = (0.2, 0.45)
    softening: float = 0.1
    sky_view: bool = True
    symmetric: bool = True
    average: float = 0.0  # Decay of averaged weights; 0 is off
    precision: str = "float32"  # Of the convolutions


class ImageTwice(ImageEncoder):
    """The standardised image in both channels: as wide as with the sky view, and without it."""

    def forward(self, images: Tensor) -> Tensor:
        """Standardise, twice."""
        scaled = (images - self.mean) / self.std
        return torch.cat([scaled, scaled], dim=1)


BASE = Choice()


def choices() -> dict[str, Choice]:
    """Every recipe by name; the first one is what the others are compared with."""
    plan, blocks = BASE.plan, BASE.blocks
    wide = tuple(replace(spec, k=2 * spec.k) for spec in blocks)
    deep = tuple(BlockSpec(k) for k in (16, 32, 64, 64))
    large = (replace(blocks[0], kernel_size=5), *blocks[1:])
    return {
        "recipe": BASE,
        "plain mean over the maps": replace(BASE, pool_sigmas=()),
        "no view above the sky": replace(BASE, sky_view=False),
        "stretch not undone": replace(BASE, asinh_softening=100.0),
        "one orientation when asked": replace(BASE, tta=False),
        "no augmentation": replace(BASE, augment=NO_AUGMENT),
        "free turns, scale, light, noise": replace(BASE, augment=STRONG_AUGMENT),
        "free turns only": replace(BASE, augment=Augment(rotation=180)),
        "constant rate 1e-3": replace(
            BASE, train_config=replace(plan, schedule="constant", lr=1e-3)
        ),
        "rate 1e-2": replace(BASE, train_config=replace(plan, lr=1e-2)),
        "weight decay 0.2": replace(BASE, train_config=replace(plan, weight_decay=0.2)),
        "no label smoothing": replace(BASE, train_config=replace(plan, label_smoothing=0.0)),
        "averaged weights": replace(BASE, average=0.99),
        "dropout of channels 0.1": replace(
            BASE, blocks=tuple(replace(spec, dropout=0.1) for spec in blocks)
        ),
        "batches of 64": replace(BASE, batch_size=64),
        "first kernel 5": replace(BASE, blocks=large),
        "twice as wide": replace(BASE, blocks=wide),
        "4 blocks, all pooling by 2": replace(BASE, blocks=deep),
        "60 epochs": replace(BASE, train_config=replace(plan, epochs=60)),
        "bfloat16": replace(BASE, precision="bfloat16"),
    }


def build(choice: Choice, data: Space_Galaxi, seed: int) -> ProgressiveModel:
    """The network of a choice with its first weights."""
    architecture = Architecture(
        data.image_shape,
        data.classes,
        data.catalogue.feature_names,
        measure_input_statistics(data),
        choice.blocks,
        pool_sigmas=choice.windows,
        asinh_softening=choice.softening,
        tta=choice.symmetric,
    )
    with seeded(seed):
        model = ProgressiveModel(architecture)
    if not choice.sky_view:
        model.encoder = ImageTwice(
            architecture.input_statistics.image_mean, architecture.input_statistics.image_std
        )
    return model


def fit(choice: Choice, model: nn.Module, loader: DataLoader[Any], seed: int) -> nn.Module:
    """Train by the package's optimizer and schedule; the loop is here for the averaged weights."""
    prepare_model(model, "cpu")
    optimizer = build_optimizer(model, choice.plan)
    schedule = build_schedule(optimizer, choice.plan, len(loader))
    averaged = None
    if choice.average:
        decay = get_ema_multi_avg_fn(choice.average)
        averaged = AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
    for epoch in range(choice.plan.epochs):
        model.train()
        with seeded(seed, epoch), deterministic(), autocast(choice.precision, "cpu"):
            for images, labels, features in iterate_batches(loader, "cpu", epoch):
                loss = functional.cross_entropy(
                    model(images, features), labels, label_smoothing=choice.plan.label_smoothing
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                if averaged is not None:
                    averaged.update_parameters(model)
    return averaged.module if averaged is not None else model


def run(choice: Choice, data: Space_Galaxi, fold: int, num_folds: int) -> dict[str, float]:
    """Train on all folds but one and measure on that one."""
    labels, groups = data.catalogue.labels, data.catalogue.groups
    folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=0)
    rest, tested = list(folds.split(labels, labels, groups))[fold]
    existing = data.subset(rest, choice.augment)
    loader = DataLoader(
        existing,
        choice.batch_size,
        sampler=EpochSampler(len(existing), fold),
        drop_last=len(existing) % choice.batch_size == 1,
    )
    began = time.monotonic()
    model = fit(choice, build(choice, existing, fold), loader, fold)
    seconds = time.monotonic() - began
    message = evaluate(model, DataLoader(data.subset(tested), 256))
    return {"accuracy": message.accuracy, "log_loss": message.loss, "seconds": seconds}


def show(name: str, rows: list[dict[str, float]], base: list[dict[str, float]]) -> None:
    """A line of the table."""
    text = f"{name:32}"
    for figure in ("accuracy", "log_loss"):
        values = np.array([row[figure] for row in rows])
        gain = values - np.array([row[figure] for row in base[: len(rows)]])
        spread = gain.std(ddof=1) if len(gain) > 1 else float("nan")
        text += f"  {values.mean():.3f}  {gain.mean():+.3f} ({spread:.3f})"
    print(f"{text}  {np.median([row['seconds'] for row in rows]):6.0f} s", flush=True)


def main(existing: Callable[[], dict[str, Choice]] = choices) -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalogue", type=Path, help="folder with annotations.csv and images/")
    parser.add_argument("--features", nargs="*", default=[], help="columns, none by default")
    parser.add_argument("--only", nargs="*", default=list(existing()), help="names of choices")
    parser.add_argument("--folds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--num-folds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to keep the figures in")
    requested = parser.parse_args()
    data = Space_Galaxi(
        requested.catalogue / "annotations.csv",
        requested.catalogue / "images",
        features=requested.features,
    )
    print(f"{'':32}  accuracy  difference  log-loss  difference (spread over folds)")
    result: dict[str, list[dict[str, float]]] = {}
    for name in dict.fromkeys(["recipe", *requested.only]):
        choice = existing()[name]
        result[name] = [run(choice, data, fold, requested.num_folds) for fold in requested.folds]
        show(name, result[name], result["recipe"])
        if requested.json:
            about = {"machine": platform.platform(), "torch": torch.__version__}
            kept = {
                **about,
                "folds": requested.folds,
                "features": requested.features,
                "rows": result,
            }
            requested.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
