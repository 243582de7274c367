"""How much memory does a large catalogue take? Read, hashed and searched on, from a mapped file.

A catalogue of 75x75 cutouts is made of those of `data/sample`, each with an id and a position of its
own. Every start is a process: it reads the catalogue, hashes all rows as a command does, measures
them, draws batches at random from all of them, and searches on a few. The first start decodes; later
ones find the file. The reference holds all bytes in memory, which `--reference 0` leaves out. All
starts have to give the same bits.

The peak is the largest resident set that the system has seen, pages of files included; beside it
stands the largest part that belongs to no file, looked at every 50 ms. `--rows 1000000` is a catalogue
of 5.6 GB, and needs three times that on disk.
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
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import Row, parse, show
from torch.utils.data import DataLoader

from space_warps.augment import Augment
from space_warps.environment import describe_environment
from space_warps.loaders import EpochSampler, create_train_val_dataloaders, iterate
from space_warps.runner import LocalRunner
from space_warps.search import search
from space_warps.settings import SearchConfig

SAMPLE = Path(__file__).resolve().parent.parent / "data/sample"
TINY = SearchConfig(max_layers=1, k_candidates=(8,), epochs_per_eval=1, finish_epochs=1)


def make_catalogue(folder: Path, num_rows: int) -> None:
    """Copies of the sample's cutouts, no two alike: the id stands behind the end of each image."""
    (folder / "images").mkdir(parents=True)
    header, *lines = (SAMPLE / "annotations.csv").read_text(encoding="utf-8").splitlines()
    known = [line.split(",") for line in lines]
    contents = [(SAMPLE / f"images/{cells[0]}.jpg").read_bytes() for cells in known]
    drawn = np.random.default_rng(0).uniform(size=(2, num_rows))
    ra, dec = 360 * drawn[0], np.degrees(np.arcsin(2 * drawn[1] - 1))
    with (folder / "annotations.csv").open("w", encoding="utf-8") as table:
        table.write(header + "\n")
        for row in range(num_rows):
            _, _, _, label, subclass, z, z_err = known[row % len(known)]
            name, where = f"{row:029d}", f"{ra[row]:.7f},{dec[row]:.7f}"
            values = f"{float(z) + 1e-9 * row:.9g},{float(z_err) * (1 + 1e-9 * row):.9g}"
            table.write(f"{name},{where},{label},{subclass},{values}\n")
            content = contents[row % len(known)] + name.encode()
            (folder / f"images/{name}.jpg").write_bytes(content)


def a_few(loaders: Any) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """A thousand rows drawn from all, to train on and to validate with."""
    rng = np.random.default_rng(0)
    train, val = (loader.dataset for loader in loaders)
    train = train.subset(rng.permutation(len(train))[:1000], Augment())
    val = val.subset(rng.permutation(len(val))[:1000])
    return DataLoader(train, 32, sampler=EpochSampler(len(train), 0)), DataLoader(val, 256)


def start(asked: Namespace) -> None:
    """One start of a program; prints the seconds of each part and what came out."""
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"  {name:14} {seconds[name]:7.1f} s, peak {peak:.2f} GiB", file=sys.stderr)

    csv_path = Path(asked.folder) / "annotations.csv"
    with part("read"):
        loaders = create_train_val_dataloaders(
            csv_path,
            csv_path.parent / "images",
            Augment(),
            max_resident_bytes=asked.max_resident_bytes,
            cache_dir=Path(asked.folder) / "cache",
        )
    with part("hash"):
        environment = describe_environment(csv_path, "cpu", loaders)
    with part("measure"):
        empty = LocalRunner(*loaders, device="cpu").empty
    with part("random batches"):
        drawn = zip(range(asked.batches), iterate(loaders[0]), strict=False)
        total = sum(float(images.sum()) for _, (images, _, _) in drawn)
    with part("search"):
        _, history = search(TINY, LocalRunner(*a_few(loaders), device="cpu"))
    found = [environment["rows_sha256"], repr(empty.architecture.scaling), total, history.sha256]
    print(json.dumps({"seconds": seconds, "found": found}))


def watched(asked: Namespace, name: str, max_resident_bytes: int) -> dict[str, Any]:
    """A start in a process of its own, with its peaks in GiB."""
    print(f"{name}:", file=sys.stderr)
    options = {"folder": asked.folder, "batches": asked.batches, "start": 1}
    options["max-resident-bytes"] = max_resident_bytes
    command = [sys.executable, __file__, *(f"--{key}={value}" for key, value in options.items())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    anonymous, done = [0], threading.Event()
    status = Path(f"/proc/{process.pid}/status")

    def look() -> None:
        while not done.wait(0.05) and status.exists():
            lines = status.read_text().splitlines()
            anonymous.extend(int(x.split()[1]) for x in lines if x.startswith("RssAnon"))

    watcher = threading.Thread(target=look)
    watcher.start()
    said = process.stdout.read()
    done.set()
    watcher.join()
    _, ended, usage = os.wait4(process.pid, 0)
    if ended:
        raise SystemExit(f"the {name} ended with status {ended}")
    peaks = {"peak_gib": usage.ru_maxrss / 2**20, "anonymous_gib": max(anonymous) / 2**20}
    return {"name": name, **peaks, **json.loads(said)}


def all_starts(asked: Namespace) -> list[dict[str, Any]]:
    """The first start, then a later one and the reference in turn."""
    starts = [watched(asked, "first start", asked.max_resident_bytes)]
    for _ in range(asked.rounds):
        starts.append(watched(asked, "later start", asked.max_resident_bytes))
        if asked.reference:
            starts.append(watched(asked, "all in memory", 2**60))
    different = [each["name"] for each in starts if each["found"] != starts[0]["found"]]
    if different:
        raise SystemExit(f"other bits than at the first start: {', '.join(different)}")
    return starts


def compared(starts: list[dict[str, Any]]) -> list[Row]:
    """A later start against the reference, and against the first start."""

    def seconds(name: str, part: str) -> float:
        return statistics.median(s["seconds"][part] for s in starts if s["name"] == name)

    first = seconds("first start", "read")
    rows = [Row("read, later against first", seconds("later start", "read"), first)]
    if any(each["name"] == "all in memory" for each in starts):
        decoded = seconds("all in memory", "read")
        rows.append(Row("read, mapped against memory", first, decoded))
        for part in ("hash", "measure", "random batches", "search"):
            pair = seconds("later start", part), seconds("all in memory", part)
            rows.append(Row(f"{part}, mapped against memory", *pair))
    return rows


def main() -> None:
    """Measure and print."""
    asked = parse(
        __doc__,
        rows=100_000,
        batches=2000,
        max_resident_bytes=2**28,
        reference=1,
        folder="",
        start=0,
    )
    if asked.start:
        return start(asked)
    with tempfile.TemporaryDirectory() as place:
        if not asked.folder:
            asked.folder = place
            make_catalogue(Path(place), asked.rows)
        starts = all_starts(asked)
    show(compared(starts), asked.json)
    print()
    for each in starts:
        print(
            f"{each['name']:14} peak {each['peak_gib']:.2f} GiB, without pages of files "
            f"{each['anonymous_gib']:.2f} GiB"
        )
    if asked.json:
        kept = {**json.loads(asked.json.read_text()), "num_rows": asked.rows, "starts": starts}
        asked.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
