"""How much does the dashboard slow a search down, and how quickly does it react?

The same search runs without and with an open dashboard, in turn; both write a run folder. Meanwhile a
task on the event loop sleeps 10 ms at a time: the delay of its wake-up is the lag a person notices. Then
all figures of the Growth page are redrawn for a made-up run of 20 steps with 8 candidates each. Finally
a new process runs the cell of the notebook until its first figure is shown.
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
from space_warps.dashboard.session import SessionState
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

FIRST_FIGURE = """
import asyncio, sys, time
start = time.perf_counter()
from space_warps.dashboard.app import Dashboard
async def main():
    dashboard = Dashboard(sys.argv[1])
    dashboard.show()
    while not dashboard.figures.data[0].image.value:
        await asyncio.sleep(0.01)
    print(time.perf_counter() - start)
asyncio.run(main())
"""


def make_config(fraction: float, epochs: int) -> Config:
    """A search with two steps."""
    keys = SearchConfig(
        max_layers=2,
        k_candidates=(8, 16, 32),
        epochs_per_eval=epochs,
        final=FinalConfig(enabled=False),
        selection=SelectionConfig(patience=2),
    )
    return Config(data=DataConfig(fraction=fraction), search=keys)


def time_search(controller: RunController, config: Config) -> float:
    """Seconds of a search without the dashboard."""
    session = controller.new_run(config)
    session.get_runner()
    start = time.perf_counter()
    session.start()
    session.wait()
    return time.perf_counter() - start


async def time_search_with_dashboard(
    dashboard: Dashboard, config: Config, lags: list[float]
) -> float:
    """Seconds of a search with the dashboard open on the Growth page."""
    session = dashboard.controller.new_run(config)
    session.get_runner()
    dashboard.layout.open_page("Growth")
    refreshing = asyncio.create_task(dashboard.keep_fresh())
    start = time.perf_counter()
    session.start()
    while session.state is SessionState.TRAINING:
        slept_at = time.perf_counter()
        await asyncio.sleep(0.01)
        lags.append(time.perf_counter() - slept_at - 0.01)
    seconds = time.perf_counter() - start
    refreshing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await refreshing
    if session.error:
        raise SystemExit(session.error)
    return seconds


def fake_run(controller: RunController, num_steps: int = 20, num_candidates: int = 8) -> None:
    """Show a run that was never trained."""
    rng, plan, monitor = np.random.default_rng(0), TrainConfig(4), controller.monitor
    assert controller.loaders is not None
    data = controller.loaders[0].dataset
    shape, classes = data.image_shape, data.classes  # type: ignore[attr-defined]
    empty = Architecture(
        shape,
        classes,
        (),
        controller.require_session().get_runner().base_model.architecture.input_statistics,
    )
    monitor.state.add(event_to_json(SearchStarted(SearchConfig(), empty, 1000, 120)))
    blocks: tuple[BlockSpec, ...] = ()
    for number in range(1, num_steps + 1):
        results = []
        for index in range(num_candidates):
            specs = (*blocks, BlockSpec(8 * (index + 1), downsample=1 + (number < 5)))
            score = 0.93 - 0.3 * 0.7**number + 0.02 * float(rng.normal())
            records = tuple(EpochMetrics(n, 1.0, 1.6 - score, score) for n in (1, 2, 3, 4))
            candidate = Candidate(number, index, specs, plan, True, 0.05)
            size = 300 * number * (index + 1)
            results.append(CandidateResult(candidate, score, 1.6 - score, 4, size, records, ""))
        control = replace(
            results[0], candidate=replace(results[0].candidate, role="control", blocks=blocks)
        )
        candidates = tuple(result.candidate for result in (control, *results))
        monitor.state.add(event_to_json(StepStarted(number, candidates, len(candidates))))
        for result in (control, *results):
            monitor.state.add(event_to_json(CandidateStarted(result.candidate)))
            monitor.state.add(event_to_json(CandidateEnded(result)))
        best = max(results, key=lambda result: result.val_acc)
        decision = Decision("accept", best.candidate.index, "better")
        monitor.state.add(event_to_json(StepEnded(Step(number, tuple(results), control, decision))))
        blocks = best.candidate.blocks


def redraw_seconds(dashboard: Dashboard, rounds: int) -> float:
    """Median seconds to refresh and draw the whole Growth page."""
    figures = [f for f in dashboard.figures.growth if f.name != "changed"]  # needs stored scores
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        dashboard.refresh_widgets()
        for figure in figures:
            figure.show(*figure.render())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def first_figure_seconds(home: Path) -> float:
    """Seconds from the start of the cell to its first figure, in a new process."""
    args = [sys.executable, "-c", FIRST_FIGURE, str(home)]
    return float(subprocess.run(args, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Print the measurements, and write them as JSON."""
    options = parse(__doc__, rounds=3, fraction=0.4, epochs=3)
    config = make_config(options.fraction, options.epochs)
    lags: list[float] = []
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        dashboard = Dashboard(folder, config)
        dashboard.controller.read_data(config)
        time_search(dashboard.controller, config)
        for _ in range(options.rounds):
            headless = time_search(dashboard.controller, config)
            pairs.append(
                (headless, asyncio.run(time_search_with_dashboard(dashboard, config, lags)))
            )
        dashboard.controller.new_run(config)
        fake_run(dashboard.controller)
        redraw = redraw_seconds(dashboard, options.rounds)
        first = [first_figure_seconds(Path(folder) / f"first{n}") for n in range(options.rounds)]
    slower = [shown / headless - 1 for headless, shown in pairs]
    figures = {
        "training slowed by, median of pairs (%)": 100 * statistics.median(slower),
        "event-loop lag, 99th percentile (ms)": 1000 * float(np.quantile(lags, 0.99)),
        "event-loop lag, largest (ms)": 1000 * max(lags),
        "redraw of 20 steps with 8 candidates (ms)": 1000 * redraw,
        "first figure after (s)": statistics.median(first),
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
