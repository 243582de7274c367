"""Format of the files of a run: names, keys and versions."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import pytest
from conftest import grow, write_tiny

from space_warps.cli.main import main
from space_warps.core import from_json, to_json
from space_warps.data.dataset import InputStatistics
from space_warps.models.blocks import BlockSpec
from space_warps.models.model import Architecture
from space_warps.runs.journal import event_line, read_events
from space_warps.search.config import SearchConfig
from space_warps.search.events import EVENT_NAMES, Event
from space_warps.search.history import SearchHistory
from space_warps.search.records import (
    Backtrack,
    Candidate,
    CandidateResult,
    Decision,
    FinalTraining,
    Step,
)
from space_warps.search.significance import PairedTest
from space_warps.training.config import EpochMetrics, TrainConfig

BLOCK = BlockSpec(8)
PLAN = TrainConfig(new_layer_lr_factor=2.0)
CANDIDATE = Candidate(1, 0, (BLOCK,), PLAN, True, 0.05, init="copy")
EPOCH = EpochMetrics(1, 0.9, 0.8, 0.5)
RESULT = CandidateResult(CANDIDATE, 0.5, 0.8, 1, 10, (EPOCH,), "ab")
TEST = PairedTest(4, 1, 0, 0.25, 0.0, 0.5, 0.5, 0.5, "not better", 0.1, 0.0, 0.2, 0.5)
STEP = Step(1, (RESULT,), RESULT, Decision("accept", 0, "good"), (TEST,))
FINAL = FinalTraining((RESULT,), 0, "kept")
NETWORK = Architecture((1, 12, 12), ("A", "B"), (), InputStatistics((0.2,), (0.1,), ()), (BLOCK,))
HISTORY = SearchHistory(SearchConfig(), NETWORK, 9, 4, (STEP,), "done", FINAL)

KEYS: list[tuple[Any, str]] = [
    (BLOCK, "k family kernel_size dropout downsample pooling activation use_se"),
    (
        PLAN,
        "epochs lr weight_decay label_smoothing schedule first_epoch seed selection_metric "
        "augmentation new_layer_lr_factor",
    ),
    (
        CANDIDATE,
        "step index blocks train_config copy_weights init_noise inherited_epochs role branch "
        "warm_start_from parent mutation rung predicted init",
    ),
    (EPOCH, "epoch train_loss val_loss val_acc"),
    (
        RESULT,
        "candidate val_acc val_loss best_epoch num_params epochs weights_sha256 failed "
        "temperature num_macs tta",
    ),
    (
        TEST,
        "num_rows num_gained num_lost gain gain_low gain_high p_value min_detectable verdict "
        "loss_gain loss_low loss_high loss_p",
    ),
    (Decision("accept", 0, "good"), "action index reason author note beam stop_growing"),
    (STEP, "step results control decision tests earlier_results"),
    (Backtrack(1), "to_step branch node candidate overrides note author stop_growing"),
    (FINAL, "results index reason"),
    (InputStatistics((0.2,), (0.1,), ()), "image_mean image_std feature_edges"),
    (
        NETWORK,
        "image_shape classes feature_names input_statistics blocks projector_width missing_flags "
        "pool_sigmas asinh_softening tta symmetries",
    ),
    (
        HISTORY,
        "config base_architecture num_train num_val steps stop_reason final_training branch "
        "branches",
    ),
]
LINES = {
    "search_started": "at_s base_architecture base_sha256 config environment num_train num_val "
    "val_sha256",
    "step_started": "at_s candidates num_trainings step",
    "candidate_started": "at_s candidate",
    "epoch_ended": "at_s candidate checkpoint checkpoint_sha256 metrics",
    "candidate_ended": "at_s result scores_sha256 sha256",
    "step_ended": "at_s step",
    "backtracked": "at_s backtrack config",
    "final_training_started": "at_s num_trainings",
    "final_training_ended": "at_s final_training",
    "search_ended": "at_s history_sha256 interrupted latency_ms model_sha256 seconds stop_reason",
    "resumed": "at_s environment",
}
QUICK = [
    "search.max_layers=1",
    "search.k_candidates=[4]",
    "search.epochs_per_eval=2",
    "search.final.epochs=2",
    "data.features=[]",
    "run.checkpoint_s=0",
]


@pytest.mark.parametrize(("record", "keys"), KEYS, ids=[type(r).__name__ for r, _ in KEYS])
def test_keys_of_a_record(record: Any, keys: str) -> None:
    """They are the format of a run: a change makes earlier runs unreadable."""
    written = to_json(record)
    assert list(written) == keys.split()
    assert from_json(json.loads(json.dumps(written)), type(record)) == record


def test_keys_of_the_settings() -> None:
    """Settings are written under the keys of the configuration."""
    names = [field.name for field in dataclasses.fields(SearchConfig)]
    assert list(to_json(SearchConfig())) == names


def test_every_event_has_a_name() -> None:
    assert set(EVENT_NAMES) == set(typing.get_args(Event))
    assert {*EVENT_NAMES.values(), "resumed"} == set(LINES)
    assert len(set(EVENT_NAMES.values())) == len(EVENT_NAMES)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("wire")
    folder = base / "run"
    grow(write_tiny(base / "sky"), folder, *QUICK)
    assert main(["branch", f"run.dir={folder}", "step=1", "branch=b"]) == 0
    assert main(["search", f"run.dir={folder}", "run.resume=true"]) == 0
    return folder


def test_lines_of_a_run(run: Path) -> None:
    first = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(first[9:]) == {"format": "space_warps events", "version": 1}
    seen: dict[str, set[str]] = {}
    for event in read_events(run):
        seen.setdefault(event.pop("event"), set()).update(event)
    assert {name: " ".join(sorted(keys)) for name, keys in seen.items()} == LINES


def headed(run: Path, folder: Path, header: dict[str, Any] | None) -> Path:
    """Copy of a run with another header of its events, or none."""
    folder.mkdir()
    for path in run.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    contents: list[dict[str, Any]] = [*([header] if header else []), *read_events(run)]
    lines, previous = [], 0
    for content in contents:
        lines.append(event_line(content, previous))
        previous = int(lines[-1][:8], 16)
    (folder / "events.jsonl").write_bytes(b"".join(lines))
    return folder


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format": "space_warps events", "version": 2}, "has version 2 of the format"),
        ({"format": "other events", "version": 1}, "'other events'"),
        (None, "before the format had a version"),
    ],
)
@pytest.mark.parametrize("command", ["search", "tree", "report", "evaluate", "undo"])
def test_events_of_another_version(
    run: Path,
    tmp_path: Path,
    command: str,
    header: dict[str, Any] | None,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = headed(run, tmp_path / "run", header)
    before = (folder / "events.jsonl").read_bytes()
    args = {"search": ["run.resume=true"], "undo": ["step=0"]}.get(command, [])
    capsys.readouterr()
    assert main([command, f"run.dir={folder}", *args]) == 2
    text = capsys.readouterr().err.strip()
    assert message in text and "\n" not in text and "events.jsonl" in text and ";" in text
    assert (folder / "events.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [({"version": 2}, "has version 2 of the format"), ({"format": None}, "before the format had")],
)
def test_a_model_of_another_version(
    run: Path,
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = headed(run, tmp_path / "run", {"format": "space_warps events", "version": 1})
    about = json.loads((folder / "model.json").read_text())
    assert (about["format"], about["version"]) == ("space_warps model", 1)
    about = {key: value for key, value in (about | change).items() if value is not None}
    (folder / "model.json").write_text(json.dumps(about))
    capsys.readouterr()
    assert main(["evaluate", f"run.dir={folder}"]) == 2
    text = capsys.readouterr().err.strip()
    assert message in text and "\n" not in text and "model.json" in text and ";" in text
