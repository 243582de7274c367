"""How long is an epoch, and what does each measure give? Ours against the plain loop, in turn.

An epoch is one pass over the training rows and one measurement on the validation rows. Decoding is
not part of ours, which does it once; `bench_input.py` times that.
"""

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from reference_loop import PlainBlocks, ReferenceLoop, as_colour
from side_by_side import Row, compare, parse, show
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from space_warps.augment import Augment
from space_warps.blocks import BlockSpec
from space_warps.core import deterministic, seeded
from space_warps.dataset import measure_scaling
from space_warps.loaders import create_train_val_dataloaders, iterate
from space_warps.model import Architecture, ProgressiveModel
from space_warps.plan import TrainPlan, build_optimizer, build_schedule
from space_warps.train import evaluate, place_model, take_step, train_epoch

SAMPLE = Path(__file__).resolve().parent.parent / "data/sample"
PLAN = TrainPlan(epochs=10**4)
Loaders = tuple[DataLoader[Any], DataLoader[Any]]


def read(folder: Path, fraction: float = 1.0) -> Loaders:
    """The rows of a catalogue."""
    return create_train_val_dataloaders(
        folder / "annotations.csv", folder / "images", Augment(), fraction=fraction
    )


def network(loaders: Loaders, *widths: int, first_pool: int = 2) -> ProgressiveModel:
    """A network with its first weights."""
    data = loaders[0].dataset
    architecture = Architecture(
        data.image_shape,  # type: ignore[attr-defined]
        data.classes,  # type: ignore[attr-defined]
        data.catalogue.feature_names,  # type: ignore[attr-defined]
        measure_scaling(data),  # type: ignore[arg-type]
        tuple(BlockSpec(k, pool=2 if place else first_pool) for place, k in enumerate(widths)),
    )
    with seeded(0):
        return ProgressiveModel(architecture)


class OurLoop:
    """Our training, an epoch at a time, with the optimizer kept."""

    def __init__(self, model: ProgressiveModel, loaders: Loaders, device: str = "cpu") -> None:
        self.model, self.loaders, self.device, self.epoch = model, loaders, device, 0
        place_model(model, device)
        self.optimizer = build_optimizer(model, PLAN)
        self.schedule = build_schedule(self.optimizer, PLAN, len(loaders[0]))

    def run_epoch(self) -> float:
        """Train one epoch and measure."""
        step = functools.partial(
            take_step, self.model, self.optimizer, self.schedule, PLAN.label_smoothing
        )
        self.model.train()
        with seeded(PLAN.seed, self.epoch), deterministic():
            train_epoch(step, self.loaders[0], self.epoch, self.device)
        self.epoch += 1
        return evaluate(self.model, self.loaders[1], self.device).accuracy


def against_reference(name: str, loaders: Loaders, widths: tuple[int, ...], rounds: int) -> Row:
    """An epoch of ours and one of the plain loop."""
    ours = OurLoop(network(loaders, *widths), loaders)
    plain = ReferenceLoop(network(loaders, *widths), loaders, PLAN)
    return compare(name, ours.run_epoch, plain.run_epoch, rounds)


def without(measure: str, loaders: Loaders, widths: tuple[int, ...]) -> Callable[[], object]:
    """Our epoch with one measure taken back."""
    ours = OurLoop(network(loaders, *widths), loaders)
    if measure == "channels last":
        ours.model.to(memory_format=torch.contiguous_format)
    elif measure == "pooling first":
        ours.model.blocks = nn.ModuleList(PlainBlocks(block) for block in ours.model.blocks)
        place_model(ours.model, "cpu")
    elif measure == "large validation batches":
        val = ours.loaders[1]
        ours.loaders = ours.loaders[0], DataLoader(val.dataset, 32)
    return ours.run_epoch


def share_outside(loaders: Loaders, widths: tuple[int, ...]) -> float:
    """Share of an epoch's time that is not forward, backward and optimizer."""
    ours = OurLoop(network(loaders, *widths), loaders)
    inside = 0.0

    def step(batch: Any) -> torch.Tensor:
        nonlocal inside
        began = time.perf_counter()
        loss = take_step(ours.model, ours.optimizer, ours.schedule, PLAN.label_smoothing, batch)
        inside += time.perf_counter() - began
        return loss

    ours.run_epoch()
    began = time.perf_counter()
    ours.model.train()
    with seeded(PLAN.seed, 1), deterministic():
        train_epoch(step, loaders[0], 1)
    return 1 - inside / (time.perf_counter() - began)


def roofline(loaders: Loaders, widths: tuple[int, ...]) -> str:
    """The arithmetic of a step against what the machine multiplies and copies per second."""
    ours = OurLoop(network(loaders, *widths), loaders)
    batch = next(iter(iterate(loaders[0])))
    step = functools.partial(
        take_step, ours.model, ours.optimizer, ours.schedule, PLAN.label_smoothing
    )
    ours.model.train()
    step(batch)
    with FlopCounterMode(display=False) as counter:
        step(batch)
    seconds = min(_seconds(lambda: step(batch)) for _ in range(10))
    square, buffer = torch.rand(1024, 1024), torch.rand(2**25)
    other = torch.empty_like(buffer)
    matrix = 2 * 1024**3 / min(_seconds(lambda: square @ square) for _ in range(10))
    copied = 2 * 4 * 2**25 / min(_seconds(lambda: other.copy_(buffer)) for _ in range(10))
    flops = counter.get_total_flops()
    return (
        f"step of {len(batch[1])} rows: {flops / 1e9:.2f} GFLOP in {1e3 * seconds:.1f} ms, "
        f"{flops / seconds / 1e9:.0f} GFLOP/s of {matrix / 1e9:.0f} that the machine multiplies; "
        f"it copies {copied / 1e9:.0f} GB/s"
    )


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    asked = parse(__doc__, fraction=0.5, colour_rows=160)
    loaders = read(SAMPLE, asked.fraction)
    rows = [
        against_reference(
            f"75x75 grey, k {', '.join(map(str, widths))}", loaders, widths, asked.rounds
        )
        for widths in ((32, 64), (32, 64, 64))
    ]
    with tempfile.TemporaryDirectory() as place:
        large = read(as_colour(SAMPLE, Path(place) / "large", asked.colour_rows, 224))
        rows.append(
            against_reference(
                "224x224 colour, k 32, 64", large, (32, 64), max(2, asked.rounds // 2)
            )
        )
    show(rows, asked.json)
    print("\nwhat each measure gives at 75x75 (the epoch without it, divided by ours):")
    for measure in ("channels last", "pooling first", "large validation batches"):
        taken_back = without(measure, loaders, (32, 64))
        ours = OurLoop(network(loaders, 32, 64), loaders)
        row = compare(measure, ours.run_epoch, taken_back, asked.rounds)
        print(f"  {measure:26} {row.ratio:.2f}")
    print(f"\noutside forward, backward, optimizer: {share_outside(loaders, (32, 64)):.1%}")
    print(roofline(loaders, (32, 64)))


if __name__ == "__main__":
    main()
