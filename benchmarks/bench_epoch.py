"""How long is an epoch, and what does each measure give? Ours against the plain loop, in turn.

An epoch is one pass over the training rows and one measurement on the validation rows. Decoding is
not part of ours, which does it once; `bench_input.py` times that. Both sides see the same rows in
the same order, take as many steps and are measured on the same rows. The reference keeps its workers
from epoch to epoch, and runs in a process of its own: what our loop asks of the C library would take
a third off its time with large images.
"""

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from reference_loop import PlainBlocks, ReferenceLoop, as_colour
from side_by_side import Row, compare, own_process, parse, show
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from space_warps.core import autocast, choose_precision, seeded
from space_warps.data.augment import Augment
from space_warps.data.dataset import measure_input_statistics
from space_warps.data.loaders import create_train_val_dataloaders, iterate_batches
from space_warps.models.blocks import BlockSpec
from space_warps.models.model import Architecture, ProgressiveModel
from space_warps.training import loop as training_loop
from space_warps.training.config import TrainConfig, build_optimizer, build_schedule
from space_warps.training.loop import evaluate, prepare_model, train_epoch, train_step

SAMPLE = Path(__file__).resolve().parent.parent / "data/sample"
PLAN = TrainConfig(epochs=10**4)
PRECISION = choose_precision("auto", torch.device("cpu"))  # As a search would take it
Loaders = tuple[DataLoader[Any], DataLoader[Any]]


def read(folder: Path, fraction: float = 1.0) -> Loaders:
    """The rows of a catalogue."""
    return create_train_val_dataloaders(
        folder / "annotations.csv", folder / "images", Augment(), fraction=fraction
    )


def network(loaders: Loaders, *widths: int, first_pool: int = 2) -> ProgressiveModel:
    """A network with its first weights."""
    return network_of(
        loaders,
        [BlockSpec(k, downsample=2 if index else first_pool) for index, k in enumerate(widths)],
    )


def network_of(loaders: Loaders, blocks: Sequence[BlockSpec]) -> ProgressiveModel:
    """A network of these blocks with its first weights."""
    data: Any = loaders[0].dataset
    names = data.catalogue.feature_names
    scaling = measure_input_statistics(data)
    with seeded(0):
        return ProgressiveModel(
            Architecture(data.image_shape, data.classes, names, scaling, tuple(blocks))
        )


class OurLoop:
    """Our training, an epoch at a time, with the optimizer kept."""

    def __init__(self, model: ProgressiveModel, loaders: Loaders, device: str = "cpu") -> None:
        self.model, self.loaders, self.device, self.epoch = model, loaders, device, 0
        self.precision = PRECISION
        self.instead: dict[
            str, Any
        ] = {}  # names of space_warps.training.loop that are something else
        prepare_model(model, device)
        self.optimizer = build_optimizer(model, PLAN)
        self.schedule = build_schedule(self.optimizer, PLAN, len(loaders[0]))
        self.step = functools.partial(train_step, model, self.optimizer, PLAN.label_smoothing)

    def run_epoch(self) -> float:
        """Train one epoch and measure."""
        with self.replaced():
            self.model.train()
            with self.as_trained():
                train_epoch(
                    self.step, self.schedule, self.loaders[0], self.epoch, device=self.device
                )
            self.epoch += 1
            return evaluate(self.model, self.loaders[1], self.device, self.precision).accuracy

    @contextlib.contextmanager
    def as_trained(self) -> Iterator[None]:
        """Within the block it is computed as in a training."""
        half = autocast(self.precision, self.device)
        with seeded(PLAN.seed, self.epoch), training_loop.deterministic(), half:
            yield

    @contextlib.contextmanager
    def replaced(self) -> Iterator[None]:
        """Within the block the training uses what stands in `instead`."""
        with contextlib.ExitStack() as stack:
            for name, other in self.instead.items():
                stack.enter_context(mock.patch.object(training_loop, name, other))
            yield


@dataclass(frozen=True)
class Case:
    """Rows and a network to train."""

    folder: Path  # With annotations.csv and images/
    fraction: float  # Share of its objects
    widths: tuple[int, ...]

    def network_and_loaders(self) -> tuple[ProgressiveModel, Loaders]:
        """The network with its first weights, and the rows."""
        loaders = read(self.folder, self.fraction)
        return network(loaders, *self.widths), loaders


_IN_CHILD: list[OurLoop | ReferenceLoop] = []


def begin_ours(case: Case, keeps_memory: bool = True) -> None:
    """Prepare our loop in a process of its own."""
    if not keeps_memory:
        mock.patch.object(training_loop, "keep_freed_memory", lambda: None).start()
    _IN_CHILD.append(OurLoop(*case.network_and_loaders()))


def begin_reference(case: Case, workers: int) -> None:
    """Prepare the plain loop in a process of its own."""
    _IN_CHILD.append(ReferenceLoop(*case.network_and_loaders(), PLAN, workers))


def run_in_child() -> float:
    """An epoch of the loop of this process."""
    return _IN_CHILD[0].run_epoch()


def compare_processes(
    name: str, ours: ProcessPoolExecutor, other: ProcessPoolExecutor, rounds: int
) -> Row:
    """Epochs of two processes, of which one waits."""
    with ours, other:
        return compare(
            name,
            lambda: ours.submit(run_in_child).result(),
            lambda: other.submit(run_in_child).result(),
            rounds,
        )


def against_reference(name: str, case: Case, rounds: int, workers: int = 2) -> Row:
    """An epoch of ours and one of the plain loop."""
    ours = own_process(begin_ours, case)
    return compare_processes(name, ours, own_process(begin_reference, case, workers), rounds)


def freed_memory(name: str, case: Case, rounds: int) -> Row:
    """Our epoch, and the same with what the C library does by itself."""
    ours = own_process(begin_ours, case)
    return compare_processes(name, ours, own_process(begin_ours, case, False), rounds)


def replace_blocks(kind: Callable[[nn.Sequential], nn.Module], loop: OurLoop) -> None:
    """Compute the same blocks with the same weights in another order."""
    loop.model.blocks = nn.ModuleList(kind(block) for block in loop.model.blocks)  # type: ignore


def lose_channels_last(loop: OurLoop) -> None:
    """Each map on its own in memory, in training and in every measurement."""

    def place(model: nn.Module, device: str | torch.device) -> None:
        training_loop.keep_freed_memory()
        model.to(device)
        model.to(memory_format=torch.contiguous_format)

    place(loop.model, loop.device)
    loop.instead["prepare_model"] = place


def measure_in_small_batches(loop: OurLoop) -> None:
    """Validate as many rows at a time as are trained."""
    train, val = loop.loaders
    loop.loaders = train, DataLoader(val.dataset, train.batch_size)


def allow_any_kernel(loop: OurLoop) -> None:
    """Kernels that need not give the same bits."""
    loop.instead["deterministic"] = contextlib.nullcontext


def step_with(loop: OurLoop, **options: bool) -> None:
    """Another implementation of AdamW."""
    for group in loop.optimizer.param_groups:
        group.update(options)


def take_float32(loop: OurLoop) -> None:
    """Every number in full."""
    loop.precision = "float32"


MEASURES: dict[str, Callable[[OurLoop], None]] = {
    **({"float32": take_float32} if PRECISION != "float32" else {}),
    "pooling last": functools.partial(replace_blocks, PlainBlocks),
    "no channels last": lose_channels_last,
    "validation by 32": measure_in_small_batches,
    "any kernel": allow_any_kernel,
    "AdamW foreach=False": functools.partial(step_with, foreach=False),
    "AdamW foreach=True": functools.partial(step_with, foreach=True),
    "AdamW fused=True": functools.partial(step_with, fused=True),
}


def changed_measures(loaders: Loaders, widths: tuple[int, ...], rounds: int) -> list[Row]:
    """Our epoch, and the same with one thing done otherwise."""
    rows = []
    for name, change in MEASURES.items():
        ours = OurLoop(network(loaders, *widths), loaders)
        other = OurLoop(network(loaders, *widths), loaders)
        change(other)
        rows.append(compare(f"ours, {name}", ours.run_epoch, other.run_epoch, rounds))
    return rows


def share_outside(loaders: Loaders, widths: tuple[int, ...]) -> float:
    """Share of an epoch's time that is not forward, backward and optimizer."""
    ours = OurLoop(network(loaders, *widths), loaders)
    inside = 0.0

    def step(batch: Any) -> torch.Tensor:
        nonlocal inside
        began = time.perf_counter()
        loss = ours.take_step(batch)
        inside += time.perf_counter() - began
        return loss

    ours.run_epoch()
    began = time.perf_counter()
    ours.model.train()
    with ours.as_trained():
        train_epoch(step, loaders[0], 1)
    return 1 - inside / (time.perf_counter() - began)


def roofline(loaders: Loaders, widths: tuple[int, ...]) -> str:
    """The arithmetic of a step against what the machine multiplies and copies per second."""
    ours = OurLoop(network(loaders, *widths), loaders)
    batch = next(iter(iterate_batches(loaders[0])))
    step = ours.take_step
    ours.model.train()
    with ours.as_trained():
        step(batch)
        with FlopCounterMode(display=False) as counter:
            step(batch)
        seconds = min(_seconds(lambda: step(batch)) for _ in range(10))
    square = torch.rand(1024, 1024).to(getattr(torch, ours.precision))
    buffer = torch.rand(2**25)
    other = torch.empty_like(buffer)
    matrix = 2 * 1024**3 / min(_seconds(lambda: square @ square) for _ in range(10))
    copied = 2 * 4 * 2**25 / min(_seconds(lambda: other.copy_(buffer)) for _ in range(10))
    flops = counter.get_total_flops()
    return (
        f"step of {len(batch[1])} rows: {flops / 1e9:.2f} GFLOP in {1e3 * seconds:.1f} ms, "
        f"{flops / seconds / 1e9:.0f} GFLOP/s of {matrix / 1e9:.0f} that the machine multiplies "
        f"in {ours.precision}; it copies {copied / 1e9:.0f} GB/s"
    )


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def all_against_reference(small: Path, large: Path, requested: Any) -> list[Row]:
    """Our epoch beside the plain one, small and large."""
    rows = [
        against_reference(
            f"75x75 grey, k {', '.join(map(str, widths))}",
            Case(small, requested.fraction, widths),
            requested.rounds,
            requested.workers,
        )
        for widths in ((32, 64), (32, 64, 64))
    ]
    case, few = Case(large, 1.0, (32, 64)), max(2, requested.rounds // 2)
    return [*rows, against_reference("224x224 colour, k 32, 64", case, few, requested.workers)]


def all_measures(small: Path, large: Path, requested: Any) -> list[Row]:
    """What each measure gives at 75x75, and of the memory at 224x224, too."""
    case, few = Case(small, requested.fraction, (32, 64)), max(2, requested.rounds // 2)
    return [
        *changed_measures(read(small, requested.fraction), case.widths, requested.rounds),
        freed_memory("ours, freed memory given back", case, requested.rounds),
        freed_memory(
            "ours, freed memory given back, 224x224 colour", Case(large, 1.0, (32, 64)), few
        ),
    ]


def main() -> None:
    """Measure and print."""
    parts = ("all", "reference", "measures", "step")
    requested = parse(__doc__, fraction=0.5, colour_rows=160, workers=2, only=parts)
    wanted = parts if requested.only == "all" else (requested.only,)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as index:
        large = as_colour(SAMPLE, Path(index) / "large", requested.colour_rows, 224)
        if "reference" in wanted:
            rows += all_against_reference(SAMPLE, large, requested)
        if "measures" in wanted:
            rows += all_measures(SAMPLE, large, requested)
    if rows:
        note = f"ours in {PRECISION}, the reference in float32"
        if "measures" in wanted:
            note += (
                "; `ours, ...`: our epoch, k 32, 64, at 75x75 unless said, and the same with that "
                "change"
            )
        show(rows, requested.json, note)
    if "step" in wanted:
        loaders = read(SAMPLE, requested.fraction)
        print(f"\noutside forward, backward, optimizer: {share_outside(loaders, (32, 64)):.1%}")
        print(roofline(loaders, (32, 64)))


if __name__ == "__main__":
    main()
