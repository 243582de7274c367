"""Which faults does a run survive? Searches that are killed, run out of disk space or are damaged.

After each fault the search resumes, and its end is compared with that of an undisturbed search:
the hash of the history, of the model and of every file.
"""

import argparse
import contextlib
import errno
import functools
import json
import os
import random
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from space_warps import core
from space_warps.core import InputError, sha256_file
from space_warps.data.loaders import create_train_val_dataloaders
from space_warps.models.saved_model import load_model
from space_warps.runs import journal
from space_warps.runs.artifacts import read_val_rows
from space_warps.runs.environment import describe_environment
from space_warps.runs.folder import RunFolder
from space_warps.runs.journal import read_events
from space_warps.runs.resume import stored_model, stored_scores
from space_warps.runs.state import read_history
from space_warps.runs.tree import RunTree
from space_warps.search.config import FinalConfig, SearchConfig
from space_warps.search.runner import LocalRunner
from space_warps.search.search import search

CONFIG = SearchConfig(
    max_layers=2, k_candidates=(3, 4), epochs_per_eval=2, final=FinalConfig(epochs=4)
)
VOLATILE = {  # Files that hold times
    ".lock",
    "events.jsonl",
    "progressive_summary.json",
    "environment.json",
    "latency.png",
}


@dataclass
class Bench:
    """A small search on a small catalogue, and its undisturbed run."""

    folder: Path
    runner: LocalRunner
    environment: dict[str, Any]

    @property
    def whole(self) -> Path:
        """Folder of the undisturbed run."""
        return self.folder / "whole"

    def session(self, path: Path) -> None:
        """Start or resume a run, to its end."""
        resume = (path / ".lock").exists()
        folder = RunFolder(path, self.environment, resume=resume, checkpoint_s=0)
        folder.resume_state.max_deaths = 10**9  # each of many kills is by chance
        try:
            search(CONFIG, self.runner, observers=[folder], resume=folder.resume_state)
        finally:
            folder.close()

    def is_identical(self, folder: Path) -> bool:
        """Whether a run ended with the same bits as the undisturbed one."""
        same = read_history(folder).sha256 == read_history(self.whole).sha256
        return same and files_of(folder) == files_of(self.whole)


def files_of(run: Path) -> dict[str, str]:
    """Files of a run with their hashes, empty for volatile ones."""
    return {
        str(path.relative_to(run)): "" if path.name in VOLATILE else sha256_file(path)
        for path in sorted(run.rglob("*"))
        if path.is_file()
    }


def write_catalogue(folder: Path, num_rows: int = 60, size: int = 12) -> Path:
    """Two classes that differ in the width of a spot."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] - size / 2
    lines = ["id,ra,dec,class"]
    for row in range(num_rows):
        spot = 200 * np.exp(-(x**2 + y**2) / (2 + 9 * (row % 2)))
        shades = np.clip(spot + rng.normal(20, 6, (size, size)), 0, 255).astype(np.uint8)
        Image.fromarray(shades).save(folder / f"images/{row}.png")
        lines.append(f"{row},{row * 2.5},{row * 0.5 - 30},{'GS'[row % 2]}")
    (folder / "annotations.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "annotations.csv"


def prepare(index: Path) -> Bench:
    """Create the catalogue and the undisturbed run."""
    csv_path = write_catalogue(index / "sky")
    loaders = create_train_val_dataloaders(
        csv_path, csv_path.parent / "images", features=[], train_ratio=0.7, batch_size=16
    )
    runner = LocalRunner(*loaders, device="cpu")
    bench = Bench(index, runner, describe_environment(csv_path, "cpu", loaders))
    bench.session(bench.whole)
    return bench


def killed_once(work: Callable[[], None], after_s: float) -> bool:
    """Run in a process of its own, killed after a while; return whether it ended by itself."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    ended = time.monotonic() + after_s
    while time.monotonic() < ended:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def kill_trials(bench: Bench, count: int, seed: int = 0) -> dict[str, int]:
    """`kill -9` at random moments, resumed until done."""
    rng, result = random.Random(seed), {"trials": count, "kills": 0, "identical": 0}
    start = time.monotonic()
    killed_once(functools.partial(bench.session, bench.folder / "timed"), 600)
    seconds = time.monotonic() - start
    for trial in range(count):
        folder = bench.folder / f"killed_{trial}"
        session = functools.partial(bench.session, folder)
        while not killed_once(session, rng.uniform(0, seconds)):
            result["kills"] += 1
        result["identical"] += bench.is_identical(folder)
        shutil.rmtree(folder)
    return result


@contextlib.contextmanager
def failing_write(number: int) -> Iterator[list[int]]:
    """The disk is full at one of the writes, in the middle of the file; counts the writes."""
    real, seen = os.fsync, [0]

    def fsync(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            return real(file)
        seen[0] += 1
        if seen[0] == number:
            os.ftruncate(file, max(0, os.fstat(file).st_size - 7))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file)

    with mock.patch.object(core.os, "fsync", fsync), mock.patch.object(journal.os, "fsync", fsync):
        yield seen


def full_disk_trials(bench: Bench, every: int = 1) -> dict[str, int]:
    """No space at each write in turn: an error, and the run resumes when there is space again."""
    with failing_write(0) as seen:
        bench.session(bench.folder / "counted")
    result = {"trials": 0, "errors": 0, "identical": 0}
    for number in range(1, seen[0] + 1, every):
        folder = bench.folder / f"full_{number}"
        result["trials"] += 1
        try:
            with failing_write(number):
                bench.session(folder)
        except OSError as error:
            result["errors"] += error.errno == errno.ENOSPC
        bench.session(folder)
        result["identical"] += bench.is_identical(folder)
        shutil.rmtree(folder)
    shutil.rmtree(bench.folder / "counted")
    return result


def torn_line_trials(bench: Bench, resumed_every: int = 50) -> dict[str, int]:
    """The last line cut at every byte: never misread, and resumed."""
    lines = (bench.whole / "events.jsonl").read_bytes().splitlines(keepends=True)
    result = {"trials": 0, "read_correctly": 0, "resumed": 0, "identical": 0}
    folder = bench.folder / "torn"
    for last in (len(lines) - 1, len(lines) // 2):
        for end in range(len(lines[last])):
            shutil.copytree(bench.whole, folder)
            (folder / "events.jsonl").write_bytes(b"".join(lines[:last]) + lines[last][:end])
            result["trials"] += 1
            result["read_correctly"] += read_events(folder) == read_events(bench.whole)[: last - 1]
            if end % resumed_every == 0:
                result["resumed"] += 1
                bench.session(folder)
                result["identical"] += bench.is_identical(folder)
            shutil.rmtree(folder)
    return result


def everything_in(run: Path) -> list[Any]:
    """Everything that can be read from a run; raises `InputError` if a file was changed."""
    tree = RunTree(run)
    rows = read_val_rows(run, tree.state.val_sha256)
    read: list[Any] = [read_events(run), rows.ids, rows.labels.tolist()]
    for node in tree.state.nodes[1:]:
        if node.history.steps[-1].selected is not None:
            read.append(
                {n: t.tolist() for n, t in tree.at(node.number).model().state_dict().items()}
            )
    for existing in tree.state.results.values():
        read.append(stored_scores(run, tree.state, existing.result).tolist())
    kept = [
        end.final_result
        for _, end in tree.state.branch_ends.values()
        if end.final_result is not None
    ]
    read += [
        {n: t.tolist() for n, t in stored_model(run, tree.state, final).state_dict.items()}
        for final in kept
    ]
    model = load_model(run)
    return [*read, repr(model.architecture), {n: t.tolist() for n, t in model.state_dict.items()}]


def bit_flip_trials(bench: Bench, count: int, seed: int = 0) -> dict[str, int]:
    """Bits flipped in the events and weights: refused, or read as without the last line."""
    rng = random.Random(seed)
    files = [bench.whole / "events.jsonl", bench.whole / "model.json"]
    files += sorted(bench.whole.rglob("*.safetensors"))
    truth = everything_in(bench.whole)
    result = {"trials": count, "refused": 0, "same_content": 0, "line_dropped": 0, "accepted": 0}
    for trial in range(count):
        path = files[0] if trial % 2 else rng.choice(files)
        content = path.read_bytes()
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            read = everything_in(bench.whole)
            results = {"same_content": read == truth, "line_dropped": read[0] == truth[0][:-1]}
            result[next((name for name, holds in results.items() if holds), "accepted")] += 1
        except InputError:
            result["refused"] += 1
        finally:
            path.write_bytes(content)
    return result


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="trials of kill -9")
    parser.add_argument("--flips", type=int, default=500, help="bits to flip")
    parser.add_argument("--json", type=Path, help="file to keep the counts in")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a forked process cannot use the threads of its parent
    with tempfile.TemporaryDirectory() as index:
        bench = prepare(Path(index))
        result = {}
        for name, trials in {
            "bit flips": lambda: bit_flip_trials(bench, args.flips),
            "torn last lines": lambda: torn_line_trials(bench),
            "full disk": lambda: full_disk_trials(bench),
            "kill -9": lambda: kill_trials(bench, args.kills),
        }.items():
            result[name] = trials()
            text = ", ".join(f"{what.replace('_', ' ')} {n}" for what, n in result[name].items())
            print(f"{name:16} {text}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
