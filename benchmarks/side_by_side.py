"""Two ways of doing the same, timed in turn in one process tree: A B A B."""

import argparse
import json
import multiprocessing
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One line of a table: medians in seconds, and how many times faster ours is."""

    name: str
    ours_s: float
    reference_s: float

    @property
    def ratio(self) -> float:
        """The reference's time divided by ours."""
        return self.reference_s / self.ours_s


def timed(work: Callable[[], object]) -> float:
    """Seconds that some work takes; on a GPU until it has nothing left to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def compare(
    name: str, ours: Callable[[], object], reference: Callable[[], object], rounds: int = 5
) -> Row:
    """Medians of both, taken in turn after one round that does not count."""
    ours(), reference()
    pairs = [(timed(ours), timed(reference)) for _ in range(rounds)]
    return Row(name, *(statistics.median(side) for side in zip(*pairs, strict=True)))


def own_process(begin: Callable[..., None], *given: Any) -> ProcessPoolExecutor:
    """A fresh process that begins with a call and then does what it is given, one at a time.

    What one side asks of the C library holds for its whole process, and must not serve the other.
    """
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin, given)


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def commit() -> str | None:
    """The commit of the checkout that is measured."""
    requested = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(requested, capture_output=True, text=True)
    return done.stdout.strip() or None


def parse(description: str | None, rounds: int = 5, **options: Any) -> argparse.Namespace:
    """The arguments that every benchmark has, and some of its own.

    An option is name=default. False makes a switch, a tuple gives the choices, the first by default;
    no rounds, no --rounds.
    """
    parser = argparse.ArgumentParser(description=description)
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds, help="pairs that count")
    parser.add_argument("--json", type=Path, help="file to keep the figures in")
    for name, default in options.items():
        flag = f"--{name.replace('_', '-')}"
        if default is False:
            parser.add_argument(flag, action="store_true")
        elif isinstance(default, tuple):
            parser.add_argument(flag, choices=default, default=default[0])
        else:
            parser.add_argument(flag, type=type(default), default=default)
    return parser.parse_args()


def show(rows: list[Row], path: Path | None = None, note: str = "") -> None:
    """Print the table and keep it, with what a reader must know of it."""
    width = max(len(row.name) for row in rows)
    print(f"{'':{width}}         ours    reference   ratio")
    for row in rows:
        print(
            f"{row.name:{width}}  {row.ours_s:9.3f} s  {row.reference_s:9.3f} s  {row.ratio:5.2f}x"
        )
    if note:
        print(note)
    if path is not None:
        kept = [{**asdict(row), "ratio": round(row.ratio, 3)} for row in rows]
        about = {"machine": machine(), "commit": commit(), **({"note": note} if note else {})}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**about, "rows": kept}, indent=1) + "\n", encoding="utf-8")
