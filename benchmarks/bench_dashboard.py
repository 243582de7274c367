"""What does the dashboard cost, and is it quick enough to look at?

A search with nobody looking against the same search with the dashboard looking, A B A B: both write a
run folder. While it looks, a task on the same event loop sleeps 10 ms at a time, and how much later it
wakes is the lag that a person would feel. A made-up run of 20 depths with 8 candidates each is drawn
anew, all pictures of its page. Last, a fresh process runs the notebook's cell until its first picture.
"""

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from side_by_side import commit, machine, parse

from space_warps.cli.config import Config, DataConfig
from space_warps.dashboard.app import Dashboard
from space_warps.dashboard.controller import RunController
from space_warps.models.blocks import BlockSpec
from space_warps.models.model import Architecture
from space_warps.search.config import FinalConfig, SearchConfig, SelectionConfig
from space_warps.search.events import (
    CandidateEnded,
    CandidateStarted,
    SearchStarted,
    StepEnded,
    StepStarted,
    event_to_json,
)
from space_warps.search.records import Candidate, CandidateResult, Decision, Step
from space_warps.training.config import EpochMetrics, TrainConfig

FIRST = """
import asyncio, sys, time
began = time.perf_counter()
from space_warps.dashboard.app import Dashboard
async def main():
    dashboard = Dashboard(sys.argv[1])
    dashboard.show()
    while not dashboard.pictures.data[0].image.value:
        await asyncio.sleep(0.01)
    print(time.perf_counter() - began)
asyncio.run(main())
"""


def asked(fraction: float, epochs: int) -> Config:
    """A search of two depths."""
    keys = SearchConfig(
        max_layers=2,
        k_candidates=(8, 16, 32),
        epochs_per_eval=epochs,
        final=FinalConfig(enabled=False),
        selection=SelectionConfig(patience=2),
    )
    return Config(data=DataConfig(fraction=fraction), search=keys)


def alone(index: RunController, config: Config) -> float:
    """Seconds of a search that nobody looks at."""
    session = index.new(config)
    session.ready()
    began = time.perf_counter()
    session.start()
    session.wait()
    return time.perf_counter() - began


async def looked_at(dashboard: Dashboard, config: Config, lags: list[float]) -> float:
    """Seconds of a search with the dashboard open on its Growth page."""
    session = dashboard.controller.new(config)
    session.ready()
    dashboard.layout.open_page("Growth")
    views = asyncio.create_task(dashboard.keep_up())
    began = time.perf_counter()
    session.start()
    while session.state == "training":
        asked_at = time.perf_counter()
        await asyncio.sleep(0.01)
        lags.append(time.perf_counter() - asked_at - 0.01)
    seconds = time.perf_counter() - began
    views.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await views
    if session.error:
        raise SystemExit(session.error)
    return seconds


def long_run(position: RunController, num_steps: int = 20, num_candidates: int = 8) -> None:
    """Tell a workplace of a run that nobody trained."""
    rng, plan, monitor = np.random.default_rng(0), TrainConfig(4), position.monitor
    assert position.loaders is not None
    data = position.loaders[0].dataset
    shape, classes = data.image_shape, data.classes  # type: ignore[attr-defined]
    empty = Architecture(
        shape, classes, (), position.start_from().ready().base_model.architecture.input_statistics
    )
    monitor.state.add(event_to_json(SearchStarted(SearchConfig(), empty, 1000, 120)))
    blocks: tuple[BlockSpec, ...] = ()
    for depth in range(1, num_steps + 1):
        results = []
        for index in range(num_candidates):
            specs = (*blocks, BlockSpec(8 * (index + 1), downsample=1 + (depth < 5)))
            score = 0.93 - 0.3 * 0.7**depth + 0.02 * float(rng.normal())
            records = tuple(EpochMetrics(n, 1.0, 1.6 - score, score) for n in (1, 2, 3, 4))
            candidate = Candidate(depth, index, specs, plan, True, 0.05)
            size = 300 * depth * (index + 1)
            results.append(CandidateResult(candidate, score, 1.6 - score, 4, size, records, ""))
        control = replace(
            results[0], candidate=replace(results[0].candidate, role="control", blocks=blocks)
        )
        candidates = tuple(result.candidate for result in (control, *results))
        monitor.state.add(event_to_json(StepStarted(depth, candidates, len(candidates))))
        for result in (control, *results):
            monitor.state.add(event_to_json(CandidateStarted(result.candidate)))
            monitor.state.add(event_to_json(CandidateEnded(result)))
        best = max(results, key=lambda result: result.val_acc)
        decision = Decision("accept", best.candidate.index, "better")
        monitor.state.add(event_to_json(StepEnded(Step(depth, tuple(results), control, decision))))
        blocks = best.candidate.blocks


def redraw_seconds(dashboard: Dashboard, rounds: int) -> float:
    """Median time to write and draw the whole Growth page, of a long run."""
    pictures = [p for p in dashboard.pictures.growth if p.name != "flips"]  # has no scores on disk
    taken = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        dashboard.write()
        for picture in pictures:
            picture.show(*picture.render())
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def first_picture_seconds(home: Path) -> float:
    """From the start of the notebook's cell to its first picture, in a fresh process."""
    args = [sys.executable, "-c", FIRST, str(home)]
    return float(subprocess.run(args, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Print the figures, and keep them."""
    options = parse(__doc__, rounds=3, fraction=0.4, epochs=3)
    config = asked(options.fraction, options.epochs)
    lags: list[float] = []
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        dashboard = Dashboard(folder, config)
        dashboard.controller.read(config)
        alone(dashboard.controller, config)
        for _ in range(options.rounds):
            headless = alone(dashboard.controller, config)
            pairs.append((headless, asyncio.run(looked_at(dashboard, config, lags))))
        dashboard.controller.new(config)
        long_run(dashboard.controller)
        redraw = redraw_seconds(dashboard, options.rounds)
        first = [first_picture_seconds(Path(folder) / f"first{n}") for n in range(options.rounds)]
    slower = [seen / headless - 1 for headless, seen in pairs]
    figures = {
        "training slowed by, median of pairs (%)": 100 * statistics.median(slower),
        "event-loop lag, 99th percentile (ms)": 1000 * float(np.quantile(lags, 0.99)),
        "event-loop lag, largest (ms)": 1000 * max(lags),
        "redraw of 20 steps with 8 candidates (ms)": 1000 * redraw,
        "first picture after (s)": statistics.median(first),
    }
    for name, value in figures.items():
        print(f"{name:45} {value:8.1f}")
    print("pairs:", ", ".join(f"{a:.2f} s and {b:.2f} s" for a, b in pairs))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        about = {"machine": machine(), "commit": commit(), "pairs_s": pairs, "figures": figures}
        options.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
