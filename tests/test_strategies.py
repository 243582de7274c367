"""Strategies, early dropping, limits and budgets through the command."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny, grow

from space_warps.cli.main import main
from space_warps.core import InputError
from space_warps.data.loaders import create_train_val_dataloaders
from space_warps.models.blocks import block_families
from space_warps.models.complexity import Latency, LatencyTimer
from space_warps.models.model import Architecture
from space_warps.models.saved_model import load_model
from space_warps.runs.folder import RunFolder
from space_warps.runs.state import read_history
from space_warps.runs.tree import RunTree
from space_warps.search.budget import epochs_spent
from space_warps.search.config import FinalConfig, SearchConfig, SelectionConfig, SpaceConfig
from space_warps.search.events import CandidateEnded, EpochEnded, Event, StepEnded
from space_warps.search.history import SearchHistory
from space_warps.search.runner import LocalRunner
from space_warps.search.search import search
from space_warps.search.space import CandidateProposal
from space_warps.search.strategies import register_strategy, strategies

WIDE = [
    "data.features=[]",
    "search.max_layers=2",
    "search.k_candidates=[4,8]",
    "search.space.families=[conv,separable]",
    "search.space.stem_kernel=3",
    "search.space.stem_downsample=2",
    "search.epochs_per_eval=1",
    "search.final.epochs=1",
    "search.num_candidates=3",
    "augment.noise=0.3",
]
BEAM = ["search.beam_width=2"]
HALVING = ["search.epochs_per_eval=4", "search.rungs=[1,2]"]  # the default, beside rungs


@pytest.mark.parametrize("strategy", ["greedy", "random", "beam", "pnas"])
def test_every_strategy_grows_a_network(tiny: Tiny, tmp_path: Path, strategy: str) -> None:
    is_beam = strategy in ("beam", "pnas")
    args = [*WIDE, f"search.strategy={strategy}", *HALVING, *(BEAM if is_beam else [])]
    first = grow(tiny, tmp_path / "first", *args)
    again = grow(tiny, tmp_path / "again", *args)
    assert again["history_sha256"] == first["history_sha256"]
    assert again["model_sha256"] == first["model_sha256"]
    assert first["strategy"] == strategy
    tried = [candidate for step in first["steps"] for candidate in step["candidates"]]
    assert any(candidate["dropped"] for candidate in tried)
    for item in (item for item in tried if not item["failed"]):
        assert item["epochs"] == (1 if item["dropped"] else 2)
    begun, later = (step["control"] for step in first["steps"])
    inherited = 0 if strategy == "random" else 2  # where candidates start from nothing, so does it
    assert (begun["inherited_epochs"], later["inherited_epochs"]) == (0, inherited)
    beams = [len(step["beam"]) for step in first["steps"] if step["beam"]]
    assert beams[0] == (2 if is_beam else 1)
    assert (tmp_path / "first" / "pareto.png").is_file()
    for point in first["pareto"]:
        assert (tmp_path / "first" / f"{point['name']}.safetensors").is_file()


def test_random_search_returns_its_best_network(tiny: Tiny, tmp_path: Path) -> None:
    args = [*WIDE, "search.strategy=random", "search.max_steps=6", "search.final.enabled=false"]
    summary, run = grow(tiny, tmp_path / "run", *args, "search.num_candidates=2"), tmp_path / "run"
    steps = read_history(run).steps
    assert len(steps) == 6
    kinds = [step.decision.action for step in steps]
    assert kinds[0] == "accept"
    assert "hold" in kinds[:-1]
    best = None
    for step in steps:
        assert step.control.candidate.blocks == (best.candidate.blocks if best else ())
        every = [*step.results, *([best] if best else [])]
        best = min(every, key=lambda result: result.val_loss)
        assert (step.selected is None) == (step.decision.action == "hold") == (best in every[2:])
    assert best is not None
    assert summary["final_val_log_loss"] == best.val_loss
    trained = RunTree(run).network(best.candidate.name)
    assert sum(p.numel() for p in trained.parameters()) == summary["total_trainable_params"]
    held = 1 + kinds.index("hold")
    branch = [f"run.dir={run}", f"step={held}", "branch=deeper", "search.strategy=greedy"]
    assert main(["branch", *branch, f"search.max_steps={held + 1}"]) == 0
    assert main(["search", f"run.dir={run}", "run.resume=true"]) == 0
    *before, above = read_history(run).steps
    tried = [result for step in before for result in step.results]
    parent = min(tried, key=lambda result: result.val_loss).candidate.blocks
    assert above.control.candidate.blocks == parent
    assert {result.candidate.blocks[:-1] for result in above.results} == {parent}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The step of each call of a strategy that proposes what greedy does, and nothing at the third."""
    calls: list[int] = []
    monkeypatch.setattr(strategies, "_entries", dict(strategies._entries))  # for this test only

    @register_strategy("counted")
    def propose(history: SearchHistory, latency: Latency | None) -> list[CandidateProposal]:
        calls.append(len(history.steps) + 1)
        return [] if len(history.steps) == 2 else strategies.find("greedy").value(history, latency)

    return calls


@pytest.mark.parametrize(
    ("changes", "steps_asked", "stopped"),
    [
        ({"max_layers": 2}, [1, 2], "max_layers=2 reached"),
        ({"max_layers": 3}, [1, 2, 3], "the strategy 'counted' proposes nothing to try"),
        # The budget has room for one of the two candidates of the first step.
        (
            {"max_steps": 2, "k_candidates": (4, 8), "budget": "5epochs"},
            [1, 2],
            "max_steps=2 reached",
        ),
    ],
)
def test_a_strategy_is_called_once_for_each_step(
    tiny: Tiny,
    counted: list[int],
    changes: dict[str, Any],
    steps_asked: list[int],
    stopped: str,
) -> None:
    config = SearchConfig(
        strategy="counted",
        epochs_per_eval=1,
        **{"k_candidates": (4,), **changes},
        space=SpaceConfig(stem_kernel=3, stem_downsample=2),
        selection=SelectionConfig(patience=9),
        final=FinalConfig(enabled=False),
    )
    loaders = create_train_val_dataloaders(tiny.csv_path, tiny.img_dir_path)
    _, history = search(config, LocalRunner(*loaders, device="cpu"))
    assert (history.stop_reason, counted) == (stopped, steps_asked)


class Killed(Exception):
    """Ends a session."""


def interrupt(
    tiny: Tiny, run: Path, args: list[str], counts: Callable[[Event], bool], number: int
) -> None:
    """A search that is killed at the event of that number among those that count."""
    counted, plain = [], RunFolder.__call__

    def kill(self: RunFolder, event: Event) -> None:
        plain(self, event)
        counted.append(counts(event))
        if sum(counted) == number:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "__call__", kill)
        with pytest.raises(Killed):
            main(["search", *tiny.words(), f"run.dir={run}", *args])


def resume_and_compare(run: Path, whole: dict[str, Any], *args: str) -> None:
    """A resumed search ends with the same bits as an uninterrupted one."""
    assert main(["search", f"run.dir={run}", "run.resume=true", *args]) == 0
    summary = json.loads((run / "progressive_summary.json").read_text())
    assert summary["model_sha256"] == whole["model_sha256"]
    assert summary["history_sha256"] == whole["history_sha256"]


def test_an_interrupted_beam_search_resumes(tiny: Tiny, tmp_path: Path) -> None:
    args = [*WIDE, *BEAM, *HALVING, "search.strategy=pnas"]
    whole, run = grow(tiny, tmp_path / "whole", *args), tmp_path / "cut"
    interrupt(tiny, run, args, lambda event: isinstance(event, CandidateEnded), 8)
    resume_and_compare(run, whole)
    assert main(["replay", f"run.dir={run}", "step=2"]) == 0


def test_whole_numbers_as_hyperparameters_survive_a_resume(tiny: Tiny, tmp_path: Path) -> None:
    args = [
        *WIDE,
        "search.k_candidates=[4]",
        "search.space.mutations=[deepen,swap]",
        "search.num_candidates=0",
        "search.space.hyperparameters={dropout:[0,0.2]}",
    ]
    whole, run = grow(tiny, tmp_path / "whole", *args), tmp_path / "cut"
    interrupt(tiny, run, args, lambda event: isinstance(event, StepEnded), 1)
    resume_and_compare(run, whole)


def test_a_budget_is_kept(tiny: Tiny, tmp_path: Path) -> None:
    grow(tiny, tmp_path / "run", *WIDE, "search.max_layers=5", "search.budget=9epochs")
    history = read_history(tmp_path / "run")
    assert epochs_spent(history) <= 9
    assert "the budget of 9 epochs has no room" in history.stop_reason
    grow(tiny, tmp_path / "timed", *WIDE, "search.budget=60s")
    assert str(read_history(tmp_path / "timed").config.budget).endswith("epochs")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["search.strategy=best"], "registered: beam, greedy, pnas, random"),
        (
            ["search.space.families=[konv]"],
            "registered: conv, inception, inverted_residual, residual",
        ),
        (["search.space.max_params=10"], "no candidate is within space.max_params=10"),
        (["search.budget=2epochs"], "one candidate and the control take 2"),
        (["search.space.kernel_sizes=[4]"], "kernel_size is odd"),
        (["search.space.stem_kernel=31"], "kernel_size=31"),
        (
            ["search.space.hyperparameters={seed:[1]}"],
            "hyperparameters names a list of values for one of lr",
        ),
        (["search.beam_width=2"], "beam_width=2 has no effect with strategy='greedy'"),
        (["search.rungs=[1,2]"], "epochs_per_eval=1 has no effect beside rungs"),
        (["search.rungs=[6,2]"], "rungs are ascending numbers of epochs"),
    ],
)
def test_invalid_settings_are_refused(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    requested = [*WIDE, *args]
    assert main(["search", *tiny.words(), f"run.dir={tmp_path / 'run'}", *requested]) == 2
    assert message in capsys.readouterr().err


def test_hyperparameters_and_architecture_are_searched_together(tiny: Tiny, tmp_path: Path) -> None:
    args = [
        "search.space.hyperparameters={lr:[0.001,0.01],augmentation:[0,1]}",
        "search.num_candidates=0",
    ]
    grow(tiny, tmp_path / "run", *WIDE, *args)
    first = read_history(tmp_path / "run").steps[0]
    recipes: Any = {
        (o.candidate.train_config.lr, o.candidate.train_config.augmentation) for o in first.results
    }
    assert len(recipes) == 4
    assert len(first.results) == 16


INIT = [
    "search.space.hyperparameters={init:[scratch,copy,net2net],new_layer_lr_factor:[4]}",
    "search.num_candidates=0",
]


def test_searched_init_counts_inherited_epochs(tiny: Tiny, tmp_path: Path) -> None:
    args = [*WIDE, *INIT, "search.k_candidates=[4]", "search.epochs_per_eval=2"]
    summary = grow(tiny, tmp_path / "run", *args, "search.selection.patience=2")
    first, second = read_history(tmp_path / "run").steps
    assert {o.candidate.init for o in first.results} == {"scratch"}
    tried = {(o.candidate.blocks[-1].family, o.candidate.init): o for o in second.results}
    assert len(tried) == len(second.results) == 6
    assert first.selected is not None
    for (_, start), result in tried.items():
        candidate = result.candidate
        assert candidate.inherited_epochs == (0 if start == "scratch" else 2)
        assert candidate.train_config.new_layer_lr_factor == (1.0 if start == "scratch" else 4.0)
    losses = {key: result.epochs[0].val_loss for key, result in tried.items()}
    assert len(set(losses.values())) == 6
    text = summary["steps"][1]["candidates"]
    assert [item["hyperparameters"]["init"] for item in text] == [
        o.candidate.init for o in second.results
    ]
    assert [item["inherited_epochs"] for item in text] == [
        o.candidate.inherited_epochs for o in second.results
    ]
    assert main(["replay", f"run.dir={tmp_path / 'run'}", "step=2"]) == 0


def test_searched_init_gives_the_same_in_workers_and_after_a_resume(
    tiny: Tiny, tmp_path: Path, one_thread: None
) -> None:
    args = [
        *WIDE,
        *INIT,
        *BEAM,
        *HALVING,
        "search.rungs=[1,3]",
        "search.strategy=beam",
        "search.space.mutations=[deepen,widen]",
    ]
    args += ["run.checkpoint_s=0"]
    whole, run = grow(tiny, tmp_path / "whole", *args), tmp_path / "cut"

    def counts(event: Event) -> bool:
        return isinstance(event, EpochEnded) and event.candidate.init == "net2net"

    interrupt(tiny, run, args, counts, 2)
    resume_and_compare(run, whole, "search.workers=2")


def test_hyperparameters_that_are_not_searched_are_not_written(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    grow(tiny, run, *WIDE)
    written = (run / "events.jsonl").read_text() + (run / "progressive_summary.json").read_text()
    assert '"init_noise":' in written
    for name in ("init", "new_layer_lr_factor"):
        assert f'"{name}":' not in written


def test_the_plain_rule_tries_the_lists_that_are_given(tiny: Tiny, tmp_path: Path) -> None:
    args = [
        *WIDE,
        "search.plain=true",
        "search.space.families=[conv,residual]",
        "search.num_candidates=0",
    ]
    grow(tiny, tmp_path / "run", *args)
    history = read_history(tmp_path / "run")
    assert (history.config.training.warm_start, history.config.selection.metric) == (
        "chained",
        "accuracy",
    )
    for step in history.steps:
        tried = [(o.candidate.blocks[-1].family, o.candidate.blocks[-1].k) for o in step.results]
        assert tried == [(kind, k) for kind in ("conv", "residual") for k in (4, 8)]
        assert [o.candidate.warm_start_from is None for o in step.results] == [
            True,
            False,
            False,
            False,
        ]


def test_the_plain_rule_refuses_what_it_cannot_chain(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arg in (
        "search.strategy=beam",
        "search.rungs=[1,2]",
        "search.space.mutations=[deepen,swap]",
    ):
        requested = [*WIDE, "search.plain=true", arg]
        assert main(["search", *tiny.words(), f"run.dir={tmp_path / 'run'}", *requested]) == 2
        assert "it needs strategy='greedy', space.mutations=" in capsys.readouterr().err
    freed = ["search.plain=true", "search.training.warm_start=parallel", "search.strategy=beam"]
    grow(tiny, tmp_path / "freed", *WIDE, *freed)


def test_every_search_measures_latency_anew_on_its_own_device(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[tuple[int, torch.device]] = []

    def measure(architecture: Architecture, device: torch.device) -> float:
        timed.append((architecture.blocks[-1].k, device))
        return 5.0

    monkeypatch.setattr("space_warps.models.complexity.measure_latency", measure)
    args = [
        *WIDE,
        "search.max_layers=1",
        "search.final.enabled=false",
        "search.space.families=[conv]",
    ]
    once = [(k, torch.device("cpu")) for k in (4, 8)]
    for number in (1, 2):
        grow(tiny, tmp_path / f"run_{number}", *args, "search.space.max_latency_ms=6")
        assert sorted(timed, key=str) == once
        timed.clear()
    # A timer of another device measures there, whatever others have measured before.
    architecture = read_history(tmp_path / "run_1").accepted[0].candidate.blocks
    network = replace(read_history(tmp_path / "run_1").base_architecture, blocks=architecture)
    for device in ("cpu", "meta"):
        LatencyTimer(device)(network)
    assert [device for _, device in timed] == [torch.device("cpu"), torch.device("meta")]


MODULE = """
from torch import nn

from space_warps.models.blocks import register_block
from space_warps.search.space import expand, feasible
from space_warps.search.strategies import register_strategy


@register_block("smooth")
def smooth_block(in_channels, spec):
    conv = nn.Conv2d(in_channels, spec.k, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(spec.k), nn.GELU(), nn.AvgPool2d(spec.downsample))


def plain_block(in_channels, spec):  # nobody registers it
    return smooth_block(in_channels, spec)


@register_strategy("both", keeps_beam=True)
def both(history, latency):
    parents = enumerate(history.parents)
    every = (p for n, blocks in parents for p in expand(history.config, blocks, n))
    return feasible(history, every, latency)
"""


def run_python(*args: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own that finds the modules of a folder."""
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, **variables}
    return subprocess.run(
        [sys.executable, *args], env=environment, capture_output=True, text=True, check=False
    )


def test_families_and_strategies_of_a_module_travel(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sw_travels.py").write_text(MODULE)
    run, cli = tmp_path / "run", ("-m", "space_warps.cli.main")
    names = [
        "search.space.families=[sw_travels:smooth_block,sw_travels:plain_block]",
        "search.strategy=sw_travels:both",
        "search.workers=2",
    ]
    args = [*tiny.words(), *WIDE, "search.k_candidates=[4]", "search.max_layers=1", *names]
    done = run_python(*cli, "search", *args, f"run.dir={run}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    # A run may come from somebody else: its names import nothing by themselves.
    name = read_history(run).accepted[0].candidate.blocks[0].family
    with pytest.raises(InputError, match="names in files import nothing"):
        load_model(run).build()
    assert "sw_travels" not in sys.modules
    again = ("search", f"run.dir={run}", "run.resume=true")
    refused = run_python(*cli, *again, folder=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("space-warps: the strategy 'sw_travels:both' is not loaded")
    assert len(refused.stderr.splitlines()) == 1
    allowed = run_python(*cli, *again, folder=tmp_path, SPACE_WARPS_IMPORTS="sw_travels")
    assert allowed.returncode == 0, allowed.stderr
    monkeypatch.syspath_prepend(str(tmp_path))
    block_families.load(name)
    assert load_model(run).build().num_layers == 1


def test_a_module_that_cannot_be_imported_is_refused(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arg in ("search.space.families=[sw_nowhere:smooth]", "search.strategy=sw_nowhere:smooth"):
        args = [*tiny.words(), *WIDE, arg, f"run.dir={tmp_path / 'run'}"]
        assert main(["search", *args]) == 2
        text = capsys.readouterr().err
        assert "cannot import sw_nowhere" in text
        assert len(text.splitlines()) == 1
    assert not (tmp_path / "run").exists()


SESSION = """
import sys
from space_warps import LocalRunner
from space_warps import SearchConfig
from space_warps import create_train_val_dataloaders
from space_warps import register_block
from space_warps.search.search import search
from space_warps.search.config import FinalConfig, SpaceConfig
from space_warps.search.parallel import ParallelRunner
import sw_travels

csv_path, images, name = sys.argv[1:]


@register_block("here")
def here_block(in_channels, spec):
    return sw_travels.smooth_block(in_channels, spec)


loaders = create_train_val_dataloaders(csv_path, images, features=(), train_ratio=0.8)
runner = ParallelRunner(LocalRunner(*loaders, device="cpu"), 2)
config = SearchConfig(
    max_layers=1,
    k_candidates=(4,),
    epochs_per_eval=1,
    space=SpaceConfig(families=(name,), stem_kernel=3, stem_downsample=2),
    final=FinalConfig(enabled=False),
)
try:
    _, history = search(config, runner)
    print(history.accepted[0].candidate.blocks[0].family)
finally:
    runner.close()
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [("smooth", "smooth"), ("here", "move it into a module, such as my_module.py, and name it")],
)
def test_what_a_session_defines_is_refused_by_workers(
    tiny: Tiny, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / "sw_travels.py").write_text(MODULE)
    keys = dict(word.split("=", 1) for word in tiny.words())
    paths = keys["data.csv_path"], keys["data.img_dir_path"]
    done = run_python("-c", SESSION, *paths, name, folder=tmp_path)
    assert text in (done.stdout if name == "smooth" else done.stderr), done.stderr
