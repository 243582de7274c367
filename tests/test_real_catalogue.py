"""Tests on the real catalogue, if there is one beside the checkout."""

import json
from pathlib import Path

import pytest
from conftest import Catalogue

from space_warps.cli.main import main
from space_warps.data.audit import audit_catalogue
from space_warps.data.loaders import create_train_val_dataloaders
from space_warps.models.saved_model import load_model
from space_warps.training.loop import evaluate


def test_no_object_is_in_training_and_validation(real: Catalogue) -> None:
    parts = [loader.dataset.catalogue for loader in create_train_val_dataloaders(*real)]
    assert sum(map(len, parts)) == 1462
    assert not set(parts[0].groups) & set(parts[1].groups)
    contents = [{path.read_bytes() for path in part.paths} for part in parts]
    assert not contents[0] & contents[1]


def test_audit_of_the_real_catalogue(real: Catalogue) -> None:
    result = audit_catalogue(*real, print_result=False)
    assert (result.num_rows, result.num_usable) == (1462, 1462)
    assert result.class_counts == {"GALAXY": 461, "QSO": 490, "STAR": 511}
    assert result.image_ceiling < 0.98
    assert result.image_baseline.by_row - result.image_baseline.by_object > 0.04, (
        "a random split overestimates the accuracy"
    )
    assert result.feature_baseline.by_object > 0.85, "z determines the class"


def test_search_repeats_to_the_bit(real: Catalogue, tmp_path: Path) -> None:
    args = [
        f"data.csv_path={real.csv_path}",
        f"data.img_dir_path={real.img_dir_path}",
        "data.fraction=0.4",
        "search.max_layers=2",
        "search.k_candidates=[8,16]",
        "search.epochs_per_eval=2",
        "search.final.epochs=2",
    ]
    summaries = []
    for name in ("one", "two"):
        assert main(["search", *args, f"run.dir={tmp_path / name}"]) == 0
        summaries.append(json.loads((tmp_path / name / "progressive_summary.json").read_text()))
    for key in ("model_sha256", "history_sha256", "final_val_accuracy"):
        assert summaries[0][key] == summaries[1][key]
    assert summaries[0]["final_val_accuracy"] > 0.4
    _, val_loader = create_train_val_dataloaders(*real, fraction=0.4)
    model = load_model(tmp_path / "one").build()
    measured = evaluate(model, val_loader)
    assert measured.accuracy == summaries[0]["final_val_accuracy"]
    assert measured.loss == pytest.approx(summaries[0]["final_val_log_loss"], rel=1e-5)
