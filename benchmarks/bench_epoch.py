"""How long is an epoch, and what does each measure give? Ours against the plain loop, in turn.

An epoch is one pass over the training rows and one measurement on the validation rows. Decoding is
not part of ours, which does it once; `bench_input.py` times that. Both sides see the same rows in
the same order, take as many steps and are measured on the same rows. The reference keeps its workers
from epoch to epoch, and has what our loop asks of the C library, as it runs in the same process.
"""

import contextlib
import functools
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from reference_loop import PlainBlocks, ReferenceLoop, as_colour
from side_by_side import Row, compare, parse, show
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from space_warps import train as training
from space_warps.augment import Augment
from space_warps.blocks import BlockSpec
from space_warps.core import seeded
from space_warps.dataset import measure_scaling
from space_warps.loaders import create_train_val_dataloaders, iterate
from space_warps.model import Architecture, ProgressiveModel
from space_warps.plan import TrainPlan, build_optimizer, build_schedule
from space_warps.train import evaluate, take_step, train_epoch

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
    return network_of(
        loaders,
        [BlockSpec(k, pool=2 if place else first_pool) for place, k in enumerate(widths)],
    )


def network_of(loaders: Loaders, blocks: Sequence[BlockSpec]) -> ProgressiveModel:
    """A network of these blocks with its first weights."""
    data: Any = loaders[0].dataset
    names = data.catalogue.feature_names
    scaling = measure_scaling(data)
    with seeded(0):
        return ProgressiveModel(
            Architecture(data.image_shape, data.classes, names, scaling, tuple(blocks))
        )


class OurLoop:
    """Our training, an epoch at a time, with the optimizer kept."""

    def __init__(self, model: ProgressiveModel, loaders: Loaders, device: str = "cpu") -> None:
        self.model, self.loaders, self.device, self.epoch = model, loaders, device, 0
        self.instead: dict[str, Any] = {}  # names of space_warps.train that are something else
        training.place_model(model, device)
        self.optimizer = build_optimizer(model, PLAN)
        self.schedule = build_schedule(self.optimizer, PLAN, len(loaders[0]))

    def run_epoch(self) -> float:
        """Train one epoch and measure."""
        step = functools.partial(
            take_step, self.model, self.optimizer, self.schedule, PLAN.label_smoothing
        )
        with self.replaced():
            self.model.train()
            with seeded(PLAN.seed, self.epoch), training.deterministic():
                train_epoch(step, self.loaders[0], self.epoch, self.device)
            self.epoch += 1
            return evaluate(self.model, self.loaders[1], self.device).accuracy

    @contextlib.contextmanager
    def replaced(self) -> Iterator[None]:
        """Within the block the training uses what stands in `instead`."""
        with contextlib.ExitStack() as stack:
            for name, other in self.instead.items():
                stack.enter_context(mock.patch.object(training, name, other))
            yield


def against_reference(
    name: str, loaders: Loaders, widths: tuple[int, ...], rounds: int, workers: int = 2
) -> Row:
    """An epoch of ours and one of the plain loop."""
    ours = OurLoop(network(loaders, *widths), loaders)
    plain = ReferenceLoop(network(loaders, *widths), loaders, PLAN, workers)
    return compare(name, ours.run_epoch, plain.run_epoch, rounds)


class NormFirst(PlainBlocks):
    """The maximum before ReLU and dropout, but after the normalisation, by plain layers."""

    def forward(self, maps: Tensor) -> Tensor:
        conv, norm, relu, drop, pool = self.layers
        return drop(relu(pool(norm(conv(maps)))))  # type: ignore[no-any-return]


def replace_blocks(kind: Callable[[nn.Sequential], nn.Module], loop: OurLoop) -> None:
    """Compute the same blocks with the same weights in another order."""
    loop.model.blocks = nn.ModuleList(kind(block) for block in loop.model.blocks)  # type: ignore


def lose_channels_last(loop: OurLoop) -> None:
    """Each map on its own in memory, in training and in every measurement."""

    def place(model: nn.Module, device: str | torch.device) -> None:
        training.keep_freed_memory()
        model.to(device)
        model.to(memory_format=torch.contiguous_format)

    place(loop.model, loop.device)
    loop.instead["place_model"] = place


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


MEASURES: dict[str, Callable[[OurLoop], None]] = {
    "normalise before pooling": functools.partial(replace_blocks, NormFirst),
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
        rows.append(compare(name, ours.run_epoch, other.run_epoch, rounds))
    return rows


_IN_CHILD: list[OurLoop] = []


def begin_child(keeps_memory: bool, fraction: float, widths: tuple[int, ...]) -> None:
    """Prepare our loop in a process of its own."""
    if not keeps_memory:
        mock.patch.object(training, "keep_freed_memory", lambda: None).start()
    loaders = read(SAMPLE, fraction)
    _IN_CHILD.append(OurLoop(network(loaders, *widths), loaders))


def run_in_child() -> float:
    """An epoch of the loop of this process."""
    return _IN_CHILD[0].run_epoch()


def freed_memory(fraction: float, widths: tuple[int, ...], rounds: int) -> Row:
    """What the C library does with freed memory holds for a process: two, which wait in turn."""
    fresh = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        kept, freed = (
            stack.enter_context(
                ProcessPoolExecutor(1, fresh, begin_child, (keeps, fraction, widths))
            )
            for keeps in (True, False)
        )
        return compare(
            "freed memory given back",
            lambda: kept.submit(run_in_child).result(),
            lambda: freed.submit(run_in_child).result(),
            rounds,
        )


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
    with seeded(PLAN.seed, 1), training.deterministic():
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


def all_against_reference(
    loaders: Loaders, colour_rows: int, rounds: int, workers: int
) -> list[Row]:
    """Our epoch beside the plain one, small and large."""
    rows = [
        against_reference(
            f"75x75 grey, k {', '.join(map(str, widths))}", loaders, widths, rounds, workers
        )
        for widths in ((32, 64), (32, 64, 64))
    ]
    with tempfile.TemporaryDirectory() as place:
        large = read(as_colour(SAMPLE, Path(place) / "large", colour_rows, 224))
        few = max(2, rounds // 2)
        rows.append(against_reference("224x224 colour, k 32, 64", large, (32, 64), few, workers))
    return rows


def main() -> None:
    """Measure and print."""
    parts = ("all", "reference", "measures", "step")
    asked = parse(__doc__, fraction=0.5, colour_rows=160, workers=2, only=parts)
    wanted = parts if asked.only == "all" else (asked.only,)
    loaders, widths = read(SAMPLE, asked.fraction), (32, 64)
    rows: list[Row] = []
    if "reference" in wanted:
        rows += all_against_reference(loaders, asked.colour_rows, asked.rounds, asked.workers)
    if "measures" in wanted:
        changed = changed_measures(loaders, widths, asked.rounds)
        changed.append(freed_memory(asked.fraction, widths, asked.rounds))
        rows += [Row(f"ours, {row.name}", row.ours_s, row.reference_s) for row in changed]
    if rows:
        note = "lines `ours, ...`: our epoch at 75x75, k 32, 64, against ours with that change"
        show(rows, asked.json, note if "measures" in wanted else "")
    if "step" in wanted:
        print(f"\noutside forward, backward, optimizer: {share_outside(loaders, widths):.1%}")
        print(roofline(loaders, widths))


if __name__ == "__main__":
    main()
