"""`space-warps search` from start to end, and the files it writes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Tiny
from omegaconf import OmegaConf
from PIL import Image

from space_warps.cli.config import read_config
from space_warps.cli.main import main
from space_warps.core import from_json, sha256_file
from space_warps.data.loaders import create_train_val_dataloaders
from space_warps.models.saved_model import load_model
from space_warps.runs.environment import describe_environment
from space_warps.runs.folder import RunFolder
from space_warps.runs.state import read_history
from space_warps.search.config import PLAIN_PRESET, FinalConfig, SearchConfig
from space_warps.search.events import CandidateEnded, Event
from space_warps.search.runner import LocalRunner
from space_warps.search.search import search
from space_warps.training.loop import evaluate

FILES = {
    ".lock",
    "config.yaml",
    "environment.json",
    "events.jsonl",
    "validation.csv",
    "model.safetensors",
    "model.json",
    "outliers.safetensors",
    "MODEL_CARD.md",
    "progressive_summary.json",
    "accuracy_vs_depth.png",
    "pareto.png",
    "latency.png",
    "report.html",
}
KEYS = [
    "final_val_accuracy",
    "final_val_log_loss",
    "num_layers",
    "total_trainable_params",
    "architecture",
    "steps",
    "final_training",
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
    "search.final.epochs=2",
    "data.train_ratio=0.7",
    "search.device=cpu",
]


def run_search(tiny: Tiny, run: Path, *args: str) -> dict:
    """Search, and read the summary."""
    assert main(["search", *tiny.words(), f"run.dir={run}", *QUICK, *args]) == 0
    return json.loads((run / "progressive_summary.json").read_text())


def weights_in(run: Path) -> list[str]:
    """Names of the candidates whose weights are kept."""
    paths = [path for path in run.glob("*/*.safetensors") if ".scores" not in path.name]
    return sorted(str(path.relative_to(run).with_suffix("")) for path in paths)


@pytest.mark.parametrize("args", [[], ["search.final.enabled=false"]])
def test_a_run_writes_its_files_and_keys(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    summary = run_search(tiny, tmp_path / "run", *args)
    assert capsys.readouterr().err == "", "bars are shown in terminals only"
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_file()} == FILES
    assert set(KEYS) <= set(summary)
    history = read_history(tmp_path / "run")
    selected = [step.selected for step in history.steps if step.selected is not None]
    kept = {result.candidate.name for result in (*selected, history.final_result)}
    kept |= {point["name"] for point in summary["pareto"]}
    assert weights_in(tmp_path / "run") == sorted(kept)
    assert any(name.startswith("final/") for name in kept) == (not args)
    assert (summary["final_training"] is None) == bool(args)
    assert [step["decision"] for step in summary["steps"]] == [
        step.decision.action for step in history.steps
    ]
    assert [len(step["candidates"]) for step in summary["steps"]] == [2] * len(history.steps)
    layer = summary["architecture"][0]
    own = {"layer", "family", "k", "in_channels", "out_channels"}
    assert set(layer) == own | {"val_accuracy", "num_params"}
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


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_the_final_training_repeats(tiny: Tiny, tmp_path: Path, num_seeds: int) -> None:
    seeds = f"search.final.seeds={num_seeds}"
    one, two = (run_search(tiny, tmp_path / name, seeds) for name in ("one", "two"))
    for key in ("model_sha256", "history_sha256", "final_training"):
        assert one[key] == two[key]
    final = one["final_training"]
    trainings = final["trainings"]
    assert final["selected"] in ("continued", "scratch")
    assert [item["role"] for item in trainings] == ["continued"] + ["scratch"] * num_seeds
    assert len({item["seed"] for item in trainings}) == num_seeds + 1
    assert {item["epochs"] for item in trainings} == {2}
    assert all(
        (item["inherited_epochs"] > 0) == (item["role"] == "continued") for item in trainings
    )
    kept = min(trainings, key=lambda item: item["val_log_loss"])
    assert final["selected"] == kept["role"]
    assert one["final_val_log_loss"] == kept["val_log_loss"]
    assert one["final_val_accuracy"] == kept["val_accuracy"]


def test_the_plain_preset_is_run_and_recorded(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = [*tiny.words(), f"run.dir={run}", "search.plain=true", "search.max_layers=2"]
    assert main(["search", *args, "search.k_candidates=[4]", "search.device=cpu"]) == 0
    recorded = OmegaConf.to_container(OmegaConf.load(run / "config.yaml").search)
    assert recorded["selection"]["metric"] == "accuracy"
    assert recorded.pop("plain") is True and recorded.pop("device") == "cpu"
    assert (recorded.pop("precision"), recorded.pop("workers")) == ("auto", 1)
    assert recorded.pop("capture") is False
    history = read_history(run)
    expected = replace(PLAIN_PRESET, max_layers=2, k_candidates=(4,))
    assert history.config == expected == from_json(recorded, SearchConfig)
    assert history.final_training is None
    assert json.loads((run / "progressive_summary.json").read_text())["final_training"] is None
    assert not any(step.decision.action == "hold" for step in history.steps)
    accuracies = [result.val_acc for result in history.accepted]
    assert accuracies == sorted(set(accuracies)), "each accepted step raises the accuracy"


def test_other_keys_apply_with_the_plain_preset() -> None:
    for args in (["search.plain=true", "search.lr=0.5"], ["search.lr=0.5", "search.plain=true"]):
        settings = read_config(args).search
        assert (settings.lr, settings.selection.metric) == (0.5, "accuracy")
    assert read_config(["search.plain=false"]).search.selection.metric == "loss"


@pytest.mark.parametrize("args", [[], ["search.final.enabled=false"], ["search.plain=true"]])
@pytest.mark.parametrize("features", ["[]", "[z]", "[z,z_err]"])
def test_the_loaded_model_has_the_reported_accuracy(
    tiny: Tiny, tmp_path: Path, features: str, args: list[str]
) -> None:
    summary = run_search(tiny, tmp_path / "run", f"data.features={features}", *args)
    saved_model = load_model(tmp_path / "run")
    _, val_loader = create_train_val_dataloaders(
        *tiny, train_ratio=0.7, features=saved_model.architecture.feature_names
    )
    assert list(saved_model.architecture.feature_names) == summary["features"]
    last = read_history(tmp_path / "run").final_result
    assert last is not None and saved_model.architecture.tta == last.tta
    assert not (last.tta and args)
    measured = evaluate(saved_model.build(), val_loader)
    assert measured.accuracy == summary["final_val_accuracy"]
    assert measured.loss == pytest.approx(summary["final_val_log_loss"], rel=1e-5)
    assert read_history(tmp_path / "run").sha256 == summary["history_sha256"]


def test_features_help_if_they_identify_the_class(tiny: Tiny, tmp_path: Path) -> None:
    """The z of the tiny catalogue identifies the class, so a network that reads it is accurate."""
    rng = np.random.default_rng(0)
    for row in range(60):  # images without information
        noise = rng.integers(0, 256, (12, 12), dtype=np.uint8)
        Image.fromarray(noise).save(tiny.image(row))
    args = ("search.epochs_per_eval=40", "search.max_layers=1", "search.lr=0.01")
    args = (*args, "search.final.epochs=40")
    assert run_search(tiny, tmp_path / "with", *args)["final_val_accuracy"] > 0.9
    without = run_search(tiny, tmp_path / "without", *args, "data.features=[]")
    assert without["final_val_accuracy"] < 0.8


@pytest.mark.parametrize(
    ("args", "event", "stop_reason", "kept"),
    [
        (["search.epochs_per_eval=100000"], b"epoch_ended", "interrupted at step 1", []),
        (
            ["search.max_layers=1", "search.k_candidates=[4]", "search.final.epochs=100000"],
            b"final_training_started",
            "max_layers=1 reached; interrupted during the final training",
            ["step_01/candidate_00"],
        ),
    ],
)
def test_a_search_stopped_by_a_signal_keeps_its_network(
    tiny: Tiny, tmp_path: Path, args: list[str], event: bytes, stop_reason: str, kept: list[str]
) -> None:
    run = tmp_path / "run"
    args = [*tiny.words(), f"run.dir={run}", *QUICK, *args]
    searching = subprocess.Popen(
        [sys.executable, "-m", "space_warps.cli.main", "search", *args],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not (run / "events.jsonl").exists() or event not in (run / "events.jsonl").read_bytes():
        assert searching.poll() is None, searching.communicate()
        time.sleep(0.1)
    searching.send_signal(signal.SIGTERM)
    searching.communicate(timeout=60)
    assert searching.returncode == 128 + signal.SIGTERM
    history = read_history(run)
    assert history.stop_reason == stop_reason and history.final_training is None
    not_written = {"latency.png", "outliers.safetensors"} | (set() if kept else {"MODEL_CARD.md"})
    assert {path.name for path in run.iterdir() if path.is_file()} == FILES - not_written
    summary = json.loads((run / "progressive_summary.json").read_text())
    front = {point["name"] for point in summary["pareto"]}
    assert set(weights_in(run)) == {*kept, *front}, "weights without a decision"
    assert load_model(run).build().num_layers == len(history.accepted) == len(kept)


def test_a_stop_between_final_trainings_keeps_the_network_of_the_search(
    tiny: Tiny, tmp_path: Path
) -> None:
    run, ended = tmp_path / "run", []

    def listen(event: Event) -> None:
        if isinstance(event, CandidateEnded) and event.result.candidate.role == "continued":
            assert "final/continued_00" in weights_in(run)
            ended.append(event)

    runner = LocalRunner(*create_train_val_dataloaders(*tiny, train_ratio=0.7), device="cpu")
    config = SearchConfig(
        max_layers=1, k_candidates=(4,), epochs_per_eval=1, final=FinalConfig(epochs=1)
    )
    folder = RunFolder(run, describe_environment(tiny.csv_path, "cpu"))
    _, history = search(config, runner, observers=[folder, listen], should_stop=lambda: bool(ended))
    assert ended and history.final_training is None and history.final_result is history.accepted[-1]
    assert weights_in(run) == ["final/continued_00", "step_01/candidate_00"], "both may be needed"
    measured = evaluate(load_model(run).build(), runner.val_loader)
    assert measured.accuracy == history.final_result.val_acc


def test_audit_and_report_and_help(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *tiny.words(), f"out={tmp_path / 'audit'}"]) == 0
    output = capsys.readouterr().out
    assert "GALAXY 20, QSO 20, STAR 20" in output
    assert f"report: {tmp_path / 'audit/audit.html'}" in output
    assert "<h2>Classes</h2>" in (tmp_path / "audit/audit.html").read_text()
    summary = run_search(tiny, tmp_path / "run")
    (tmp_path / "run/accuracy_vs_depth.png").unlink()
    (tmp_path / "run/progressive_summary.json").unlink()
    assert main(["report", f"run.dir={tmp_path / 'run'}"]) == 0
    assert (tmp_path / "run/accuracy_vs_depth.png").exists()
    assert json.loads((tmp_path / "run/progressive_summary.json").read_text()) == summary
    capsys.readouterr()
    assert main([]) == 0
    output = capsys.readouterr().out
    for key in ("data.csv_path", "data.img_dir_path", "data.image_size", "search.max_layers"):
        assert key in output
    assert "search.selection: Which candidate" in output, "groups are described"


def test_the_module_and_the_command_are_the_same() -> None:
    """`space-warps` is installed on the path."""
    command = Path(sys.executable).with_name("space-warps")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("space_warps ")
