"""How much memory does a large catalogue take?

A catalogue of 75x75 cutouts is made from those of `data/sample`, each with its own id and position. Every
start is a process: it reads the catalogue, hashes all rows as a command does, measures the statistics of
the images, draws random batches, and searches on a few rows. The first start decodes the images; later
ones read the memory-mapped file. The reference holds all bytes in memory; `--reference 0` omits it. All
starts must give the same bits.

The peak is the largest resident set, including pages of files (`VmHWM`); the largest anonymous and
file-backed parts (`RssAnon`, `RssFile`) are sampled every 50 ms. `--rows 1000000` is a catalogue of 5.6 GB,
and needs three times that on disk.

`--commands` measures audit, search, evaluate and baselines instead, each in its own process, on the same
catalogue and its memory-mapped file. Every row is read; networks train on about 2,000 rows for one epoch,
since memory does not depend on the duration of training:

- audit: the whole command.
- search: the whole command with one step, one candidate (k=32), one epoch, on a fraction of the objects.
- evaluate: predictions of a network (k=32, `tta`) for 512 rows, since its batches need more memory, then
  `evaluate_rows` with a fast network without blocks on every row. The catalogue is read once; reading the
  training catalogue as well adds to this.
- baselines: `compare_simple` trained on 90% of all rows and evaluated on the others; `compare_networks`
  (k=32, ResNet-18) for one epoch on about 2,000 rows, evaluated on 512.
"""

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import Row, commit, machine, parse, show
from torch.utils.data import DataLoader

from space_warps.cli.main import main as space_warps
from space_warps.data.audit import audit_catalogue
from space_warps.data.augment import Augment
from space_warps.data.catalogue import ReadOptions
from space_warps.data.dataset import InputStatistics, measure_input_statistics
from space_warps.data.loaders import EpochSampler, create_train_val_dataloaders, iterate_batches
from space_warps.evaluation.baselines import compare_classical, compare_networks
from space_warps.evaluation.evaluate import evaluate_rows, predict, read_labelled
from space_warps.models.blocks import BlockSpec
from space_warps.models.model import Architecture, ProgressiveModel
from space_warps.models.saved_model import SavedModel
from space_warps.runs.environment import describe_environment
from space_warps.search.config import FinalConfig, SearchConfig
from space_warps.search.runner import LocalRunner
from space_warps.search.search import search
from space_warps.training.config import TrainConfig

SAMPLE = Path(__file__).resolve().parent.parent / "data/sample"
SEED = 0
CLASSES = ("GALAXY", "QSO", "STAR")
LIMIT = 2e9  # Resident bytes, for a million rows
TINY = SearchConfig(max_layers=1, k_candidates=(8,), epochs_per_eval=1, final=FinalConfig(epochs=1))


def make_catalogue(folder: Path, num_rows: int) -> None:
    """Write copies of the sample's cutouts; the id appended to each file makes them different."""
    (folder / "images").mkdir(parents=True)
    header, *lines = (SAMPLE / "annotations.csv").read_text(encoding="utf-8").splitlines()
    rows = [line.split(",") for line in lines]
    contents = [(SAMPLE / f"images/{cells[0]}.jpg").read_bytes() for cells in rows]
    uniform = np.random.default_rng(0).uniform(size=(2, num_rows))
    ra, dec = 360 * uniform[0], np.degrees(np.arcsin(2 * uniform[1] - 1))
    with (folder / "annotations.csv").open("w", encoding="utf-8") as table:
        table.write(header + "\n")
        for row in range(num_rows):
            _, _, _, label, subclass, z, z_err = rows[row % len(rows)]
            name, position = f"{row:029d}", f"{ra[row]:.7f},{dec[row]:.7f}"
            values = f"{float(z) + 1e-9 * row:.9g},{float(z_err) * (1 + 1e-9 * row):.9g}"
            table.write(f"{name},{position},{label},{subclass},{values}\n")
            content = contents[row % len(rows)] + name.encode()
            (folder / f"images/{name}.jpg").write_bytes(content)


def a_few(loaders: Any) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of a thousand random rows each, for training and validation."""
    rng = np.random.default_rng(0)
    train, val = (loader.dataset for loader in loaders)
    train = train.subset(rng.permutation(len(train))[:1000], Augment())
    val = val.subset(rng.permutation(len(val))[:1000])
    return DataLoader(train, 32, sampler=EpochSampler(len(train), 0)), DataLoader(val, 256)


def start(args: Namespace) -> None:
    """Run one start; prints the seconds of each part and its results."""
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - began
        print(f"  {name:14} {seconds[name]:7.1f} s, peak {peak_gib():.2f} GiB", file=sys.stderr)

    csv_path = Path(args.folder) / "annotations.csv"
    with part("read"):
        loaders = create_train_val_dataloaders(
            csv_path,
            csv_path.parent / "images",
            Augment(),
            max_resident_bytes=args.max_resident_bytes,
            cache_dir=Path(args.folder) / "cache",
        )
    with part("hash"):
        environment = describe_environment(csv_path, "cpu", loaders)
    with part("measure"):
        empty = LocalRunner(*loaders, device="cpu").base_model
    with part("random batches"):
        batches = zip(range(args.batches), iterate_batches(loaders[0]), strict=False)
        total = sum(float(images.sum()) for _, (images, _, _) in batches)
    with part("search"):
        _, history = search(TINY, LocalRunner(*a_few(loaders), device="cpu"))
    result = [
        environment["rows_sha256"],
        repr(empty.architecture.input_statistics),
        total,
        history.sha256,
    ]
    print(json.dumps({"seconds": seconds, "results": result}))


def peak_gib() -> float:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def mapped(args: Namespace) -> dict[str, Any]:
    """Options to read the images from the memory-mapped file."""
    cache = Path(args.folder) / "cache"
    return {"max_resident_bytes": args.max_resident_bytes, "cache_dir": cache}


def paths(args: Namespace) -> tuple[Path, Path]:
    """CSV and folder of the images."""
    return Path(args.folder) / "annotations.csv", Path(args.folder) / "images"


def measure_audit(args: Namespace) -> dict[str, Any]:
    """Audit the whole catalogue."""
    result = audit_catalogue(*paths(args), options=ReadOptions(**mapped(args)), print_result=False)
    return {"num_rows": result.num_usable, "num_objects": result.num_objects}


def measure_search(args: Namespace) -> dict[str, Any]:
    """Run the search command: one step, one candidate, one epoch, on about 2,000 rows."""
    csv_path, img_dir_path = paths(args)
    with tempfile.TemporaryDirectory() as run:
        keys = {f"data.{key}": value for key, value in mapped(args).items()}
        keys |= {"data.csv_path": csv_path, "data.img_dir_path": img_dir_path}
        keys |= {"data.fraction": min(1.0, 2200 / args.rows), "run.dir": Path(run) / "run"}
        keys |= {"search.max_layers": 1, "search.k_candidates": "[32]", "search.device": "cpu"}
        keys |= {"search.epochs_per_eval": 1, "search.final.epochs": 1, "search.seed": SEED}
        with contextlib.redirect_stdout(sys.stderr):
            if space_warps(["search", *(f"{key}={value}" for key, value in keys.items())]):
                raise SystemExit("the search failed")
        summary = json.loads((Path(run) / "run/progressive_summary.json").read_text())
    return {"num_rows": args.rows, "history_sha256": summary["history_sha256"]}


def measure_evaluate(args: Namespace) -> dict[str, Any]:
    """Evaluate a saved model on every row, and a wide one on some."""
    small = Architecture((1, 75, 75), CLASSES, (), InputStatistics((0.34,), (0.24,), ()))
    wide = replace(small.with_block(BlockSpec(k=32, downsample=3)), tta=True)
    data = read_labelled(wide, *paths(args), ReadOptions(**mapped(args)))
    peaks = {"read": peak_gib()}
    predict(SavedModel.from_model(ProgressiveModel(wide)), data.subset(np.arange(512)), "cpu")
    peaks["wide network"] = peak_gib()
    record = evaluate_rows(SavedModel.from_model(ProgressiveModel(small)), data, device="cpu")
    peaks["all rows"] = peak_gib()
    return {"num_rows": record["num_rows"], "intervals": record["intervals"], "peaks_gib": peaks}


def measure_baselines(args: Namespace) -> dict[str, Any]:
    """Train classical baselines on every row, and networks on some."""
    loaders = create_train_val_dataloaders(*paths(args), Augment(), **mapped(args))
    train, test = loaders[0].dataset, loaders[1].dataset
    results = {}

    def keep(item: Any) -> None:
        results[f"{item.name}, {item.inputs}"] = {**asdict(item), "peak_gib": peak_gib()}
        print(f"  {item.name}, {item.inputs}: {peak_gib():.2f} GiB", file=sys.stderr)

    for entry in compare_classical(train, test, SEED):  # type: ignore[arg-type]
        keep(entry)
    statistics_of_inputs = measure_input_statistics(train.subset(np.arange(2000)))  # type: ignore[attr-defined]
    trained = Architecture((1, 75, 75), CLASSES, ("z", "z_err"), statistics_of_inputs).with_block(
        BlockSpec(k=32, downsample=3)
    )
    some = test.subset(np.arange(min(512, len(test))))  # type: ignore[attr-defined]
    plan = TrainConfig(epochs=1, seed=SEED)
    for entry in compare_networks(
        trained, a_few(loaders), some, plan, resnet_epochs=1, device="cpu"
    ):
        keep(entry)
    return {"num_rows": len(train) + len(test), "results": results}  # type: ignore[arg-type]


COMMANDS = {
    "audit": measure_audit,
    "search": measure_search,
    "evaluate": measure_evaluate,
    "baselines": measure_baselines,
}


def run_command(args: Namespace) -> None:
    """Run one of the commands; prints its results."""
    began = time.perf_counter()
    result = COMMANDS[args.task](args)
    print(json.dumps({"seconds": time.perf_counter() - began, "results": result}))


def all_commands(args: Namespace) -> None:
    """Measure the commands one after the other, and write the results after each."""
    names = args.only.split(",") if args.only else list(COMMANDS)
    results = []
    for name in names:
        measured = watched(args, name, args.max_resident_bytes, name)
        within = measured["peak_gib"] * 2**30 <= LIMIT
        results.append({**measured, "within_limit": within})
        print(
            f"{name:14} peak {measured['peak_gib']:.2f} GiB, without pages of files "
            f"{measured['anonymous_gib']:.2f} GiB, {'within' if within else 'above'} 2 GB",
            flush=True,
        )
        if args.json:
            record = {"machine": machine(), "commit": commit(), "seed": SEED, "limit_bytes": LIMIT}
            record |= {"num_rows": args.rows, "max_resident_bytes": args.max_resident_bytes}
            text = json.dumps({**record, "commands": results}, indent=1, default=str)
            args.json.write_text(text + "\n", encoding="utf-8")


def watched(
    args: Namespace, name: str, max_resident_bytes: int, task: str = "start"
) -> dict[str, Any]:
    """Run a task in its own process; returns its results with peaks in GiB."""
    print(f"{name}:", file=sys.stderr)
    options = {
        "folder": args.folder,
        "batches": args.batches,
        "rows": args.rows,
        "task": task,
    }
    options["max-resident-bytes"] = max_resident_bytes
    command = [sys.executable, __file__, *(f"--{key}={value}" for key, value in options.items())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    largest, done = {"RssAnon": 0, "RssFile": 0}, threading.Event()
    status = Path(f"/proc/{process.pid}/status")

    def sample() -> None:
        while not done.wait(0.05) and status.exists():
            lines = (line.split() for line in status.read_text().splitlines())
            now = {words[0].rstrip(":"): int(words[1]) for words in lines if words[0][:3] == "Rss"}
            largest.update({name: max(kib, now.get(name, 0)) for name, kib in largest.items()})

    watcher = threading.Thread(target=sample)
    watcher.start()
    output = process.stdout.read()
    done.set()
    watcher.join()
    _, ended, usage = os.wait4(process.pid, 0)
    if ended:
        raise SystemExit(f"{name} failed with status {ended}")
    peaks = {"peak_gib": usage.ru_maxrss / 2**20, "anonymous_gib": largest["RssAnon"] / 2**20}
    peaks["file_gib"] = largest["RssFile"] / 2**20
    return {"name": name, **peaks, **json.loads(output)}


def all_starts(args: Namespace) -> list[dict[str, Any]]:
    """Run the first start, then later ones and the reference in alternation."""
    starts = [watched(args, "first start", args.max_resident_bytes)]
    for _ in range(args.rounds):
        starts.append(watched(args, "later start", args.max_resident_bytes))
        if args.reference:
            starts.append(watched(args, "all in memory", 2**60))
    different = [item["name"] for item in starts if item["results"] != starts[0]["results"]]
    if different:
        raise SystemExit(f"different bits than at the first start: {', '.join(different)}")
    return starts


def compared(starts: list[dict[str, Any]]) -> list[Row]:
    """Compare later starts with the first start and with the reference."""

    def seconds(name: str, part: str) -> float:
        return statistics.median(s["seconds"][part] for s in starts if s["name"] == name)

    first = seconds("first start", "read")
    rows = [Row("read, later against first", seconds("later start", "read"), first)]
    if any(item["name"] == "all in memory" for item in starts):
        decoded = seconds("all in memory", "read")
        rows.append(Row("read, mapped against memory", first, decoded))
        for part in ("hash", "measure", "random batches", "search"):
            pair = seconds("later start", part), seconds("all in memory", part)
            rows.append(Row(f"{part}, mapped against memory", *pair))
    return rows


def main() -> None:
    """Run the benchmark and print its results."""
    args = parse(
        __doc__,
        rows=100_000,
        batches=2000,
        max_resident_bytes=2**28,
        reference=1,
        folder="",
        task="",
        commands=False,
        only="",
    )
    if args.task:
        return start(args) if args.task == "start" else run_command(args)
    with tempfile.TemporaryDirectory() as folder:
        if not args.folder:
            args.folder = folder
            make_catalogue(Path(folder), args.rows)
        if args.commands:
            return all_commands(args)
        starts = all_starts(args)
    show(compared(starts), args.json)
    print()
    for item in starts:
        print(
            f"{item['name']:14} peak {item['peak_gib']:.2f} GiB, without pages of files "
            f"{item['anonymous_gib']:.2f} GiB"
        )
    if args.json:
        record = {
            **json.loads(args.json.read_text()),
            "num_rows": args.rows,
            "starts": starts,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
