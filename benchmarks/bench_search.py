"""How long is a whole search, beside its candidates in the plain loop with images of 224x224?

Ours is a search with default settings, timed once from reading the catalogue to the finished
network, with nothing written. The reference trains the same networks (controls, candidates,
trainings in full) as many epochs, each image resized to 224x224 from disk every time, as the
published program does; and once more at the catalogue's own size, to see what is owed to the
smaller image. That would take hours: after each of our trainings a few batches of the same network
are timed, workers busy, and scaled to its rows and epochs. What the plain loop does once an epoch or
once a network is left out of it, and what ours does beside training (reading, comparing,
calibrating) is in ours. Images are grey; with --colour the larger ones have three channels, as that
program reads them.
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
from side_by_side import Row, parse, show
from torch.utils.data import DataLoader

from space_warps.augment import Augment
from space_warps.blocks import BlockSpec
from space_warps.core import choose_device
from space_warps.events import CandidateEnded, CandidateStarted, Event
from space_warps.history import Outcome
from space_warps.loaders import EpochSampler, create_train_val_dataloaders
from space_warps.runner import LocalRunner
from space_warps.search import search
from space_warps.settings import SearchConfig

PREFETCHED = 2  # batches that a worker prepares ahead, torch's default


@dataclass
class Reference:
    """The plain loop on images of one size, timed on a few batches at a time."""

    loaders: Loaders  # As many rows as one timing needs
    num_batches: int  # Timed ones
    workers: int
    timed_s: float = 0.0  # Of all timings so far
    timed_batches: int = 0

    @property
    def size(self) -> str:
        """Width and height of the images, and what they hold."""
        channels, height, width = self.loaders[0].dataset.image_shape  # type: ignore[attr-defined]
        return f"{width}x{height} {'grey' if channels == 1 else 'colour'}"

    def time_training(self, outcome: Outcome, num_train: int, num_val: int) -> float:
        """Seconds that the plain loop would need for a training of ours."""
        plan, blocks = outcome.candidate.plan, outcome.candidate.blocks
        device = str(choose_device())
        loop = ReferenceLoop(
            network_of(self.loaders, blocks), self.loaders, plan, self.workers, device
        )
        train_s = self._seconds_a_row(loop.train_loader, loop.take_step)
        val_s = self._seconds_a_row(loop.val_loader, loop.count_right)
        return len(outcome.epochs) * (num_train * train_s + num_val * val_s)

    def _seconds_a_row(self, loader: DataLoader[Any], work: Callable[[Any], object]) -> float:
        batches = iter(loader)
        work(next(batches))
        began, num_rows = time.perf_counter(), 0
        for batch in itertools.islice(batches, self.num_batches):
            work(batch)
            num_rows += len(batch[1])
        seconds = time.perf_counter() - began
        self.timed_s += seconds
        self.timed_batches += self.num_batches
        for _ in batches:  # until here the workers were as busy as within an epoch
            pass
        return seconds / num_rows


def few_rows(loaders: Loaders, num_batches: int, workers: int) -> Loaders:
    """As many full batches as a timing uses up; for time, any rows will do to validate with."""
    train = loaders[0]
    data: Any = train.dataset
    size = train.batch_size or 1
    num_rows = (1 + num_batches + workers * PREFETCHED) * size
    few = data.subset(np.resize(np.arange(len(data)), num_rows), data.transform)
    return DataLoader(few, size, sampler=EpochSampler(num_rows, 0)), DataLoader(few, size)


@dataclass
class InTurn:
    """Observer: times each training of ours, then the same in the plain loop, while ours waits."""

    references: list[Reference]
    num_train: int
    num_val: int
    ours_s: dict[tuple[BlockSpec, ...], float] = field(default_factory=lambda: defaultdict(float))
    reference_s: dict[tuple[str, tuple[BlockSpec, ...]], float] = field(
        default_factory=lambda: defaultdict(float)
    )
    num_trainings: int = 0
    num_epochs: int = 0
    waited_s: float = 0.0
    _began: float = 0.0

    def __call__(self, event: Event) -> None:
        now = time.perf_counter()
        if isinstance(event, CandidateStarted):
            self._began = now
        elif isinstance(event, CandidateEnded):
            self._note(event.outcome, now - self._began)
            self.waited_s += time.perf_counter() - now

    def _note(self, outcome: Outcome, seconds: float) -> None:
        blocks = outcome.candidate.blocks
        self.num_trainings += 1
        self.num_epochs += len(outcome.epochs)
        self.ours_s[blocks] += seconds
        for each in self.references:
            needed = each.time_training(outcome, self.num_train, self.num_val)
            self.reference_s[each.size, blocks] += needed

    def rows(self, search_s: float) -> list[Row]:
        """The whole search, then all trainings of each network."""
        found = []
        for each in self.references:
            total = sum(s for (size, _), s in self.reference_s.items() if size == each.size)
            found.append(Row(f"whole search, reference {each.size}", search_s, total))
        for each in self.references:
            for blocks, seconds in sorted(self.ours_s.items(), key=lambda item: len(item[0])):
                widths = ", ".join(str(spec.k) for spec in blocks) or "none"
                name = f"k {widths}; reference {each.size}"
                found.append(Row(name, seconds, self.reference_s[each.size, blocks]))
        return found

    def note(self) -> str:
        """What was timed, and what was scaled."""
        timed = "; ".join(
            f"at {each.size} from {each.timed_s:.1f} s ({each.timed_batches} batches)"
            for each in self.references
        )
        return (
            f"{self.num_trainings} trainings, {self.num_epochs} epochs of {self.num_train} + "
            f"{self.num_val} rows; {sum(self.ours_s.values()):.1f} s of ours were spent in them.\n"
            f"Ours was timed in full; the reference is EXTRAPOLATED, {timed}."
        )


def read(folder: Path, fraction: float, image_size: int | None = None) -> Loaders:
    """The rows of a catalogue, with z and z_err."""
    return create_train_val_dataloaders(
        folder / "annotations.csv",
        folder / "images",
        Augment(),
        fraction=fraction,
        image_size=image_size,
    )


def references(asked: Any, place: Path) -> list[Reference]:
    """The plain loop at the larger size and at the catalogue's own."""
    source = as_colour(SAMPLE, place / "colour", 10**6, 75) if asked.colour else SAMPLE
    each = [read(source, asked.fraction, asked.side), read(SAMPLE, asked.fraction)]
    few = [few_rows(loaders, asked.batches, asked.workers) for loaders in each]
    return [Reference(loaders, asked.batches, asked.workers) for loaders in few]


def config_of(asked: Any) -> SearchConfig:
    """The default settings, but for what was asked to be shorter."""
    given = {"max_layers": asked.max_layers, "finish_epochs": asked.finish_epochs}
    return SearchConfig(**{name: value for name, value in given.items() if value})


def measure(asked: Any) -> tuple[list[Row], str]:
    """Search once, with timings of the plain loop in between."""
    with tempfile.TemporaryDirectory() as place:
        plain = references(asked, Path(place))
        began = time.perf_counter()
        runner = LocalRunner(*read(SAMPLE, asked.fraction))
        turns = InTurn(plain, runner.num_train, runner.num_val)
        search(config_of(asked), runner, observers=[turns])
        seconds = time.perf_counter() - began - turns.waited_s
    return turns.rows(seconds), turns.note()


def main() -> None:
    """Measure and print."""
    asked = parse(
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
    rows, note = measure(asked)
    show(rows, asked.json, note)


if __name__ == "__main__":
    main()
