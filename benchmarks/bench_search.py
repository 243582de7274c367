"""How long is a whole search, beside its candidates in the plain loop with images of 224x224?

Ours is a search with default settings, timed once from reading the catalogue to the finished
network, with nothing written. The reference trains the same networks (controls, candidates,
trainings in full) as many epochs, each image resized to 224x224 from disk every time, as the
published program does; and once more at the catalogue's own size, to see what is owed to the
smaller image. That would take hours: after each of our trainings a few batches of the same network
are timed, workers busy, and scaled to its rows and epochs. What the plain loop does once an epoch or
once a network is left out of it, and what ours does beside training (reading, comparing,
calibrating) is in ours. It runs in a process of its own, as what our loop asks of the C library would
serve it, too. Images are grey; with --colour the larger ones have three channels, as that program
reads them.
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

PREFETCHED = 2  # batches that a worker prepares ahead, torch's default


@dataclass(frozen=True)
class Timing:
    """What a few batches of the plain loop took."""

    train_s: float  # Per row that is trained
    val_s: float  # Per row that is measured
    timed_s: float  # Of all that was timed

    def scaled(self, num_epochs: int, num_train: int, num_val: int) -> float:
        """Seconds that a training would take."""
        return num_epochs * (num_train * self.train_s + num_val * self.val_s)


_IN_CHILD: dict[str, Loaders] = {}


def begin_child(sides: dict[str, tuple[Path, int | None]], requested: Any) -> None:
    """Read a few rows at each size, in the process of the plain loop."""
    for name, (folder, image_size) in sides.items():
        loaders = read(folder, requested.fraction, image_size)
        _IN_CHILD[name] = few_rows(loaders, requested.batches, requested.workers)


def time_in_child(side: str, candidate: Candidate, requested: Any) -> Timing:
    """Time a few batches of a candidate's network in the plain loop."""
    loaders = _IN_CHILD[side]
    model, device = network_of(loaders, candidate.blocks), str(choose_device())
    loop = ReferenceLoop(model, loaders, candidate.train_config, requested.workers, device)
    train_s, num_trained = time_batches(loop.train_loader, loop.take_step, requested.batches)
    val_s, num_measured = time_batches(loop.val_loader, loop.count_right, requested.batches)
    return Timing(train_s / num_trained, val_s / num_measured, train_s + val_s)


def time_batches(
    loader: DataLoader[Any], work: Callable[[Any], object], num_batches: int
) -> tuple[float, int]:
    """Seconds and rows of some batches, after one that does not count."""
    batches = iter(loader)
    work(next(batches))
    began, num_rows = time.perf_counter(), 0
    for batch in itertools.islice(batches, num_batches):
        work(batch)
        num_rows += len(batch[1])
    seconds = time.perf_counter() - began
    for _ in batches:  # until here the workers were as busy as within an epoch
        pass
    return seconds, num_rows


def few_rows(loaders: Loaders, num_batches: int, workers: int) -> Loaders:
    """As many full batches as a timing uses up; for time, any rows will do to validate with."""
    train = loaders[0]
    data: Any = train.dataset
    size = train.batch_size or 1
    num_rows = (1 + num_batches + workers * PREFETCHED) * size
    few = data.subset(np.resize(np.arange(len(data)), num_rows), data.transform)
    return DataLoader(few, size, sampler=EpochSampler(num_rows, 0)), DataLoader(few, size)


Blocks = tuple[BlockSpec, ...]


@dataclass
class InTurn:
    """Observer: times each training of ours, then the same in the plain loop, while ours waits."""

    time_reference: Callable[[str, Candidate], Timing]
    sides: tuple[str, ...]
    num_train: int
    num_val: int
    num_trainings: int = 0
    num_epochs: int = 0
    waited_s: float = 0.0
    ours_s: dict[Blocks, float] = field(default_factory=lambda: defaultdict(float))
    reference_s: dict[tuple[str, Blocks], float] = field(default_factory=lambda: defaultdict(float))
    timed_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _began: float = 0.0

    def __call__(self, event: Event) -> None:
        now = time.perf_counter()
        if isinstance(event, CandidateStarted):
            self._began = now
        elif isinstance(event, CandidateEnded):
            self._note(event.result, now - self._began)
            self.waited_s += time.perf_counter() - now

    def _note(self, result: CandidateResult, seconds: float) -> None:
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
        """The whole search, then all trainings of each network."""
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
        """What was timed, and what was scaled."""
        timed = " and ".join(f"{self.timed_s[side]:.1f} s at {side}" for side in self.sides)
        return (
            f"{self.num_trainings} trainings, {self.num_epochs} epochs of {self.num_train} + "
            f"{self.num_val} rows; {sum(self.ours_s.values()):.1f} s of ours were spent in them.\n"
            f"Ours was timed in full; the reference is EXTRAPOLATED from {timed}."
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


def sides_of(requested: Any, index: Path) -> dict[str, tuple[Path, int | None]]:
    """Catalogue and size of the images that the plain loop gets: large, then as ours."""
    source = as_colour(SAMPLE, index / "colour", 10**6, 75) if requested.colour else SAMPLE
    large = f"{requested.side}x{requested.side} {'colour' if requested.colour else 'grey'}"
    return {large: (source, requested.side), "75x75 grey": (SAMPLE, None)}


def config_of(requested: Any) -> SearchConfig:
    """The default settings, but for what was asked to be shorter."""
    given = {"max_layers": requested.max_layers, "final.epochs": requested.finish_epochs}
    return with_overrides(SearchConfig(), {name: v for name, v in given.items() if v})


def measure(requested: Any) -> tuple[list[Row], str]:
    """Search once, with timings of the plain loop in between."""
    with tempfile.TemporaryDirectory() as index:
        sides = sides_of(requested, Path(index))
        with own_process(begin_child, sides, requested) as child:

            def time_reference(side: str, candidate: Candidate) -> Timing:
                return child.submit(time_in_child, side, candidate, requested).result()

            began = time.perf_counter()
            runner = LocalRunner(*read(SAMPLE, requested.fraction))
            backtracks = InTurn(time_reference, tuple(sides), runner.num_train, runner.num_val)
            search(config_of(requested), runner, observers=[backtracks])
            seconds = time.perf_counter() - began - backtracks.waited_s
    return backtracks.rows(seconds), backtracks.note()


def main() -> None:
    """Measure and print."""
    requested = parse(
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
    rows, note = measure(requested)
    show(rows, requested.json, note)


if __name__ == "__main__":
    main()
