"""`space-warps evaluate`, and the test set of a run."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Tiny, write_tiny

from space_warps.cli.main import main
from space_warps.data import dataset
from space_warps.data.dataset import Space_Galaxi
from space_warps.data.split import split_rows

QUICK = [
    "search.max_layers=1",
    "search.k_candidates=[4]",
    "search.epochs_per_eval=1",
    "search.final.epochs=1",
    "data.train_ratio=0.7",
    "search.device=cpu",
]
KEYS = {
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "ece",
    "brier",
    "num_rows",
    "per_class",
    "confusion",
    "intervals",
}


def ids_in(path: Path) -> list[str]:
    """The ids of a catalogue."""
    with path.open(encoding="utf-8", newline="") as file:
        return [row["id"] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Path]:
    """A catalogue and a finished run on it, without a test set."""
    folder = tmp_path_factory.mktemp("evaluation")
    tiny, run = write_tiny(folder / "tiny"), folder / "run"
    assert main(["search", *tiny.words(), f"run.dir={run}", *QUICK]) == 0
    return tiny, run


@pytest.fixture
def refused(trained: tuple[Tiny, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Evaluate what cannot be evaluated, and return the error message."""

    def evaluate(tiny: Tiny, run: Path = trained[1], *args: str) -> str:
        out = tmp_path / "metrics.json"
        assert main(["evaluate", f"run.dir={run}", *tiny.words(), f"out={out}", *args]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert not out.exists()
        return message

    return evaluate


def test_the_metrics_are_written_to_the_given_file(
    trained: tuple[Tiny, Path], tmp_path: Path
) -> None:
    tiny, run = trained
    out = tmp_path / "metrics.json"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["evaluate", f"run.dir={run}", *tiny.words(), f"out={out}"]) == 0
    metrics = json.loads(out.read_text())
    assert set(metrics) >= KEYS
    assert metrics["num_rows"] == 60
    assert metrics["num_overlapping"] == 60  # it was trained on these rows
    counts = metrics["confusion"]["counts"]
    assert sum(counts[n][n] for n in range(3)) / 60 == pytest.approx(metrics["accuracy"])
    changed = {path for path in run.rglob("*") if path.is_file()} - set(before)
    assert {path.name for path in changed} <= {"test_access.jsonl"}
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("features", ["[]", "[z,z_err]"])
@pytest.mark.parametrize("skipped", [0, 3])
def test_no_held_out_row_is_trained_on(tmp_path: Path, features: str, skipped: int) -> None:
    tiny = write_tiny(tmp_path / "tiny", num_rows=90)
    for row in range(skipped):
        tiny.change(7 * row, "z", "nan")
        tiny.image(7 * row + 1).write_bytes(b"")
    args = [*tiny.words(), "data.test_share=0.2", f"data.features={features}"]
    args += ["data.on_bad_row=skip", f"run.dir={tmp_path / 'run'}", *QUICK]
    assert main(["search", *args]) == 0
    tested = ids_in(tmp_path / "run" / "test.csv")
    wanted = [] if features == "[]" else ["z", "z_err"]
    data = Space_Galaxi(*tiny, features=wanted, on_bad_row="skip")
    names = data.catalogue.table["id"].to_numpy()
    for rows in split_rows(data.catalogue, 1.0, 0.7, 42, 0.2):
        assert not set(tested) & set(names[rows])
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert record["num_rows"] == len(tested) == round(0.2 * len(data))
    assert (record["num_evaluations"], record["num_overlapping"]) == (1, 0)


def test_images_are_decoded_once_with_a_held_out_share(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_images, num_images = dataset.read_images, []

    def count(paths: Sequence[Path], *options: Any, **more: Any) -> Any:
        num_images.append(len(paths))
        return read_images(paths, *options, **more)

    monkeypatch.setattr(dataset, "read_images", count)
    args = [*tiny.words(), "data.test_share=0.2", f"run.dir={tmp_path / 'run'}", *QUICK]
    assert main(["search", *args]) == 0
    assert num_images == [60, 12]  # the whole catalogue, and its test rows at the end


def test_every_evaluation_is_logged(trained: tuple[Tiny, Path], tmp_path: Path) -> None:
    tiny, run = trained
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "test_access.jsonl").unlink(missing_ok=True)
    for number in (1, 2):
        assert main(["evaluate", f"run.dir={copy}", *tiny.words()]) == 0
        assert json.loads((copy / "evaluation.json").read_text())["num_evaluations"] == number
    lines = (copy / "test_access.jsonl").read_text().splitlines()
    assert [json.loads(line)["num_rows"] for line in lines] == [60, 60]
    assert "evaluation number 2 of this catalogue" in (copy / "report.html").read_text()


def test_a_test_set_that_cannot_be_used_is_refused_before_the_search(
    tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_tiny(tmp_path / "other")
    other.change(0, "class", "COMET")
    run = tmp_path / "run"
    args = [*tiny.words(), f"data.test_csv={other.csv_path}", f"run.dir={run}", *QUICK]
    assert main(["search", *args, f"data.test_img_dir_path={other.img_dir_path}"]) == 2
    assert "class 'COMET' is not one of" in capsys.readouterr().err
    assert not run.exists()
    assert main(["search", *args, "data.test_share=0.2"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_other_classes(tiny: Tiny, refused) -> None:
    tiny.change(3, "class", "COMET")
    assert "class 'COMET' is not one of GALAXY, QSO, STAR" in refused(tiny)


def test_other_features(tiny: Tiny, refused) -> None:
    lines = tiny.lines()
    tiny.write([lines[0].replace("z_err", "z_error"), *lines[1:]])
    assert "no column 'z_err'" in refused(tiny)


def test_another_image_shape(tmp_path: Path, refused) -> None:
    assert "the model reads images of 1x12x12" in refused(write_tiny(tmp_path / "large", size=16))
    colour = write_tiny(tmp_path / "colour", colour=True)
    assert "reads images of 1x12x12 and this one is 3x12x12" in refused(colour)


def test_no_labels(tiny: Tiny, refused) -> None:
    lines = tiny.lines()
    tiny.write([lines[0].replace(",class,", ",kind,"), *lines[1:]])
    assert "no column 'class'" in refused(tiny)


def test_fewer_rows_than_classes(tiny: Tiny, refused) -> None:
    tiny.write(tiny.lines()[:3])
    assert "fewer rows (2) than the model has classes (3)" in refused(tiny)


def test_a_run_without_a_model(tiny: Tiny, tmp_path: Path, refused) -> None:
    assert "no model.json" in refused(tiny, tmp_path)


def test_a_file_that_cannot_be_written(
    trained: tuple[Tiny, Path], tiny: Tiny, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "absent" / "metrics.json"
    assert main(["evaluate", f"run.dir={trained[1]}", *tiny.words(), f"out={out}"]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_invalid_class_fractions(tiny: Tiny, refused, trained: tuple[Tiny, Path]) -> None:
    assert "fractions give each class" in refused(
        tiny, trained[1], "evaluate.fractions={STAR: 1.0}"
    )


def test_a_run_without_a_test_set_says_what_to_give(
    trained: tuple[Tiny, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", f"run.dir={trained[1]}"]) == 2
    assert "has no test set of its own; give data.csv_path" in capsys.readouterr().err
