"""Time two implementations of the same task in alternation, A B A B, and print a table."""

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
    """A row of a table: median seconds of ours and of the reference."""

    name: str
    ours_s: float
    reference_s: float

    @property
    def ratio(self) -> float:
        """The reference's time divided by ours."""
        return self.reference_s / self.ours_s


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes; waits for the GPU to finish."""
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
    """Medians of both, measured in alternation after one warm-up round."""
    ours(), reference()
    pairs = [(timed(ours), timed(reference)) for _ in range(rounds)]
    return Row(name, *(statistics.median(side) for side in zip(*pairs, strict=True)))


def own_process(initializer: Callable[..., None], *args: Any) -> ProcessPoolExecutor:
    """A new process that runs an initializer and then one task at a time.

    Settings of the C library apply to a whole process, so each side needs its own.
    """
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer, args)


def machine() -> dict[str, Any]:
    """Machine and versions of a measurement."""
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
    """Commit of the checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or None


def parse(description: str | None, rounds: int = 5, **options: Any) -> argparse.Namespace:
    """Parse the options of all benchmarks and those of one, given as name=default.

    A default of False makes a switch, a tuple lists the choices and starts with the default;
    `rounds=0` omits --rounds.
    """
    parser = argparse.ArgumentParser(description=description)
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds, help="number of measured pairs")
    parser.add_argument("--json", type=Path, help="file for the results")
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
    """Print the table with a note, and write it to a file."""
    width = max(len(row.name) for row in rows)
    print(f"{'':{width}}         ours    reference   ratio")
    for row in rows:
        print(
            f"{row.name:{width}}  {row.ours_s:9.3f} s  {row.reference_s:9.3f} s  {row.ratio:5.2f}x"
        )
    if note:
        print(note)
    if path is not None:
        records = [{**asdict(row), "ratio": round(row.ratio, 3)} for row in rows]
        about = {"machine": machine(), "commit": commit(), **({"note": note} if note else {})}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**about, "rows": records}, indent=1) + "\n", encoding="utf-8")
