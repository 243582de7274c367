"""How long is an epoch compared with a plain loop, and what does each optimisation contribute?

An epoch is one pass over the training rows and one over the validation rows. Ours does not include
decoding, which happens once; `bench_input.py` times it. Both sides see the same rows in the same order
and take the same number of steps. The reference keeps its workers from epoch to epoch, and runs in its
own process, since our settings of the C library would speed it up by a third with large images.
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
from space_warps.training.objectives import build_loss

SAMPLE = Path(__file__).resolve().parent.parent / "data/sample"
PLAN = TrainConfig(epochs=10**4)
PRECISION = choose_precision("auto", torch.device("cpu"))  # The default of a search
Loaders = tuple[DataLoader[Any], DataLoader[Any]]


def read(folder: Path, fraction: float = 1.0) -> Loaders:
    """Loaders of a catalogue."""
    return create_train_val_dataloaders(
        folder / "annotations.csv", folder / "images", Augment(), fraction=fraction
    )


def network(loaders: Loaders, *widths: int, stem_downsample: int = 2) -> ProgressiveModel:
    """A network of convolution blocks with initial weights."""
    return network_of(
        loaders,
        [
            BlockSpec(k, downsample=2 if index else stem_downsample)
            for index, k in enumerate(widths)
        ],
    )


def network_of(loaders: Loaders, blocks: Sequence[BlockSpec]) -> ProgressiveModel:
    """A network of these blocks with initial weights."""
    data: Any = loaders[0].dataset
    names = data.catalogue.feature_names
    statistics = measure_input_statistics(data)
    with seeded(0):
        return ProgressiveModel(
            Architecture(data.image_shape, data.classes, names, statistics, tuple(blocks))
        )


class OurLoop:
    """Our training loop, one epoch at a time, with the same optimizer."""

    def __init__(self, model: ProgressiveModel, loaders: Loaders, device: str = "cpu") -> None:
        self.model, self.loaders, self.device, self.epoch = model, loaders, device, 0
        self.precision = PRECISION
        self.replacements: dict[str, Any] = {}  # Name in space_warps.training.loop -> replacement
        prepare_model(model, device)
        self.optimizer = build_optimizer(model, PLAN)
        self.schedule = build_schedule(self.optimizer, PLAN, len(loaders[0]))
        self.step = functools.partial(
            train_step, model, self.optimizer, build_loss(PLAN.loss, PLAN.label_smoothing, None)
        )

    def run_epoch(self) -> float:
        """Train and validate for one epoch; returns the validation accuracy."""
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
        """Context with the seed, precision and kernels of a training."""
        precision = autocast(self.precision, self.device)
        with seeded(PLAN.seed, self.epoch), training_loop.deterministic(), precision:
            yield

    @contextlib.contextmanager
    def replaced(self) -> Iterator[None]:
        """Context in which the training uses the replacements."""
        with contextlib.ExitStack() as stack:
            for name, other in self.replacements.items():
                stack.enter_context(mock.patch.object(training_loop, name, other))
            yield


@dataclass(frozen=True)
class Case:
    """Rows and a network."""

    folder: Path  # With annotations.csv and images/
    fraction: float  # Share of its objects
    widths: tuple[int, ...]

    def network_and_loaders(self) -> tuple[ProgressiveModel, Loaders]:
        """The network with initial weights, and the loaders."""
        loaders = read(self.folder, self.fraction)
        return network(loaders, *self.widths), loaders


_IN_CHILD: list[OurLoop | ReferenceLoop] = []


def begin_ours(case: Case, keeps_memory: bool = True) -> None:
    """Prepare our loop in its own process."""
    if not keeps_memory:
        mock.patch.object(training_loop, "keep_freed_memory", lambda: None).start()
    _IN_CHILD.append(OurLoop(*case.network_and_loaders()))


def begin_reference(case: Case, workers: int) -> None:
    """Prepare the plain loop in its own process."""
    _IN_CHILD.append(ReferenceLoop(*case.network_and_loaders(), PLAN, workers))


def run_in_child() -> float:
    """Run an epoch of the loop of this process."""
    return _IN_CHILD[0].run_epoch()


def compare_processes(
    name: str, ours: ProcessPoolExecutor, other: ProcessPoolExecutor, rounds: int
) -> Row:
    """Compare epochs of two processes; one waits while the other runs."""
    with ours, other:
        return compare(
            name,
            lambda: ours.submit(run_in_child).result(),
            lambda: other.submit(run_in_child).result(),
            rounds,
        )


def against_reference(name: str, case: Case, rounds: int, workers: int = 2) -> Row:
    """Compare epochs of ours and of the plain loop."""
    ours = own_process(begin_ours, case)
    return compare_processes(name, ours, own_process(begin_reference, case, workers), rounds)


def freed_memory(name: str, case: Case, rounds: int) -> Row:
    """Compare epochs with and without keeping freed memory."""
    ours = own_process(begin_ours, case)
    return compare_processes(name, ours, own_process(begin_ours, case, False), rounds)


def replace_blocks(kind: Callable[[nn.Sequential], nn.Module], loop: OurLoop) -> None:
    """Compute the layers of the blocks in another order, with the same weights."""
    loop.model.blocks = nn.ModuleList(kind(block) for block in loop.model.blocks)  # type: ignore


def use_contiguous_format(loop: OurLoop) -> None:
    """Use the contiguous memory format instead of channels-last."""

    def place(model: nn.Module, device: str | torch.device) -> None:
        training_loop.keep_freed_memory()
        model.to(device)
        model.to(memory_format=torch.contiguous_format)

    place(loop.model, loop.device)
    loop.replacements["prepare_model"] = place


def validate_in_small_batches(loop: OurLoop) -> None:
    """Validate with the batch size of training."""
    train, val = loop.loaders
    loop.loaders = train, DataLoader(val.dataset, train.batch_size)


def allow_any_kernel(loop: OurLoop) -> None:
    """Allow nondeterministic kernels."""
    loop.replacements["deterministic"] = contextlib.nullcontext


def step_with(loop: OurLoop, **options: bool) -> None:
    """Use another implementation of AdamW."""
    for group in loop.optimizer.param_groups:
        group.update(options)


def use_float32(loop: OurLoop) -> None:
    """Compute in float32."""
    loop.precision = "float32"


OPTIMISATIONS: dict[str, Callable[[OurLoop], None]] = {
    **({"float32": use_float32} if PRECISION != "float32" else {}),
    "pooling last": functools.partial(replace_blocks, PlainBlocks),
    "no channels last": use_contiguous_format,
    "validation by 32": validate_in_small_batches,
    "any kernel": allow_any_kernel,
    "AdamW foreach=False": functools.partial(step_with, foreach=False),
    "AdamW foreach=True": functools.partial(step_with, foreach=True),
    "AdamW fused=True": functools.partial(step_with, fused=True),
}


def without_optimisations(loaders: Loaders, widths: tuple[int, ...], rounds: int) -> list[Row]:
    """Compare our epoch with one where a single optimisation is changed."""
    rows = []
    for name, change in OPTIMISATIONS.items():
        ours = OurLoop(network(loaders, *widths), loaders)
        other = OurLoop(network(loaders, *widths), loaders)
        change(other)
        rows.append(compare(f"ours, {name}", ours.run_epoch, other.run_epoch, rounds))
    return rows


def share_outside(loaders: Loaders, widths: tuple[int, ...]) -> float:
    """Share of an epoch's time outside of forward, backward and optimizer."""
    ours = OurLoop(network(loaders, *widths), loaders)
    inside = 0.0

    def step(batch: Any) -> torch.Tensor:
        nonlocal inside
        began = time.perf_counter()
        loss = ours.step(batch)
        inside += time.perf_counter() - began
        return loss

    ours.run_epoch()
    began = time.perf_counter()
    ours.model.train()
    with ours.as_trained():
        train_epoch(step, ours.schedule, loaders[0], 1)
    return 1 - inside / (time.perf_counter() - began)


def roofline(loaders: Loaders, widths: tuple[int, ...]) -> str:
    """Operations per second of a training step, and the limits of the machine."""
    ours = OurLoop(network(loaders, *widths), loaders)
    batch = next(iter(iterate_batches(loaders[0])))
    step = ours.step
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
        f"{flops / seconds / 1e9:.0f} GFLOP/s of {matrix / 1e9:.0f} in matrix "
        f"multiplication in {ours.precision}; memory copies at {copied / 1e9:.0f} GB/s"
    )


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def all_against_reference(small: Path, large: Path, args: Any) -> list[Row]:
    """Compare our epoch with the plain one, for small and large images."""
    rows = [
        against_reference(
            f"75x75 grey, k {', '.join(map(str, widths))}",
            Case(small, args.fraction, widths),
            args.rounds,
            args.workers,
        )
        for widths in ((32, 64), (32, 64, 64))
    ]
    case, few = Case(large, 1.0, (32, 64)), max(2, args.rounds // 2)
    return [*rows, against_reference("224x224 colour, k 32, 64", case, few, args.workers)]


def all_optimisations(small: Path, large: Path, args: Any) -> list[Row]:
    """Contribution of each optimisation at 75x75, and of memory also at 224x224."""
    case, few = Case(small, args.fraction, (32, 64)), max(2, args.rounds // 2)
    return [
        *without_optimisations(read(small, args.fraction), case.widths, args.rounds),
        freed_memory("ours, freed memory returned", case, args.rounds),
        freed_memory(
            "ours, freed memory returned, 224x224 colour", Case(large, 1.0, (32, 64)), few
        ),
    ]


def main() -> None:
    """Run the benchmark and print its results."""
    parts = ("all", "reference", "optimisations", "step")
    args = parse(__doc__, fraction=0.5, colour_rows=160, workers=2, only=parts)
    selected = parts if args.only == "all" else (args.only,)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        large = as_colour(SAMPLE, Path(folder) / "large", args.colour_rows, 224)
        if "reference" in selected:
            rows += all_against_reference(SAMPLE, large, args)
        if "optimisations" in selected:
            rows += all_optimisations(SAMPLE, large, args)
    if rows:
        note = f"ours in {PRECISION}, the reference in float32"
        if "optimisations" in selected:
            note += (
                "; `ours, ...`: our epoch, k 32, 64, at 75x75 unless stated, and the same with "
                "that change"
            )
        show(rows, args.json, note)
    if "step" in selected:
        loaders = read(SAMPLE, args.fraction)
        print(f"\noutside forward, backward, optimizer: {share_outside(loaders, (32, 64)):.1%}")
        print(roofline(loaders, (32, 64)))


if __name__ == "__main__":
    main()
