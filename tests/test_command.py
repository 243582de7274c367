"""`space-warps search` from start to end, and what it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Tiny

from space_warps.cli import main
from space_warps.core import sha256_file
from space_warps.loaders import create_train_val_dataloaders
from space_warps.runs import read_history
from space_warps.snapshot import load_snapshot
from space_warps.train import evaluate

FILES = {
    "config.yaml",
    "environment.json",
    "events.jsonl",
    "model.safetensors",
    "model.json",
    "progressive_summary.json",
    "accuracy_vs_depth.png",
}
KEYS = [
    "final_val_accuracy",
    "num_layers",
    "total_trainable_params",
    "architecture",
    "classes",
    "features",
    "seed",
    "num_train",
    "num_val",
    "model_sha256",
    "history_sha256",
    "seconds",
]
QUICK = [
    "search.max_layers=2",
    "search.k_candidates=[4,8]",
    "search.epochs_per_eval=2",
    "data.train_ratio=0.7",
    "search.device=cpu",
]


def run_search(tiny: Tiny, run: Path, *words: str) -> dict:
    """Search, and give the summary."""
    assert main(["search", *tiny.words(), f"run.dir={run}", *QUICK, *words]) == 0
    return json.loads((run / "progressive_summary.json").read_text())


def test_a_run_leaves_its_files_and_keys(tiny: Tiny, tmp_path: Path) -> None:
    summary = run_search(tiny, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_file()} == FILES
    assert set(KEYS) <= set(summary)
    layer = summary["architecture"][0]
    assert set(layer) == {"layer", "kind", "k", "in_channels", "out_channels", "val_accuracy"}
    assert summary["model_sha256"] == sha256_file(tmp_path / "run/model.safetensors")
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert {"threads", "device", "precision", "catalogue_sha256"} <= set(environment)


def test_the_same_command_gives_the_same_bits(tiny: Tiny, tmp_path: Path) -> None:
    one, two = (run_search(tiny, tmp_path / name) for name in ("one", "two"))
    for key in ("model_sha256", "history_sha256"):
        assert one[key] == two[key]
    assert (
        run_search(tiny, tmp_path / "three", "search.seed=43")["model_sha256"]
        != one["model_sha256"]
    )


@pytest.mark.parametrize("features", ["[]", "[z]", "[z,z_err]"])
def test_the_loaded_model_has_the_reported_accuracy(
    tiny: Tiny, tmp_path: Path, features: str
) -> None:
    summary = run_search(tiny, tmp_path / "run", f"data.features={features}")
    snapshot = load_snapshot(tmp_path / "run")
    _, val_loader = create_train_val_dataloaders(
        *tiny, train_ratio=0.7, features=snapshot.architecture.feature_names
    )
    assert list(snapshot.architecture.feature_names) == summary["features"]
    assert evaluate(snapshot.model(), val_loader).accuracy == summary["final_val_accuracy"]
    assert read_history(tmp_path / "run").sha256 == summary["history_sha256"]


def test_features_help_where_they_tell_the_class(tiny: Tiny, tmp_path: Path) -> None:
    """The tiny catalogue's z gives the class away, so a network that reads it knows."""
    words = ("search.epochs_per_eval=40", "search.max_layers=1", "search.lr=0.01")
    assert run_search(tiny, tmp_path / "run", *words)["final_val_accuracy"] > 0.9


def test_a_search_stopped_by_a_signal_keeps_what_it_has(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*tiny.words(), f"run.dir={run}", *QUICK, "search.epochs_per_eval=100000"]
    searching = subprocess.Popen(
        [sys.executable, "-m", "space_warps.cli", "search", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while (
        not (run / "events.jsonl").exists()
        or b"EpochEnded" not in (run / "events.jsonl").read_bytes()
    ):
        assert searching.poll() is None, searching.communicate()
        time.sleep(0.1)
    searching.send_signal(signal.SIGTERM)
    searching.communicate(timeout=60)
    assert searching.returncode == 128 + signal.SIGTERM
    assert read_history(run).stopped == "asked to stop at depth 1"
    assert {path.name for path in run.iterdir() if path.is_file()} == FILES
    assert not list(run.rglob("step_*/*")), "weights that nobody decided on"


def test_audit_and_report_and_help(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *tiny.words()]) == 0
    assert "GALAXY 20, QSO 20, STAR 20" in capsys.readouterr().out
    run_search(tiny, tmp_path / "run")
    (tmp_path / "run/accuracy_vs_depth.png").unlink()
    assert main(["report", f"run.dir={tmp_path / 'run'}"]) == 0
    assert (tmp_path / "run/accuracy_vs_depth.png").exists()
    capsys.readouterr()
    assert main([]) == 0
    said = capsys.readouterr().out
    for key in ("data.csv_path", "data.img_dir_path", "data.image_size", "search.max_layers"):
        assert key in said


def test_the_module_and_the_command_are_the_same() -> None:
    """`space-warps` is on the path of the environment."""
    command = Path(sys.executable).with_name("space-warps")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("space_warps ")
