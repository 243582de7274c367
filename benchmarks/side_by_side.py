"""Two ways of doing the same, timed in turn in one process tree: A B A B."""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
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
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(asked, capture_output=True, text=True)
    return done.stdout.strip() or None


def parse(description: str | None, **options: Any) -> argparse.Namespace:
    """The arguments that every benchmark has, and some of its own: name=default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=5, help="pairs that count")
    parser.add_argument("--json", type=Path, help="file to keep the figures in")
    for name, default in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return parser.parse_args()


def show(rows: list[Row], path: Path | None = None) -> None:
    """Print the table and keep it."""
    width = max(len(row.name) for row in rows)
    print(f"{'':{width}}       ours  reference   ratio")
    for row in rows:
        print(
            f"{row.name:{width}}  {row.ours_s:7.3f} s  {row.reference_s:7.3f} s  {row.ratio:5.1f}x"
        )
    if path is not None:
        kept = [{**asdict(row), "ratio": round(row.ratio, 3)} for row in rows]
        text = json.dumps({"machine": machine(), "commit": commit(), "rows": kept}, indent=1)
        path.write_text(text + "\n", encoding="utf-8")
