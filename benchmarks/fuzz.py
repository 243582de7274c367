"""Can a run, a model or a catalogue from somebody else do harm? Seeded mutations of all three.

Each case changes a fresh copy in one to three places: bytes, JSON values, table cells, tensor
headers, or files that become links, FIFOs or folders. Hashes and checksums are mended in most
cases, as somebody would who means harm. Everything that reads the copy then runs in a process with
limits of time and memory, beside a folder that must not change. A case is fine if it works or is
refused in one line.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from astropy.io import fits
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from faults import Bench, prepare

from space_warps.cli.config import read_config, read_run_config, to_yaml
from space_warps.core import InputError, canonical_json
from space_warps.data.loaders import create_train_val_dataloaders
from space_warps.evaluation.evaluate import (
    describe_evaluation,
    evaluate_run,
    stored_evaluation,
)
from space_warps.models.saved_model import load_model
from space_warps.reports.test_plots import check_evaluation
from space_warps.runs.folder import RunFolder, check_finished, record_backtrack
from space_warps.runs.journal import event_lines, read_events
from space_warps.runs.state import read_run_state
from space_warps.runs.tree import RunTree, describe_tree
from space_warps.safety import SafeFolder
from space_warps.search.records import Backtrack

SECONDS, BYTES = 10, 2 * 2**30
ODD: list[Any] = [
    *(None, True, [], {}, "", "x", -1, 0, 0.5, 10**9, 2**63, -(2**63), 10**400, 1e308, -1e-308),
    *(
        "../canary/keep",
        "/etc/passwd",
        "*",
        "${oc.env:HOME}",
        "\x1b[2J",
        "\x00",
        "$\\frac{",
        "\u202e",
    ),
    *("<script>", "a" * 10_000, [[[[]]]] * 9, {"a": {"b": []}}, list(range(500))),
]
LIKELY = ("events.jsonl", "annotations.csv", "model.json", "config.yaml", "evaluation.json")
NUMBER = re.compile(rb"-?\d+(\.\d+)?")


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip, cut, insert, repeat or replace a number."""
    at = rng.randrange(len(content) + 1)
    numbers = [*NUMBER.finditer(content[:100_000])]
    return rng.choice(
        [
            lambda: content[:at],
            lambda: content[:at] + rng.randbytes(rng.randint(1, 40)) + content[at:],
            lambda: content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :],
            lambda: content[:at] + content[at // 2 :],
            lambda: rng.randbytes(rng.choice([0, 8, 1000])),
            lambda: b"[" * 10**5,
            lambda: _with_number(rng, content, rng.choice(numbers)) if numbers else content,
        ]
    )()


def _with_number(rng: random.Random, content: bytes, match: re.Match[bytes]) -> bytes:
    odd = [b"1e999", b"NaN", b"9" * 5000, b"-1", b"0", b"1000000000", b"0.5", b"null", b'"x"']
    return content[: match.start()] + rng.choice(odd) + content[match.end() :]


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values within JSON."""
    is_list = isinstance(value, list)
    items = value.items() if isinstance(value, dict) else enumerate(value) if is_list else ()
    return [path, *(inner for key, item in items for inner in paths_in(item, (*path, key)))]


def mutate_json(rng: random.Random, value: Any) -> Any:
    """Replace, remove, repeat or rename one value."""
    value = json.loads(json.dumps(value))
    path = rng.choice(paths_in(value)[1:] or [()])
    if not path:
        return rng.choice(ODD)
    owner = value
    for key in path[:-1]:
        owner = owner[key]
    action = rng.choice(["replace", "replace", "replace", "remove", "repeat"])
    if action == "remove":
        del owner[path[-1]]
    elif action == "repeat" and isinstance(owner, list):
        owner.append(owner[path[-1]])
    else:
        owner[path[-1]] = rng.choice(ODD)
    return value


def write_model_json(path: Path, content: Any) -> None:
    """Write model.json with the hash that it should have."""
    if isinstance(content, dict):
        content.pop("sha256", None)
        with contextlib.suppress(ValueError, RecursionError):
            text = canonical_json(content).encode()
            content["sha256"] = hashlib.sha256(text).hexdigest()
    path.write_text(json.dumps(content))


def mutate_tensors(rng: random.Random, content: bytes) -> bytes:
    """Change the header of a safetensors file, or its bytes."""
    if rng.random() < 0.4 or len(content) < 9:
        return mutate_bytes(rng, content)
    (size,) = struct.unpack("<Q", content[:8])
    header = json.dumps(mutate_json(rng, json.loads(content[8 : 8 + size]))).encode()
    length = rng.choice([len(header), len(header), len(header), 2**63, 10**8])
    return struct.pack("<Q", length) + header + content[8 + size :]


def replace_hash(run: Path, before: bytes, after: bytes) -> None:
    """Record a changed file as if the run had written it."""
    old, new = (hashlib.sha256(content).hexdigest() for content in (before, after))
    events = json.loads(json.dumps(read_events(run)).replace(old, new))
    (run / "events.jsonl").write_bytes(event_lines(events))
    about = json.loads((run / "model.json").read_text().replace(old, new))
    write_model_json(run / "model.json", about)


def is_regular(path: Path) -> bool:
    """Whether a path is a file, or missing; not a link, a folder or a FIFO."""
    return not path.is_symlink() and (path.is_file() or not path.exists())


def mutate_file(rng: random.Random, path: Path, canary: Path, run: Path) -> None:
    """Change one file of a run, a model or a catalogue."""
    kind = rng.random()
    if not all(is_regular(run / name) for name in (path, "model.json", "events.jsonl")):
        return
    if kind < 0.12:
        path.unlink()
        rng.choice(
            [
                lambda: path.symlink_to(canary / "keep"),
                lambda: path.symlink_to(canary),
                lambda: path.symlink_to("/dev/zero"),
                lambda: path.symlink_to(path.name),
                lambda: os.mkfifo(path),
                path.mkdir,
                lambda: None,
            ]
        )()
    elif path.name == "events.jsonl" and kind < 0.9:
        events = read_events(run)
        at = rng.randrange(len(events))
        action = rng.random()
        if action < 0.8:
            events[at] = mutate_json(rng, events[at])
        elif action < 0.9:
            del events[at]
        else:
            events.insert(rng.randrange(len(events)), events[at])
        path.write_bytes(event_lines(events))
    elif path.name == "model.json" and kind < 0.9:
        write_model_json(path, mutate_json(rng, json.loads(path.read_text())))
    elif path.name == "config.yaml" and kind < 0.8:
        path.write_text(yaml.safe_dump(mutate_json(rng, yaml.safe_load(path.read_text()))))
    elif path.suffix == ".json" and kind < 0.8:
        path.write_text(json.dumps(mutate_json(rng, json.loads(path.read_text()))))
    elif path.suffix == ".csv" and kind < 0.8:
        lines = path.read_text().splitlines()
        row = rng.randrange(len(lines))
        cells = lines[row].split(",")
        cells[rng.randrange(len(cells))] = str(rng.choice(ODD))
        lines[row] = ",".join(cells)
        before = path.read_bytes()
        path.write_text("\n".join(lines) + "\n")
        if path.name == "validation.csv":
            replace_hash(run, before, path.read_bytes())
    elif path.suffix == ".safetensors":
        before = path.read_bytes()
        path.write_bytes(mutate_tensors(rng, before))
        if kind < 0.8:
            replace_hash(run, before, path.read_bytes())
    else:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))


def open_run(run: Path, environment: dict[str, Any]) -> None:
    """Read all of a run."""
    tree = RunTree(run)
    describe_tree(tree)
    for node in tree.state.nodes[1:]:
        if node.history.steps[-1].selected is not None:
            tree.at(node.number).model()
            tree.compare(node.number, node.number)


def resume_run(run: Path, environment: dict[str, Any]) -> None:
    """Open a run as a search does that resumes."""
    folder = RunFolder(run, environment, resume=True, accept_changes=True)
    try:
        for stored in list(folder.state.results.values()):
            trained = folder.resume_state.load(stored.result.candidate)
            if trained is not None and stored.result.failed is None:
                trained.saved_model.build()
    finally:
        folder.close()


def read_texts(run: Path, environment: dict[str, Any]) -> None:
    """Read the settings and the evaluation of a run."""
    read_run_config(run)
    if (evaluation := stored_evaluation(run)) is not None:
        describe_evaluation(check_evaluation(evaluation, run))


def open_catalogue(sky: Path, environment: dict[str, Any]) -> None:
    """Read a catalogue and its images."""
    create_train_val_dataloaders(
        sky / "annotations.csv", sky / "images", features=[], train_ratio=0.7, batch_size=16
    )


ACTIONS: dict[str, list[Callable[[Path, dict[str, Any]], Any]]] = {
    "run": [
        open_run,
        resume_run,
        read_texts,
        lambda run, environment: check_finished(run),
        lambda run, environment: record_backtrack(run, Backtrack(0)),
    ],
    "model": [lambda run, environment: load_model(run).build()],
    "catalogue": [open_catalogue],
}


def files_of(folder: Path) -> list[Path]:
    """Regular files of a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def canary_of(folder: Path) -> dict[str, bytes]:
    """Names and content of the folder that must not change."""
    return {str(path): path.read_bytes() for path in files_of(folder)}


def try_case(root: Path, number: int, seed: int, environment: dict[str, Any]) -> tuple[str, str]:
    """Mutate one target and open it; return its kind and what happened."""
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choice(["run", "run", "run", "model", "model", "catalogue"])
    name = rng.choice(["sky", "fits"]) if kind == "catalogue" else "whole"
    copy = root / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root / name, copy)
    paths = [p for p in files_of(copy) if kind != "model" or p.name.startswith("model.")]
    likely = [p for p in paths if p.name in LIKELY]
    with contextlib.suppress(InputError, ValueError, OSError, RecursionError):  # spoiled already
        for _ in range(rng.randint(1, 3)):
            mutate_file(rng, rng.choice([*paths, *likely * 4]), root / "canary", copy)
    outcome = "worked"
    signal.alarm(SECONDS)
    try:
        for action in ACTIONS[kind]:
            try:
                action(copy, environment)
            except (InputError, OSError) as error:
                assert "\n" not in str(error), str(error)
                outcome = "refused"
    finally:
        signal.alarm(0)
    return kind, outcome


def run_slice(root: Path, numbers: range, seed: int, environment: dict[str, Any]) -> None:
    """Run cases in this process, one line of JSON each on a file."""

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"longer than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    size, pages = (int(text) for text in Path("/proc/self/statm").read_text().split()[:2])
    limit = size * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with (root / "results.jsonl").open("a", buffering=1) as file:
        for number in numbers:
            file.write(json.dumps({"begun": number}) + "\n")
            started = time.monotonic()
            try:
                kind, outcome = try_case(root, number, seed, environment)
                detail = ""
            except BaseException as error:
                kind, outcome = "", "memory" if isinstance(error, MemoryError) else "traceback"
                where = traceback.extract_tb(error.__traceback__)[-1]
                detail = (
                    f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
                )
            usage = {"s": time.monotonic() - started, "pages": peak_pages() - pages}
            line = {"case": number, "kind": kind, "outcome": outcome, "detail": detail, **usage}
            file.write(json.dumps(line) + "\n")


def peak_pages() -> int:
    """Largest resident memory of this process so far, in pages."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // resource.getpagesize()


def complete(bench: Bench) -> None:
    """Add settings and an evaluation to the run, and a catalogue with FITS images."""
    sky, copy = bench.folder / "sky", bench.folder / "fits"
    SafeFolder(bench.whole).write("config.yaml", to_yaml(read_config([])))
    evaluate_run(bench.whole, sky / "annotations.csv", sky / "images", device="cpu")
    shutil.copytree(sky, copy)
    for path in sorted((copy / "images").iterdir()):
        fits.PrimaryHDU(np.asarray(Image.open(path))).writeto(path.with_suffix(".fits"))
        path.unlink()


def fuzz(root: Path, count: int, seed: int = 0, begin: int = 0) -> dict[str, Any]:
    """Run `count` cases in forked processes; counts and the faults that were found."""
    torch.set_num_threads(1)
    bench = prepare(root)
    complete(bench)
    (root / "canary").mkdir()
    (root / "canary/keep").write_text("two years of work")
    before, started = canary_of(root / "canary"), time.monotonic()
    environment = read_run_state(bench.whole).environment
    counts: Counter[str] = Counter()
    faults: list[str] = []
    worst = {"s": 0.0, "pages": 0}  # Time and additional memory of a case
    number = begin
    while number < begin + count:
        (root / "results.jsonl").unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                run_slice(root, range(number, begin + count), seed, environment)
            os._exit(0)
        _wait(child, root / "results.jsonl")
        lines = [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]
        for line in (line for line in lines if "case" in line):
            outcome = line["outcome"]
            counts[outcome] += 1
            counts[f"{line['kind'] or 'any'} {outcome}"] += 1
            worst = {name: max(worst[name], line[name]) for name in worst}
            if outcome not in ("worked", "refused"):
                faults.append(f"case {line['case']}: {line['detail']}")
        done = [line["case"] for line in lines if "case" in line]
        number = max([number - 1, *done]) + 1
        if number < begin + count:  # the process was killed within a case
            counts["killed"] += 1
            faults.append(f"case {number}: killed after {3 * SECONDS} s, or for its memory")
            number += 1
    if canary_of(root / "canary") != before:
        faults.append("the folder beside the run has changed")
    return {
        "cases": count,
        "seconds": round(time.monotonic() - started, 1),
        "worst_s": round(worst["s"], 2),
        "worst_mib": worst["pages"] * resource.getpagesize() // 2**20,
        "counts": dict(counts),
        "faults": faults,
    }


def _wait(child: int, results: Path) -> None:
    """Wait for a process, and kill it if it does not write a result in time."""
    size, since = -1, time.monotonic()
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        now = results.stat().st_size if results.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > 3 * SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        time.sleep(0.02)


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="cases")
    parser.add_argument("--begin", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to keep the counts in")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        result = fuzz(Path(root), args.count, args.seed, args.begin)
    print(f"{result['cases']} cases in {result['seconds']} s: {result['counts']}")
    print(f"at most {result['worst_s']} s and {result['worst_mib']} MiB for a case")
    print("\n".join(result["faults"][:40]) or "no traceback, no write outside, no hang")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
