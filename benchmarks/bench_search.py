"""How long is a search compared with the same candidates in the plain loop at 224x224?

Ours is a search with default settings, timed once from reading the catalogue to the final network,
without a run folder. The reference trains the same networks (controls, candidates, final trainings) for
the same number of epochs and resizes each image from disk to 224x224 every time, as the published
program does; and once more at the catalogue's own size, to separate the effect of image size. That would
take hours, so a few batches of the same network are timed after each of our trainings, with busy workers,
and scaled to its rows and epochs. The reference excludes the plain loop's work per epoch and per network;
ours includes everything besides training (reading, comparing, calibrating). The reference runs in its own
process, since our settings of the C library would speed it up. Images are grey; with --colour the larger
ones have three channels, as in the published program.
"""

import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench_epoch import SAMPLE, Loaders, network_of
from reference_loop import ReferenceLoop, as_colour
from side_by_side import Row, own_process, parse, show
from torch.utils.data import DataLoader

from space_warps.core import choose_device
from space_warps.data.augment import Augment
from space_warps.data.loaders import EpochSampler, create_train_val_dataloaders
from space_warps.models.blocks import BlockSpec
from space_warps.search.config import SearchConfig
from space_warps.search.events import CandidateEnded, CandidateStarted, Event
from space_warps.search.records import Candidate, CandidateResult
from space_warps.search.runner import LocalRunner
from space_warps.search.search import search
from space_warps.search.settings import with_overrides

PREFETCHED = 2  # Batches that a worker prepares ahead, the default of torch


@dataclass(frozen=True)
class Timing:
    """Time of a few batches of the plain loop."""

    train_s: float  # Per training row
    val_s: float  # Per validation row
    timed_s: float  # Of all timed batches

    def scaled(self, num_epochs: int, num_train: int, num_val: int) -> float:
        """Extrapolated seconds of a training."""
        return num_epochs * (num_train * self.train_s + num_val * self.val_s)


_IN_CHILD: dict[str, Loaders] = {}


def begin_child(sides: dict[str, tuple[Path, int | None]], args: Any) -> None:
    """Read a few rows at each image size, in the process of the plain loop."""
    for name, (folder, image_size) in sides.items():
        loaders = read(folder, args.fraction, image_size)
        _IN_CHILD[name] = few_rows(loaders, args.batches, args.workers)


def time_in_child(side: str, candidate: Candidate, args: Any) -> Timing:
    """Time a few batches of a candidate's network in the plain loop."""
    loaders = _IN_CHILD[side]
    model, device = network_of(loaders, candidate.blocks), str(choose_device())
    loop = ReferenceLoop(model, loaders, candidate.train_config, args.workers, device)
    train_s, num_trained = time_batches(loop.train_loader, loop.take_step, args.batches)
    val_s, num_measured = time_batches(loop.val_loader, loop.count_correct, args.batches)
    return Timing(train_s / num_trained, val_s / num_measured, train_s + val_s)


def time_batches(
    loader: DataLoader[Any], work: Callable[[Any], object], num_batches: int
) -> tuple[float, int]:
    """Seconds and rows of some batches, after a warm-up batch."""
    batches = iter(loader)
    work(next(batches))
    began, num_rows = time.perf_counter(), 0
    for batch in itertools.islice(batches, num_batches):
        work(batch)
        num_rows += len(batch[1])
    seconds = time.perf_counter() - began
    for _ in batches:  # until here the workers are as busy as within an epoch
        pass
    return seconds, num_rows


def few_rows(loaders: Loaders, num_batches: int, workers: int) -> Loaders:
    """Loaders with as many full batches as a timing needs."""
    train = loaders[0]
    data: Any = train.dataset
    size = train.batch_size or 1
    num_rows = (1 + num_batches + workers * PREFETCHED) * size
    few = data.subset(np.resize(np.arange(len(data)), num_rows), data.transform)
    return DataLoader(few, size, sampler=EpochSampler(num_rows, 0)), DataLoader(few, size)


Blocks = tuple[BlockSpec, ...]


@dataclass
class TrainingTimer:
    """Observer that times each training, and then the same in the plain loop."""

    time_reference: Callable[[str, Candidate], Timing]
    sides: tuple[str, ...]
    num_train: int
    num_val: int
    num_trainings: int = 0
    num_epochs: int = 0
    paused_s: float = 0.0
    ours_s: dict[Blocks, float] = field(default_factory=lambda: defaultdict(float))
    reference_s: dict[tuple[str, Blocks], float] = field(default_factory=lambda: defaultdict(float))
    timed_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _began: float = 0.0

    def __call__(self, event: Event) -> None:
        now = time.perf_counter()
        if isinstance(event, CandidateStarted):
            self._began = now
        elif isinstance(event, CandidateEnded):
            self._add(event.result, now - self._began)
            self.paused_s += time.perf_counter() - now

    def _add(self, result: CandidateResult, seconds: float) -> None:
        blocks, num_epochs = result.candidate.blocks, len(result.epochs)
        self.num_trainings += 1
        self.num_epochs += num_epochs
        self.ours_s[blocks] += seconds
        for side in self.sides:
            timing = self.time_reference(side, result.candidate)
            self.timed_s[side] += timing.timed_s
            needed = timing.scaled(num_epochs, self.num_train, self.num_val)
            self.reference_s[side, blocks] += needed

    def rows(self, search_s: float) -> list[Row]:
        """Rows of the whole search and of each network."""
        result = []
        for side in self.sides:
            total = sum(self.reference_s[side, blocks] for blocks in self.ours_s)
            result.append(Row(f"whole search, reference {side}", search_s, total))
        for side in self.sides:
            for blocks, seconds in sorted(self.ours_s.items(), key=lambda item: len(item[0])):
                widths = ", ".join(str(spec.k) for spec in blocks) or "none"
                name = f"k {widths}; reference {side}"
                result.append(Row(name, seconds, self.reference_s[side, blocks]))
        return result

    def note(self) -> str:
        """Note on what is measured and what is extrapolated."""
        timed = " and ".join(f"{self.timed_s[side]:.1f} s at {side}" for side in self.sides)
        return (
            f"{self.num_trainings} trainings, {self.num_epochs} epochs of {self.num_train} + "
            f"{self.num_val} rows, which took {sum(self.ours_s.values()):.1f} s of ours.\n"
            f"Ours is measured in full; the reference is EXTRAPOLATED from {timed}."
        )


def read(folder: Path, fraction: float, image_size: int | None = None) -> Loaders:
    """Loaders of a catalogue, with z and z_err."""
    return create_train_val_dataloaders(
        folder / "annotations.csv",
        folder / "images",
        Augment(),
        fraction=fraction,
        image_size=image_size,
    )


def sides_of(args: Any, folder: Path) -> dict[str, tuple[Path, int | None]]:
    """Catalogue and image size of the plain loop: large, and the same as ours."""
    source = as_colour(SAMPLE, folder / "colour", 10**6, 75) if args.colour else SAMPLE
    large = f"{args.side}x{args.side} {'colour' if args.colour else 'grey'}"
    return {large: (source, args.side), "75x75 grey": (SAMPLE, None)}


def config_of(args: Any) -> SearchConfig:
    """The default settings, shortened by the options."""
    given = {"max_layers": args.max_layers, "final.epochs": args.finish_epochs}
    return with_overrides(SearchConfig(), {name: v for name, v in given.items() if v})


def measure(args: Any) -> tuple[list[Row], str]:
    """Search once, and time the plain loop after each training."""
    with tempfile.TemporaryDirectory() as folder:
        sides = sides_of(args, Path(folder))
        with own_process(begin_child, sides, args) as child:

            def time_reference(side: str, candidate: Candidate) -> Timing:
                return child.submit(time_in_child, side, candidate, args).result()

            began = time.perf_counter()
            runner = LocalRunner(*read(SAMPLE, args.fraction))
            timer = TrainingTimer(time_reference, tuple(sides), runner.num_train, runner.num_val)
            search(config_of(args), runner, observers=[timer])
            seconds = time.perf_counter() - began - timer.paused_s
    return timer.rows(seconds), timer.note()


def main() -> None:
    """Run the benchmark and print its results."""
    args = parse(
        __doc__,
        rounds=0,
        fraction=1.0,
        max_layers=0,
        finish_epochs=0,
        side=224,
        batches=3,
        workers=2,
        colour=False,
    )
    rows, note = measure(args)
    show(rows, args.json, note)


if __name__ == "__main__":
    main()
