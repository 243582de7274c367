"""Predict a catalogue without classes: the command, a kill, and catalogues that do not fit."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table
from conftest import Catalogue, Tiny, grow

from space_warps.cli.main import main
from space_warps.core import InputError
from space_warps.data.catalogue import ReadOptions
from space_warps.data.dataset import Space_Galaxi
from space_warps.data.loaders import Split
from space_warps.deploy.classifier import Classifier
from space_warps.evaluation.evaluate import predict
from space_warps.models.saved_model import load_model

SMALL = (
    "search.max_layers=1",
    "search.k_candidates=[8]",
    "search.epochs_per_eval=1",
    "search.final.epochs=2",
)


@pytest.fixture
def run(tiny: Tiny, tmp_path: Path) -> Path:
    """A finished run on 60 rows."""
    folder = tmp_path / "run"
    grow(tiny, folder, *SMALL)
    return folder


def without_class(csv_path: Path, target: Path) -> Path:
    """A copy of a catalogue without its class, and its columns in the opposite order."""
    table = pd.read_csv(csv_path, dtype=str)
    table[[name for name in table.columns[::-1] if name != "class"]].to_csv(target, index=False)
    return target


def words(run: Path, csv_path: Path, images: Path, out: Path) -> list[str]:
    """The command line."""
    keys = {"run.dir": run, "data.csv_path": csv_path, "data.img_dir_path": images, "out": out}
    return ["predict", *(f"{key}={value}" for key, value in keys.items())]


def refusal(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


def agrees_with_evaluate(run: Path, labelled: Catalogue | Tiny, predicted: pd.DataFrame) -> None:
    """Every row has the class and the probabilities that `evaluate` uses."""
    saved_model = load_model(run)
    options = ReadOptions(classes=saved_model.architecture.classes)
    dataset = Space_Galaxi.read(labelled.csv_path, labelled.img_dir_path, options)
    expected = predict(saved_model, dataset)
    assert predicted["id"].tolist() == dataset.catalogue.table["id"].tolist()
    names = np.array(dataset.classes)[expected.predicted]
    assert predicted["class"].tolist() == names.tolist()
    columns = [f"p_{name}" for name in dataset.classes]
    assert np.abs(predicted[columns].to_numpy() - expected.probabilities).max() < 1e-6


@pytest.mark.parametrize("ending", ["csv", "parquet", "fits", "ecsv"])
def test_predictions_agree_with_evaluate(
    run: Path, tiny: Tiny, tmp_path: Path, ending: str
) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    new, out = without_class(tiny.csv_path, tmp_path / "new.csv"), tmp_path / f"out.{ending}"
    assert main(words(run, new, tiny.img_dir_path, out)) == 0
    if ending == "csv":
        table = pd.read_csv(out, dtype={"id": str})
        sha256 = json.loads((tmp_path / "out.csv.json").read_text())["model_sha256"]
        assert sha256 == json.loads((run / "model.json").read_text())["weights_sha256"]
    elif ending == "parquet":
        table = pd.read_parquet(out)
    else:
        columns = Table.read(out)
        columns.convert_bytestring_to_unicode()  # text of FITS is bytes
        table = columns.to_pandas()
    agrees_with_evaluate(run, tiny, table)
    assert not (tmp_path / f"out.{ending}.parts").exists()


def test_predictions_of_the_real_catalogue_agree_with_evaluate(
    real: Catalogue, tmp_path: Path
) -> None:
    paths = [f"data.csv_path={real.csv_path}", f"data.img_dir_path={real.img_dir_path}"]
    assert main(["search", *paths, f"run.dir={tmp_path / 'run'}", "data.fraction=0.2", *SMALL]) == 0
    new, out = without_class(real.csv_path, tmp_path / "new.csv"), tmp_path / "out.csv"
    assert main(words(tmp_path / "run", new, real.img_dir_path, out)) == 0
    agrees_with_evaluate(tmp_path / "run", real, pd.read_csv(out, dtype={"id": str}))


KILLED = """
import sys, time
from space_warps.deploy import predict
from space_warps.cli.main import main
from space_warps.core import InputError

predict._MAX_ROWS = 8
table = predict.prediction_table


def slow(*args):
    time.sleep(0.3)
    return table(*args)


predict.prediction_table = slow
main(sys.argv[1:])
"""


def test_a_killed_prediction_resumes(
    run: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    command = words(run, tiny.csv_path, tiny.img_dir_path, out)
    process = subprocess.Popen([sys.executable, "-c", KILLED, *command])
    parts, deadline = tmp_path / "out.csv.parts", time.monotonic() + 120
    while len(list(parts.glob("0*.csv"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("0*.csv")}
    assert 3 <= len(kept) < 8 and not out.exists()
    monkeypatch.setattr("space_warps.deploy.predict._MAX_ROWS", 8)
    (parts / "000000000000.csv").touch()
    other = tmp_path / "other"
    shutil.copytree(tiny.img_dir_path, other)
    assert main(words(run, tiny.csv_path, other, out)) == 2, "images of another folder"
    assert main(command) == 0
    resumed = pd.read_csv(out, dtype={"id": str})
    monkeypatch.undo()
    assert main(words(run, tiny.csv_path, tiny.img_dir_path, tmp_path / "whole.csv")) == 0
    whole = pd.read_csv(tmp_path / "whole.csv", dtype={"id": str})
    assert resumed["id"].tolist() == whole["id"].tolist()
    numbers = [name for name in whole if name.startswith("p_")]
    assert np.abs(resumed[numbers].to_numpy() - whole[numbers].to_numpy()).max() < 1e-6


def rewrite(path: Path, **changes: object) -> None:
    """Change or drop columns of a table."""
    table = pd.read_csv(path, dtype=str)
    for name, value in changes.items():
        table = table.drop(columns=name) if value is None else table.assign(**{name: value})
    table.to_csv(path, index=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z": None}, "has no column z, which the model reads"),
        ({"z": "far"}, "no row of"),
        ({"id": "gone"}, "none of the first 60 images"),
        ({"id": None}, "no column 'id'"),
    ],
)
def test_a_catalogue_that_does_not_fit_is_one_line(
    run: Path,
    tiny: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    message: str,
) -> None:
    rewrite(tiny.csv_path, **changes)
    out = tmp_path / "out.csv"
    assert message in refusal(words(run, tiny.csv_path, tiny.img_dir_path, out), capsys)
    assert not out.exists() and not (tmp_path / "out.csv.parts").exists()


@pytest.mark.parametrize("options", [{"size": 16}, {"colour": True}])
def test_images_of_another_kind_are_one_line(
    run: Path,
    make_tiny: object,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, object],
) -> None:
    other = make_tiny(**options)  # type: ignore[operator]
    command = words(run, other.csv_path, other.img_dir_path, tmp_path / "out.csv")
    assert "the model reads images of 1x12x12" in refusal(command, capsys)


def test_targets_that_cannot_be_written_are_one_line(
    run: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    existing = tmp_path / "there.csv"
    existing.write_text("mine")
    for out, message in (
        (existing, "there.csv exists"),
        (tmp_path / "a.txt", "ends in none of"),
        (tmp_path / "none" / "a.csv", "is not a folder"),
    ):
        capsys.readouterr()
        assert main(words(run, tiny.csv_path, tiny.img_dir_path, out)) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error
    assert existing.read_text() == "mine"
    tiny.write(tiny.lines()[:1])
    assert main(words(run, tiny.csv_path, tiny.img_dir_path, tmp_path / "a.csv")) == 2
    assert "has no rows" in capsys.readouterr().err


def test_bad_rows_are_flagged(run: Path, tiny: Tiny, tmp_path: Path) -> None:
    tiny.image(0).write_bytes(b"no image")
    tiny.image(1).unlink()
    tiny.change(2, "z", "")
    tiny.change(3, "z", "50")
    tiny.change(4, "ra", "400")
    rewrite(tiny.csv_path, ra=pd.read_csv(tiny.csv_path, dtype=str)["ra"])
    assert main(words(run, tiny.csv_path, tiny.img_dir_path, tmp_path / "out.csv")) == 0
    table = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert table["unreadable"].tolist() == [True] * 2 + [False] * 58
    assert all(table["reason"][:2]) and not any(table["reason"][5:])
    assert table["class"][0] == "" and table["p_STAR"][0] == ""
    assert table["features_missing"].tolist()[:4] == [False, False, True, False]
    assert table["out_of_range"].tolist()[3] is True
    assert "ra is 400" in table["reason"][4]


def test_options_of_the_run_are_used_for_new_images(make_tiny: object, tmp_path: Path) -> None:
    tiny = make_tiny(size=16)  # type: ignore[operator]
    grow(tiny, tmp_path / "run", *SMALL, "data.image_size=12")
    out = tmp_path / "out.csv"
    assert main(words(tmp_path / "run", tiny.csv_path, tiny.img_dir_path, out)) == 0
    assert not pd.read_csv(out)["unreadable"].any()


def probabilities(classifier: Classifier) -> np.ndarray:
    """For a process of its own."""
    return classifier.predict_proba(np.full((2, 1, 12, 12), 9, np.uint8))


def test_a_classifier_is_sent_to_a_spawned_process(run: Path) -> None:
    classifier = Classifier.load(run, device="cpu")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (result,) = pool.map(probabilities, [classifier])
    assert np.abs(result - probabilities(classifier)).max() < 1e-6


def test_names_of_classes_are_escaped(tiny: Tiny, tmp_path: Path) -> None:
    rewrite(
        tiny.csv_path,
        **{"class": pd.read_csv(tiny.csv_path)["class"].replace("QSO", "<img src=x>")},
    )
    grow(tiny, tmp_path / "run", *SMALL)
    page = Classifier.load(tmp_path / "run")._repr_html_()
    assert "&lt;img src=x&gt;" in page and "<img" not in page
    assert "<img" not in (tmp_path / "run" / "MODEL_CARD.md").read_text().replace("\\<img", "")


def test_grow_sets_no_test_rows_aside(tiny: Tiny, tmp_path: Path) -> None:
    split = Split(test_share=0.2)
    with pytest.raises(InputError, match=r"test_share=0\.2"):
        Classifier.grow(tiny.csv_path, tiny.img_dir_path, tmp_path / "grown", split=split)
    assert not (tmp_path / "grown").exists()
