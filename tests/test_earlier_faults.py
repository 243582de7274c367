"""What earlier software for this job got wrong, each as a test that fails on it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Catalogue, Tiny

from space_warps.data.augment import STRONG_AUGMENT, Augment
from space_warps.data.loaders import create_train_val_dataloaders
from space_warps.models.blocks import BlockSpec
from space_warps.models.model import ProgressiveModel
from space_warps.models.saved_model import SavedModel, clone_state_dict
from space_warps.runs.one_call import progressive_architecture_search
from space_warps.search.candidate_training import TrainedCandidate, init_model
from space_warps.search.config import (
    PLAIN_PRESET,
    FinalConfig,
    SearchConfig,
    SelectionConfig,
    TrainingConfig,
)
from space_warps.search.events import CandidateEnded, Event, SearchEnded
from space_warps.search.history import SearchHistory
from space_warps.search.runner import LocalRunner
from space_warps.search.search import search
from space_warps.search.settings import with_overrides
from space_warps.search.step import propose_candidates
from space_warps.training.config import TrainConfig
from space_warps.training.loop import evaluate, train

SETTINGS: dict[str, Any] = {
    "max_layers": 3,
    "k_candidates": (4, 8),
    "epochs_per_eval": 2,
    "lr": 0.02,
}
QUICK = SearchConfig(**SETTINGS, final=FinalConfig(epochs=2))
GREEDY = replace(PLAIN_PRESET, **SETTINGS)
UNFINISHED = with_overrides(QUICK, {"final.enabled": False})


@pytest.fixture
def runner(tiny: Tiny) -> LocalRunner:
    loaders = create_train_val_dataloaders(
        *tiny, Augment(noise=0.3), train_ratio=0.7, batch_size=16
    )
    return LocalRunner(*loaders, device="cpu")


class WithScores:
    """Trains as another runner does, but replaces the metrics of candidates at some steps."""

    def __init__(self, runner: LocalRunner, scores: dict[int, tuple[float, float]]) -> None:
        self.runner, self.scores = runner, scores
        self.base_model, self.val_rows, self.device = (
            runner.base_model,
            runner.val_rows,
            runner.device,
        )
        self.num_train, self.num_val = runner.num_train, runner.num_val

    def train(self, *args: Any) -> Iterator[TrainedCandidate]:
        for trained in self.runner.train(*args):
            result = trained.result
            assert result is not None
            score = self.scores.get(result.candidate.step)
            if score is not None and result.candidate.role == "candidate":
                result = replace(result, val_acc=score[0], val_loss=score[1])
            yield replace(trained, result=result)


GOOD, FAIR, BAD = (1.0, 1e-6), (0.5, 1.0), (0.0, 9.0)  # accuracy, log-loss


@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
def test_best_weights_are_copies(runner: LocalRunner, schedule: str) -> None:
    """Later epochs do not change the weights of the best one."""
    model = runner.base_model.build()
    model.grow(BlockSpec(k=4))
    plan = TrainConfig(epochs=4, lr=0.5, schedule=schedule)
    result = train(model, runner.train_loader, runner.val_loader, plan)
    live = model.state_dict()
    assert all(result.state_dict[n].data_ptr() != live[n].data_ptr() for n in live)
    for tensor in live.values():
        tensor.zero_()
    assert any(tensor.any() for tensor in result.state_dict.values())
    model.load_state_dict(result.state_dict)
    assert evaluate(model, runner.val_loader).accuracy == result.best.val_acc


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_the_best_epoch_is_selected_by_the_metric_of_the_search(
    runner: LocalRunner, metric: str
) -> None:
    """At a constant learning rate the epoch of the lowest loss may differ from that of the highest accuracy."""
    config = SearchConfig(
        max_layers=2,
        k_candidates=(4, 8, 12),
        epochs_per_eval=6,
        lr=0.03,
        training=TrainingConfig(schedule="constant"),
        selection=SelectionConfig(metric=metric),
        final=FinalConfig(enabled=False),
    )
    _, history = search(config, runner)
    differs = []
    for result in (item for step in history.steps for item in step.trained):
        losses = [record.val_loss for record in result.epochs]
        accuracies = [record.val_acc for record in result.epochs]
        best = {
            "loss": 1 + losses.index(min(losses)),
            "accuracy": 1 + accuracies.index(max(accuracies)),
        }
        assert result.best_epoch == best[metric]
        differs.append(best["loss"] != best["accuracy"])
    assert any(differs)


@pytest.mark.parametrize(
    ("config", "scores", "actions", "num_layers"),
    [
        (GREEDY, {2: BAD}, ["accept", "reject"], 1),
        (GREEDY, {2: GOOD, 3: BAD}, ["accept", "accept", "reject"], 2),
        (QUICK, {2: BAD, 3: BAD}, ["accept", "hold", "reject"], 1),
        (QUICK, {2: GOOD, 3: BAD}, ["accept", "accept", "hold"], 2),
        (QUICK, {2: BAD, 3: GOOD}, ["accept", "hold", "accept"], 3),
        (UNFINISHED, {2: BAD, 3: BAD}, ["accept", "hold", "reject"], 1),
    ],
)
def test_blocks_without_improvement_are_not_in_the_model(
    runner: LocalRunner,
    config: SearchConfig,
    scores: dict[int, tuple[float, float]],
    actions: list[str],
    num_layers: int,
) -> None:
    """Neither a rejected one, nor a held one if no later step improves."""
    model, history = search(config, WithScores(runner, {1: FAIR, **scores}))
    assert [step.decision.action for step in history.steps] == actions
    assert [step.selected is None for step in history.steps] == [
        action == "reject" for action in actions
    ]
    assert model.num_layers == len(history.accepted) == num_layers
    assert model.architecture.blocks == history.accepted[-1].candidate.blocks
    assert model.head.in_features == 3 * model.architecture.blocks[-1].k + 32


def test_each_accepted_block_of_the_plain_rule_raises_the_accuracy(runner: LocalRunner) -> None:
    half = {1: (0.5, 9.0), 2: (0.75, 9.0), 3: (0.75, 1e-6)}  # at step 3 only the loss is better
    _, history = search(GREEDY, WithScores(runner, half))
    assert [result.val_acc for result in history.accepted] == [0.5, 0.75]
    assert [step.decision.action for step in history.steps] == ["accept", "accept", "reject"]
    _, history = search(UNFINISHED, WithScores(runner, half))
    assert history.steps[2].decision.action == "accept", "the loss has improved"


@pytest.mark.parametrize("config", [QUICK, UNFINISHED, GREEDY])
def test_accepted_blocks_do_not_drift(runner: LocalRunner, config: SearchConfig) -> None:
    """The weights of an accepted network are returned bit for bit."""
    best: dict[str, SavedModel] = {}

    def keep(event: Event) -> None:
        if isinstance(event, CandidateEnded) and event.saved_model is not None:
            best[event.result.weights_sha256] = event.saved_model

    model, history = search(config, runner, observers=[keep])
    last = history.final_result
    assert last is not None
    assert (
        (history.final_training is not None)
        == config.final.enabled
        == (last is not history.accepted[-1])
    )
    measured = best[last.weights_sha256].state_dict
    assert all(torch.equal(measured[n], tensor) for n, tensor in clone_state_dict(model).items())
    assert model.architecture.tta == last.tta
    assert config.final.enabled or not last.tta
    again = evaluate(model, runner.val_loader)
    assert (again.accuracy, again.loss) == (last.val_acc, pytest.approx(last.val_loss, rel=1e-5))


@pytest.mark.parametrize("colour", [False, True])
def test_input_channels_are_recorded_as_they_are(
    make_tiny: Callable[..., Tiny], colour: bool
) -> None:
    loaders = create_train_val_dataloaders(*make_tiny(colour=colour), train_ratio=0.7)
    model, layers = progressive_architecture_search(
        *loaders, max_layers=2, k_candidates=[4], epochs_per_eval=1, device="cpu", final_epochs=1
    )
    assert [layer["in_channels"] for layer in layers] == [6 if colour else 2, 4][: len(layers)]
    assert [block.conv.in_channels for block in model.blocks] == [
        layer["in_channels"] for layer in layers
    ]


@pytest.mark.parametrize("max_layers", [1, 2])
def test_max_layers_limits_the_blocks(runner: LocalRunner, max_layers: int) -> None:
    """Although every block improves."""
    model, history = search(replace(QUICK, max_layers=max_layers), WithScores(runner, {2: GOOD}))
    assert model.num_layers == len(history.steps) == max_layers
    assert history.stop_reason == f"max_layers={max_layers} reached"


def test_warm_start_copies_the_bias(runner: LocalRunner) -> None:
    begun = SearchHistory(QUICK, runner.base_model.architecture, runner.num_train, runner.num_val)
    narrow = replace(
        propose_candidates(begun, [TrainedCandidate(runner.base_model)])[1], init_noise=0.0
    )
    model = init_model(narrow, runner.base_model)
    with torch.no_grad():
        model.blocks[0].conv.bias.copy_(torch.arange(4.0))
    trained = SavedModel(model.architecture, clone_state_dict(model))
    wide = init_model(replace(narrow, blocks=(replace(narrow.blocks[0], k=8),)), trained)
    assert wide.blocks[0].conv.bias.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_features_are_used(runner: LocalRunner) -> None:
    model = runner.base_model.build().eval()
    images, features = torch.rand(4, 1, 12, 12), torch.rand(4, 2)
    assert not torch.equal(model(images, features), model(images, features + 1))
    model(images, features).sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in model.projector[3].parameters()
    )


@pytest.mark.parametrize("augment", [Augment(), STRONG_AUGMENT])
@pytest.mark.parametrize("colour", [False, True])
def test_gray_and_colour_are_accepted(
    make_tiny: Callable[..., Tiny], colour: bool, augment: Augment
) -> None:
    train_loader, _ = create_train_val_dataloaders(*make_tiny(colour=colour), augment)
    assert next(iter(train_loader))[0].shape[1:] == ((3 if colour else 1), 12, 12)


@pytest.mark.parametrize("as_number", [False, True])
def test_class_names_and_integers_are_accepted(tiny: Tiny, as_number: bool) -> None:
    if as_number:
        text = tiny.csv_path.read_text()
        for number, name in enumerate(("GALAXY", "QSO", "STAR")):
            text = text.replace(name, str(9 + number))
        tiny.csv_path.write_text(text)
    data = create_train_val_dataloaders(*tiny)[0].dataset
    assert data.classes == (("9", "10", "11") if as_number else ("GALAXY", "QSO", "STAR"))
    assert set(data.labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("num_rows", [60, 120])
def test_a_fraction_is_of_what_is_there(make_tiny: Callable[..., Tiny], num_rows: int) -> None:
    loaders = create_train_val_dataloaders(
        *make_tiny(num_rows=num_rows), fraction=0.5, train_ratio=0.8
    )
    assert sum(len(loader.dataset) for loader in loaders) == num_rows // 2


def test_no_object_is_on_both_sides(sample: Catalogue) -> None:
    sides = [loader.dataset.catalogue for loader in create_train_val_dataloaders(*sample)]
    assert not set(sides[0].groups) & set(sides[1].groups)
    contents = [{path.read_bytes() for path in side.paths} for side in sides]
    assert not contents[0] & contents[1]


def test_a_random_split_would_have_put_them_there(sample: Catalogue) -> None:
    """Shows that the test above can fail: shuffled rows share objects."""
    groups = create_train_val_dataloaders(*sample)[0].dataset.catalogue.groups
    shuffled = np.random.default_rng(0).permutation(groups)
    assert set(shuffled[: len(shuffled) * 9 // 10]) & set(shuffled[len(shuffled) * 9 // 10 :])


def test_paths_are_where_the_caller_says(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With relative paths, nothing is read or written elsewhere."""
    monkeypatch.chdir(tiny.csv_path.parent)
    before = sorted(tmp_path.rglob("*"))
    create_train_val_dataloaders("annotations.csv", "images")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("final_epochs", [0, 2])
def test_the_reported_accuracy_is_of_the_returned_model(tiny: Tiny, final_epochs: int) -> None:
    loaders = create_train_val_dataloaders(*tiny, Augment(), train_ratio=0.7)
    histories: list[SearchHistory] = []

    def keep(event: Event) -> None:
        if isinstance(event, SearchEnded):
            histories.append(event.history)

    model, layers = progressive_architecture_search(
        *loaders,
        max_layers=3,
        k_candidates=[4, 8],
        epochs_per_eval=2,
        device="cpu",
        final_epochs=final_epochs,
        observers=[keep],
    )
    assert isinstance(model, ProgressiveModel)
    (history,) = histories
    reported = history.final_training.selected if final_epochs else history.accepted[-1]
    assert reported is not None and reported is history.final_result
    measured = evaluate(model, loaders[1])
    assert measured.accuracy == reported.val_acc
    assert measured.loss == pytest.approx(reported.val_loss, rel=1e-5)
    assert layers == history.layers()
    assert layers[-1]["num_params"] == reported.num_params == model.num_params
    if not final_epochs:
        assert history.final_training is None and measured.accuracy == layers[-1]["val_acc"]


def test_a_history_describes_its_model(runner: LocalRunner) -> None:
    model, history = search(replace(QUICK, max_layers=2), runner)
    assert isinstance(history, SearchHistory)
    assert [layer["k"] for layer in history.layers()] == [b.k for b in model.architecture.blocks]
