"""What makes training fast does not change its results, and a run records how it was computed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny, grow
from torch import nn

from space_warps.cli.main import main
from space_warps.data.loaders import create_train_val_dataloaders
from space_warps.runs.state import read_history
from space_warps.search.config import SearchConfig
from space_warps.search.runner import LocalRunner
from space_warps.training.config import TrainConfig
from space_warps.training.loop import train

QUICK = [
    "search.k_candidates=[4,6]",
    "search.max_layers=2",
    "search.epochs_per_eval=1",
    "search.final.epochs=2",
    "search.device=cpu",
]


def environment(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "environment.json").read_text())
    return result


def test_workers_give_the_same_network(tiny: Tiny, tmp_path: Path, one_thread: None) -> None:
    local = grow(tiny, tmp_path / "local", *QUICK)
    parallel = grow(tiny, tmp_path / "parallel", *QUICK, "search.workers=2")
    assert parallel["model_sha256"] == local["model_sha256"]
    assert read_history(tmp_path / "parallel").steps == read_history(tmp_path / "local").steps
    assert environment(tmp_path / "parallel")["threads"] == 1


def command(*args: str) -> subprocess.Popen[str]:
    """Start the command in its own process group, with two threads for the workers."""
    return subprocess.Popen(
        [sys.executable, "-m", "space_warps.cli.main", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("event", "number"), [("step_started", signal.SIGTERM), ("epoch_ended", signal.SIGINT)]
)
def test_workers_are_interrupted_and_resume(
    tiny: Tiny, tmp_path: Path, one_thread: None, event: str, number: signal.Signals
) -> None:
    whole, run = grow(tiny, tmp_path / "whole", *QUICK), tmp_path / "run"
    args = ["search", *tiny.words(), f"run.dir={run}", *QUICK, "search.workers=2"]
    searching, events = command(*args), run / "events.jsonl"
    while searching.poll() is None and not (
        events.exists() and f'"{event}"' in events.read_text(encoding="utf-8")
    ):
        time.sleep(0.01)
    os.killpg(searching.pid, number)
    _, message = searching.communicate(timeout=120)
    assert searching.returncode == 128 + number, message
    assert "killed by signal" not in events.read_text(encoding="utf-8")
    resumed = command("search", f"run.dir={run}", "run.resume=true")
    _, message = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, message
    summary = json.loads((run / "progressive_summary.json").read_text())
    assert summary["model_sha256"] == whole["model_sha256"]


def test_a_run_records_threads_and_precision(tiny: Tiny, tmp_path: Path, one_thread: None) -> None:
    grow(tiny, tmp_path / "run", *QUICK, "search.precision=bfloat16", "search.final.enabled=false")
    message = environment(tmp_path / "run")
    assert (message["threads"], message["precision"], message["capture"]) == (1, "bfloat16", False)


def test_a_run_is_not_resumed_with_another_precision(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    grow(tiny, run, *QUICK, "search.precision=float32")
    assert main(["search", f"run.dir={run}", "run.resume=true", "search.precision=bfloat16"]) == 2
    assert "precision was float32 and is bfloat16" in capsys.readouterr().err


def test_maximum_before_normalization_trains_the_same_network(tiny: Tiny) -> None:
    loaders = create_train_val_dataloaders(tiny.csv_path, tiny.img_dir_path)
    runner = LocalRunner(*loaders, device="cpu", precision="float32")
    (spec,) = SearchConfig(k_candidates=(8,)).specs_at(1)
    architecture = runner.base_model.architecture.with_block(spec)

    def trained(in_written_order: bool) -> Any:
        torch.manual_seed(0)
        model = type(runner.base_model.build())(architecture)
        if in_written_order:
            model.blocks = nn.ModuleList(nn.Sequential(*block) for block in model.blocks)
        return train(model, *loaders, TrainConfig(epochs=3))

    fused, plain = trained(False), trained(True)
    torch.testing.assert_close(fused.logits, plain.logits, rtol=1e-2, atol=5e-3)
    for (name, weights), other in zip(
        fused.state_dict.items(), plain.state_dict.values(), strict=True
    ):
        if not name.endswith(("conv.bias", "running_mean")):  # normalization cancels them
            torch.testing.assert_close(weights, other, rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("search.workers=0", "at least 1; got 0"),
        ("search.precision=half", "precision is one of auto, float32, bfloat16; got 'half'"),
        ("search.capture=true", "capture needs a GPU"),
        ("search.space.stem_kernel=4", "kernel_size is odd"),
    ],
)
def test_wrong_settings(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], argument: str, message: str
) -> None:
    args = ["search", *tiny.words(), f"run.dir={tmp_path / 'run'}", "search.device=cpu", argument]
    assert main(args) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


DEADLY = """
import os, signal
from torch import nn
from dataclasses import replace
from space_warps.models.blocks import build_block


class Deadly(nn.Module):
    def forward(self, maps):
        if self.training and len(maps) > 4 and maps.device.type == "cpu":
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
        return maps


def block(in_channels, spec):
    return nn.Sequential(build_block(replace(spec, family="conv"), in_channels), Deadly())
"""


@pytest.mark.skipif(os.name == "nt", reason="processes are killed by a signal")
def test_a_candidate_that_kills_the_process_twice_has_failed(tiny: Tiny, tmp_path: Path) -> None:
    """The search goes on without it, with the reason."""
    (tmp_path / "deadly.py").write_text(DEADLY)
    run = tmp_path / "run"
    args = [*tiny.words(), f"run.dir={run}", *QUICK, "search.k_candidates=[4]"]
    args += ["search.space.families=[conv,'deadly:block']", "search.max_layers=1"]
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    env = {**os.environ, "PYTHONPATH": path, "SPACE_WARPS_IMPORTS": "deadly"}
    codes = []
    for _ in range(3):
        search = [sys.executable, "-m", "space_warps.cli.main", "search"]
        done = subprocess.run([*search, *args], env=env, capture_output=True, text=True)
        codes.append(done.returncode)
        args = [f"run.dir={run}", "run.resume=true", "run.accept_changes=true"]
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0], done.stderr
    (step,) = read_history(run).steps
    assert [result.failed is None for result in step.results] == [True, False]
    assert "its training ended the process 2 times" in (step.results[1].failed or "")
