"""A run whose catalogue, images or test set have moved, are gone, or have changed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Tiny, write_tiny
from PIL import Image, ImageOps

from space_warps.cli.main import main

QUICK = [
    "search.max_layers=1",
    "search.k_candidates=[4]",
    "search.epochs_per_eval=1",
    "search.final.epochs=1",
    "data.train_ratio=0.7",
    "data.features=[]",
    "search.device=cpu",
]
KEYS = {
    "sky/annotations.csv": "data.csv_path",
    "sky/images": "data.img_dir_path",
    "tests/annotations.csv": "data.test_csv",
    "tests/images": "data.test_img_dir_path",
}
MOVES = {
    "catalogue": ["sky/annotations.csv"],
    "images": ["sky/images"],
    "catalogue and images": ["sky/annotations.csv", "sky/images"],
    "test catalogue": ["tests/annotations.csv"],
    "test images": ["tests/images"],
    "all": list(KEYS),
}


def shift(tiny: Tiny) -> None:
    """Objects elsewhere in the sky, with other images."""
    header, *rows = tiny.lines()
    cells = [row.split(",") for row in rows]
    tiny.write([header, *(",".join([c[0], c[1], str(float(c[2]) + 40), *c[3:]]) for c in cells)])
    for path in tiny.img_dir_path.iterdir():
        path.write_bytes(path.read_bytes() + b"another file")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run beside its catalogue and its test catalogue, named by relative paths."""
    folder = tmp_path_factory.mktemp("base")
    write_tiny(folder / "sky")
    shift(write_tiny(folder / "tests", num_rows=24))
    words = [f"{key}={path}" for path, key in KEYS.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["search", *words, "run.dir=run", *QUICK]) == 0
    return folder


@pytest.fixture
def here(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all of it, as the working folder."""
    folder = Path(shutil.copytree(base, tmp_path / "copy"))
    monkeypatch.chdir(folder)
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The message of a command that is refused in one line."""
    capsys.readouterr()
    assert main(args) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    return message


def move(paths: list[str]) -> list[str]:
    """Move files, and return the keys that name their new places."""
    Path("moved").mkdir()
    for path in paths:
        Path(path).rename(Path("moved") / path.replace("/", "_"))
    return [f"{KEYS[path]}=moved/{path.replace('/', '_')}" for path in paths]


def evaluation() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path("run/evaluation.json").read_text())
    return record


def test_a_search_resumes_with_moved_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["undo", "run.dir=run", "step=0"]) == 0
    keys = move(MOVES["all"])
    resume = ["search", "run.dir=run", "run.resume=true"]
    assert refusal(capsys, *resume)
    assert main([*resume, *keys]) == 0
    assert evaluation()["num_overlapping"] == 0
    assert main(resume) == 0, "the run knows the new places"
    assert main(["evaluate", "run.dir=run"]) == 0
    assert evaluation()["num_overlapping"] == 0


@pytest.mark.parametrize("name", MOVES)
def test_an_evaluation_finds_moved_files(
    here: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = move(MOVES[name])
    assert main(["evaluate", "run.dir=run", *keys]) == 0
    assert evaluation()["num_overlapping"] == 0
    if any(path.startswith("tests") for path in MOVES[name]):
        assert refusal(capsys, "evaluate", "run.dir=run")
        return
    assert main(["evaluate", "run.dir=run"]) == 0
    unchecked(capsys.readouterr().out)


def unchecked(printed: str) -> None:
    """What could not be compared is said in the terminal, the report and the figures."""
    assert evaluation()["num_overlapping"] is None
    assert evaluation()["overlap_unchecked"]
    assert "not compared with the training rows: " in printed
    report = Path("run/report.html").read_text()
    assert "Overlap with the training and validation rows was not checked: " in report


@pytest.mark.parametrize("path", [path for path in KEYS if path != "tests/images"])
def test_another_content_is_refused(
    here: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["undo", "run.dir=run", "step=0"]) == 0
    (key,) = move([path])
    new = Path(key.partition("=")[2])
    if new.is_dir():
        for image in new.iterdir():
            ImageOps.invert(Image.open(image)).save(image)
    else:
        new.write_text(new.read_text().replace("GALAXY", "STAR", 1))
    message = refusal(capsys, "search", "run.dir=run", "run.resume=true", key)
    assert "changed since the run read" in message


@pytest.mark.parametrize("path", ["sky/annotations.csv", "sky/images"])
def test_an_evaluation_says_that_training_rows_have_changed(
    here: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where bad rows are skipped, which hides images that are gone."""
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("on_bad_row: error", "on_bad_row: skip"))
    if path.endswith("csv"):
        Path(path).write_text(Path(path).read_text().replace("GALAXY", "STAR", 1))
    else:
        next(Path(path).iterdir()).unlink()
    assert main(["evaluate", "run.dir=run"]) == 0
    unchecked(capsys.readouterr().out)
    assert refusal(capsys, "evaluate", "run.dir=run", "evaluate.baselines=true")


def test_another_test_catalogue_is_named_as_such(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shift(Tiny(Path("tests/annotations.csv"), Path("tests/images")))
    args = ["evaluate", "run.dir=run", "data.test_csv=tests/annotations.csv"]
    assert "evaluate it as data.csv_path" in refusal(capsys, *args)
    assert "is not the catalogue that the run has read" in refusal(
        capsys, *args, "data.csv_path=tests/annotations.csv", "data.img_dir_path=tests/images"
    )
    shutil.rmtree("sky")
    given = ["data.csv_path=tests/annotations.csv", "data.img_dir_path=tests/images"]
    assert main(["evaluate", "run.dir=run", "out=other.json", *given]) == 0
    assert "not compared with the training rows: no file sky" in capsys.readouterr().out
    assert json.loads(Path("other.json").read_text())["num_overlapping"] is None
