"""Class weights, losses and metrics of one's own: through a search, its workers and its report."""

import json
import math
from pathlib import Path

import pytest
from conftest import Tiny, grow
from torch.nn.functional import cross_entropy

from space_warps.cli.main import main
from space_warps.core import InputError
from space_warps.data.loaders import create_train_val_dataloaders
from space_warps.data.tables import TableOptions
from space_warps.models.saved_model import load_model
from space_warps.search.config import SearchConfig, TrainingConfig
from space_warps.search.runner import LocalRunner
from space_warps.search.search import search
from space_warps.search.settings import with_overrides
from space_warps.training.loop import evaluate

MODULE = """
import torch
from torch.nn import functional


def focal(logits, targets, weight):
    losses = functional.cross_entropy(logits, targets, weight, reduction="none")
    return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


def gmean(logits, targets):
    right = (logits.argmax(dim=1) == targets).double()
    recalls = torch.stack([right[targets == label].mean() for label in targets.unique()])
    return recalls.prod() ** (1 / len(recalls))


def error_rate(logits, targets):
    return float((logits.argmax(dim=1) != targets).double().mean())


error_rate.greater_is_better = False


def rows(logits, targets, weight):
    return functional.cross_entropy(logits, targets, weight, reduction="none")


def detached(logits, targets, weight):
    return functional.cross_entropy(logits.detach(), targets)


def undefined(logits, targets, weight=None):
    return logits.sum() * float("nan")


seven = 7
"""
QUICK = [
    "search.max_layers=2",
    "search.k_candidates=[4,8]",
    "search.epochs_per_eval=2",
    "search.final.epochs=2",
    "search.device=cpu",
    "data.train_ratio=0.7",
    "data.features=[]",
]
LOSS, METRIC = "search.training.loss=sw_objectives", "search.selection.metric=sw_objectives"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of losses and metrics that workers can import as well."""
    (tmp_path / "sw_objectives.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_an_own_loss_and_metric_give_the_same_in_workers_and_after_a_resume(
    tiny: Tiny, tmp_path: Path, module: None, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*QUICK, f"{LOSS}:focal", f"{METRIC}:gmean", "search.training.schedule=constant"]
    plain = grow(tiny, tmp_path / "plain", *QUICK)
    alone = grow(tiny, tmp_path / "alone", *words)
    parallel = grow(tiny, tmp_path / "parallel", *words, "search.workers=2")
    assert alone["model_sha256"] == parallel["model_sha256"] != plain["model_sha256"]
    assert plain["objective"]["loss"] == "cross_entropy"
    assert alone["objective"]["loss"] == "sw_objectives:focal"
    assert alone["objective"]["metric"] == "sw_objectives:gmean"
    assert 0 <= alone["objective"]["value"] <= 1
    assert "gmean" in alone["steps"][0]["reason"]
    assert "gmean" in (tmp_path / "alone" / "report.html").read_text()
    assert "trained with the loss sw_objectives:focal" in capsys.readouterr().out
    run = tmp_path / "parallel"
    events = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(events[: len(events) // 2]))
    assert main(["search", f"run.dir={run}", "run.resume=true"]) == 0
    resumed = json.loads((run / "progressive_summary.json").read_text())
    assert resumed["model_sha256"] == alone["model_sha256"]


def test_the_epoch_of_a_constant_schedule_is_the_best_by_the_metric(
    tiny: Tiny, tmp_path: Path, module: None
) -> None:
    words = [*QUICK, "search.epochs_per_eval=5", "search.training.schedule=constant"]
    grow(tiny, tmp_path / "run", *words, f"{METRIC}:error_rate", "search.final.enabled=false")
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    ended = [json.loads(line[9:]) for line in lines[1:] if '"candidate_ended"' in line]
    results = [event["result"] for event in ended]
    assert len(results) > 3
    for result in results:
        values = [epoch["val_metric"] for epoch in result["epochs"]]
        assert result["metric_value"] == min(values) == values[result["best_epoch"] - 1]
        assert result["metric_value"] == pytest.approx(1 - result["val_acc"])
        assert result["greater_is_better"] is False


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (f"{LOSS}:rows", "'sw_objectives:rows' returns the mean over the rows"),
        (f"{LOSS}:detached", "'sw_objectives:detached' has no gradient"),
        (f"{LOSS}:undefined", "a finite tensor without dimensions; got tensor(nan"),
        (f"{LOSS}:gmean", "called with (logits, targets, weight) and raised TypeError"),
        (f"{LOSS}:seven", "a loss must be a function or class"),
        (f"{LOSS}:none", "has no 'none'"),
        ("search.training.loss=sw_nowhere:focal", "cannot import sw_nowhere for the loss"),
        ("search.training.loss=__main__:focal", "move it into a module"),
        ("search.training.loss=hinge", "'cross_entropy', or your own as package.module:name"),
        (f"{METRIC}:focal", "called with (logits, targets) and raised TypeError"),
        (f"{METRIC}:undefined", "returns one finite number; got tensor(nan)"),
        ("search.selection.metric=__main__:gmean", "move it into a module"),
        ("search.training.class_weights=auto", "'none' or 'balanced'; got 'auto'"),
    ],
)
def test_a_violated_contract_is_one_sentence(
    tiny: Tiny,
    tmp_path: Path,
    module: None,
    capsys: pytest.CaptureFixture[str],
    word: str,
    text: str,
) -> None:
    args = [*tiny.words(), *QUICK, word, f"run.dir={tmp_path / 'run'}"]
    assert main(["search", *args]) == 2
    message = capsys.readouterr().err
    assert text in message
    assert len(message.splitlines()) == 1, message


def test_balanced_weights_are_measured_on_the_training_rows(tiny: Tiny, tmp_path: Path) -> None:
    lines = tiny.lines()
    rare = [line for index, line in enumerate(lines) if index % 3 == 2 and index > 9]
    tiny.write([line for line in lines if line not in rare[:10]])
    words = [*QUICK, "search.training.class_weights=balanced", "search.selection.metric=macro_f1"]
    summary = grow(tiny, tmp_path / "run", *words)
    weights = summary["objective"]["class_weights"]
    names = list(weights)
    network = load_model(tmp_path / "run").architecture
    assert network.classes == tuple(names)
    assert network.class_weights == tuple(weights.values())
    num_rows = [summary["num_train"] / (len(names) * weight) for weight in weights.values()]
    assert sum(num_rows) == pytest.approx(summary["num_train"])
    assert all(math.isclose(rows, round(rows)) for rows in num_rows)
    assert max(weights.values()) > 1.5 * min(weights.values())
    assert "class weights in the loss" in (tmp_path / "run" / "report.html").read_text()


def test_a_class_without_training_rows_has_no_weight(tiny: Tiny) -> None:
    classes = ("GALAXY", "QSO", "STAR", "ALIEN")
    loaders = create_train_val_dataloaders(*tiny, features=(), classes=classes, train_ratio=0.7)
    config = SearchConfig(
        1, k_candidates=(4,), epochs_per_eval=1, training=TrainingConfig(class_weights="balanced")
    )
    with pytest.raises(InputError, match="the class 'ALIEN' has no training rows"):
        search(config, LocalRunner(*loaders, device="cpu"))
    both = {"classes": classes[:3], "class_sampling": "balanced"}
    loaders = create_train_val_dataloaders(*tiny, features=(), **both)
    with pytest.raises(InputError, match="would count rare classes twice"):
        search(config, LocalRunner(*loaders, device="cpu"))


def test_soft_labels_are_compared_as_fractions(tiny: Tiny, module: None) -> None:
    header, *rows = tiny.lines()
    fractions = ("0.7,0.2,0.1", "0.3,0.6,0.1", "0.2,0.2,0.6")
    tiny.write([f"{header},p,q,r", *(f"{row},{fractions[n % 3]}" for n, row in enumerate(rows))])
    votes = TableOptions(class_columns=["p", "q", "r"], soft_labels=True)
    loaders = create_train_val_dataloaders(*tiny, features=(), table=votes, train_ratio=0.7)
    config = SearchConfig(
        1, k_candidates=(4, 8), epochs_per_eval=2, training=TrainingConfig(label_smoothing=0.0)
    )
    config = with_overrides(
        config, {"final.epochs": 20, "selection.parsimony": "one_standard_error"}
    )
    model, history = search(config, LocalRunner(*loaders, device="cpu"))
    step = history.steps[0]
    for result, test in zip(step.results, step.tests, strict=True):
        assert test is not None
        assert test.loss_gain == pytest.approx(step.control.val_loss - result.val_loss, abs=1e-5)
    measured = evaluate(model, loaders[1])
    targets = loaders[1].dataset.targets
    assert measured.loss == pytest.approx(float(cross_entropy(measured.logits, targets)))
    assert measured.labels.tolist() == targets.argmax(1).tolist()
    assert measured.logits.softmax(1).amax() < 0.9  # no row has a fraction above 0.7
    own = with_overrides(config, {"training.loss": "sw_objectives:focal", "final.enabled": False})
    assert search(own, LocalRunner(*loaders, device="cpu"))[1].steps[0].results[0].failed is None
