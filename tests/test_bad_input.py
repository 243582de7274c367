"""Input that cannot be used gives one line, exit code 2, and no file."""

import errno
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Tiny
from PIL import Image

from space_warps.cli.main import main
from space_warps.runs.state import read_history
from space_warps.safety import SafeFolder

QUICK = [
    "search.max_layers=1",
    "search.k_candidates=[4]",
    "search.epochs_per_eval=1",
    "search.final.epochs=1",
    "search.device=cpu",
]


class Refusal:
    """Runs a search that has to be refused, and returns its message."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run_dir = folder / "run"
        self.capsys = capsys

    def __call__(self, tiny: Tiny, *args: str) -> str:
        before = everything(tiny.csv_path.parent)
        code = main(["search", *tiny.words(), f"run.dir={self.run_dir}", *QUICK, *args])
        message = self.capsys.readouterr().err
        assert code == 2, message
        assert message.count("\n") == 1, message
        assert "Traceback" not in message
        assert not self.run_dir.exists(), "a refused search left a folder"
        assert everything(tiny.csv_path.parent) == before
        return message


def everything(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    return Refusal(tmp_path, capsys)


# The CSV


def test_csv_missing(tiny: Tiny, refused: Refusal) -> None:
    assert "no catalogue at" in refused(Tiny(tiny.csv_path.with_name("a.csv"), tiny.img_dir_path))


@pytest.mark.parametrize("content", ["", "id,ra,dec,class,z,z_err\n"])
def test_csv_empty(tiny: Tiny, refused: Refusal, content: str) -> None:
    tiny.csv_path.write_text(content)
    assert "annotations.csv has no rows" in refused(tiny)


@pytest.mark.parametrize("column", ["id", "ra", "dec", "class", "z_err"])
def test_csv_without_a_column(tiny: Tiny, refused: Refusal, column: str) -> None:
    header, *rows = tiny.lines()
    names = ["gone" if name == column else name for name in header.split(",")]
    tiny.write([",".join(names), *rows])
    assert f"annotations.csv has no column {column!r}" in refused(tiny)


def test_csv_not_utf8(tiny: Tiny, refused: Refusal) -> None:
    tiny.change(0, "class", "Wolf-Rayet é")
    tiny.csv_path.write_bytes(tiny.csv_path.read_text(encoding="utf-8").encode("latin-1"))
    assert "is not UTF-8" in refused(tiny)


@pytest.mark.parametrize("line", ["1,2", "1,2,3,STAR,,0.1,0.1,more"])
def test_csv_ragged(tiny: Tiny, refused: Refusal, line: str) -> None:
    tiny.write([*tiny.lines()[:5], line])
    assert "annotations.csv, line 6:" in refused(tiny)


def test_ids_repeated(tiny: Tiny, refused: Refusal) -> None:
    tiny.change(7, "id", tiny.lines()[1].split(",")[0])
    assert "line 9 (id 1000000000000000" in (message := refused(tiny))
    assert "is in line 2 already" in message


# The images


def test_image_missing(tiny: Tiny, refused: Refusal) -> None:
    tiny.image(3).unlink()
    assert "line 5 (id" in (message := refused(tiny))
    assert "no image" in message and "on_bad_row=skip" in message


def test_image_folder_missing(tiny: Tiny, refused: Refusal) -> None:
    assert "no folder of images" in refused(Tiny(tiny.csv_path, tiny.img_dir_path / "none"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html>", "is a web page, which cannot be read"),
        (None, "is truncated, damaged"),
    ],
)
def test_image_unreadable(
    tiny: Tiny, refused: Refusal, content: bytes | None, message: str
) -> None:
    whole = tiny.image(3).read_bytes()
    tiny.image(3).write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert f"{tiny.image(3).name} {message}" in (text := refused(tiny))
    assert "line 5 (id" in text


def test_image_of_a_huge_declared_size(tiny: Tiny, refused: Refusal) -> None:
    png = tiny.image(3).read_bytes()
    header = b"IHDR" + struct.pack(">II", 9000, 9000) + png[24:29]
    tiny.image(3).write_bytes(png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:])
    assert "declares 9000x9000 pixels" in refused(tiny)


def test_image_of_another_shape(tiny: Tiny, refused: Refusal, tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((10, 14)).save(tiny.image(3))
    assert "10x14 pixels, most are 12x12; image_size=12 would resize all" in refused(tiny)
    args = [*tiny.words(), f"run.dir={tmp_path / 'resized'}", *QUICK, "data.image_size=12"]
    assert main(["search", *args]) == 0


# The values


def test_class_missing(tiny: Tiny, refused: Refusal) -> None:
    tiny.change(4, "class", "")
    assert "line 6 (id" in (message := refused(tiny))
    assert "class is empty" in message


def test_one_class_only(tiny: Tiny, refused: Refusal) -> None:
    header, *rows = tiny.lines()
    tiny.write([header, *(row for row in rows if "STAR" in row)])
    assert "all rows are of class STAR" in refused(tiny)


def test_a_class_with_one_row(tiny: Tiny, refused: Refusal) -> None:
    tiny.change(0, "class", "NEBULA")
    assert "class NEBULA has rows of one object only" in refused(tiny)


@pytest.mark.parametrize("value", ["far", "1_8", "1e400x"])
def test_feature_not_a_number(tiny: Tiny, refused: Refusal, value: str) -> None:
    tiny.change(2, "z", value)
    assert f"z is {value!r}, not a finite number" in (message := refused(tiny))
    assert "line 4 (id" in message


@pytest.mark.parametrize(
    ("column", "value"), [("ra", "360.5"), ("ra", "-1"), ("dec", "91"), ("dec", "-90.1")]
)
def test_position_out_of_range(tiny: Tiny, refused: Refusal, column: str, value: str) -> None:
    tiny.change(2, column, value)
    assert f"{column} is {value}, outside" in refused(tiny)


def test_position_not_a_number(tiny: Tiny, refused: Refusal) -> None:
    tiny.change(2, "ra", "")
    assert "ra is '', not a finite number" in refused(tiny)


# The keys


@pytest.mark.parametrize("key", ["data.fraction", "data.train_ratio"])
@pytest.mark.parametrize("value", ["0", "-0.5", "1.5", "nan"])
def test_share_out_of_range(tiny: Tiny, refused: Refusal, key: str, value: str) -> None:
    assert f"{key.split('.')[1]} is a share, above 0 and at most 1" in refused(
        tiny, f"{key}={value}"
    )


@pytest.mark.parametrize(
    "arg", ["data.train_ratio=1", "data.train_ratio=0.999", "data.fraction=0.01"]
)
def test_split_with_an_empty_side(tiny: Tiny, refused: Refusal, arg: str) -> None:
    message = refused(tiny, arg)
    assert "no validation row" in message or "at least one of each of the 3 classes" in message


def test_unknown_key(tiny: Tiny, refused: Refusal) -> None:
    assert "did you mean search.lr?" in refused(tiny, "search.rl=1")
    assert "space-warps --help lists the keys" in refused(tiny, "colour=blue")


def test_mistyped_value(tiny: Tiny, refused: Refusal) -> None:
    assert "search.max_layers=many" in refused(tiny, "search.max_layers=many")
    assert "write key=value" in refused(tiny, "search.max_layers")


@pytest.mark.parametrize("k", ["[0]", "[-4]", "[]", "[8.5]", "[wide]", "8"])
def test_k_not_positive(tiny: Tiny, refused: Refusal, k: str) -> None:
    assert "k_candidates is a list" in refused(tiny, f"search.k_candidates={k}")


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("search.training.schedule=cosine", "schedule is 'one_cycle' or 'constant'; got 'cosine'"),
        (
            "search.selection.metric=luck",
            "selection.metric is 'loss' or 'accuracy' or 'balanced_accuracy' or 'macro_f1', or your own as package.module:name; got 'luck'",
        ),
        ("search.selection.patience=-1", "patience is at least 0; got -1"),
        ("search.space.stem_downsample=0", "downsample is at least 1; got 0"),
        ("search.training.label_smoothing=1", "label_smoothing is a share in [0, 1); got 1.0"),
        ("search.final.epochs=0", "final.epochs is at least 1; got 0; final.enabled=false"),
        ("search.final.seeds=0", "final.seeds is at least 1; got 0"),
        ("augment.shift=-1", "shift must be a whole number of pixels from 0 to 100; got -1"),
    ],
)
def test_an_invalid_setting(tiny: Tiny, refused: Refusal, arg: str, message: str) -> None:
    assert message in refused(tiny, arg)


@pytest.mark.parametrize(("size", "args"), [(1, []), (2, []), (1, ["search.plain=true"])])
def test_images_too_small_for_a_block(
    make_tiny: Callable[..., Tiny], refused: Refusal, size: int, args: list[str]
) -> None:
    small = make_tiny(size=size)
    pool = 2 if args else 3
    message = f"{size}x{size} pixels is too small for a block with downsample={pool};"
    assert message in refused(small, *args)


def test_missing_device(tiny: Tiny, refused: Refusal) -> None:
    assert "no device 'cuda:77' on this machine" in refused(tiny, "search.device='cuda:77'")


def test_half_a_catalogue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "data.csv_path=a.csv", f"run.dir={tmp_path / 'run'}"]) == 2
    assert "go together" in capsys.readouterr().err


def test_a_class_too_rare_for_the_fraction(
    make_tiny: Callable[..., Tiny], refused: Refusal
) -> None:
    """Two objects of one class: enough for the whole catalogue, not for every part of it."""
    tiny = make_tiny(num_rows=90)
    for row in range(2, 90, 3):
        if row > 5:
            tiny.change(row, "class", "QSO")
    message = refused(tiny, "data.fraction=0.5", "data.train_ratio=0.7")
    assert "each of the 3 classes on both sides" in message


def test_features_named_twice(tiny: Tiny, refused: Refusal) -> None:
    assert "each feature is named once" in refused(tiny, "data.features=[z,z]")


def test_duplicate_column(tiny: Tiny, refused: Refusal) -> None:
    tiny.write([line + "," + line.split(",")[-1] for line in tiny.lines()])
    assert "has 2 columns 'z_err'; keep one" in refused(tiny, "data.features=[z]")


@pytest.mark.parametrize(
    "arg", ["search.lr=inf", "search.training.init_noise=nan", "search.lr=???"]
)
def test_values_that_are_not_numbers(tiny: Tiny, refused: Refusal, arg: str) -> None:
    assert arg.split("=")[0].split(".")[1] in refused(tiny, arg)


def test_a_catalogue_without_any_image_is_audited(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty := tmp_path / "empty").mkdir()
    words = [f"data.csv_path={tiny.csv_path}", f"data.img_dir_path={empty}"]
    assert main(["audit", *words, f"out={tmp_path / 'audit.html'}"]) == 2
    assert "60 rows, 0 usable" in capsys.readouterr().out
    assert "No row can be used" in (tmp_path / "audit.html").read_text()


# The disk


def test_run_folder_not_empty(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "run" / "thesis.tex"
    kept.parent.mkdir()
    kept.write_text("two years of work")
    assert main(["search", *tiny.words(), f"run.dir={kept.parent}", *QUICK]) == 2
    assert "is not empty; name another" in capsys.readouterr().err
    assert everything(kept.parent) == {str(kept): b"two years of work"}


def test_disk_full(
    tiny: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fifth weights file does not fit: one line, everything before it stays, and it resumes."""
    names: list[str] = []
    write = SafeFolder.write

    def full(folder: SafeFolder, name: str, data: bytes | str) -> str:
        names.append(name)
        if len([name for name in names if name.endswith(".safetensors")]) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        return write(folder, name, data)

    monkeypatch.setattr(SafeFolder, "write", full)
    run = tmp_path / "run"
    args = [*tiny.words(), f"run.dir={run}", *QUICK[1:], "search.max_layers=2"]
    assert main(["search", *args]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in message and ".safetensors" in message
    assert len(read_history(run).steps) == 1
    assert not list(run.rglob("*.part"))
    monkeypatch.undo()
    assert main(["search", f"run.dir={run}", "run.resume=true"]) == 0


# Alternatives to an error


def test_bad_rows_can_be_skipped_with_a_count(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.image(3).unlink()
    tiny.image(4).write_bytes(b"")
    tiny.change(7, "z", "far")
    tiny.change(8, "class", "")
    args = [*tiny.words(), f"run.dir={tmp_path / 'run'}", *QUICK, "data.on_bad_row=skip"]
    assert main(["search", *args]) == 0
    assert "4 rows skipped" in capsys.readouterr().out


def test_no_traceback_from_the_shell(tiny: Tiny) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "space_warps.cli.main", "search", *tiny.words(), "data.fraction=2"],
        capture_output=True,
        text=True,
        cwd=tiny.csv_path.parent,
    )
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0 and "fraction is a share" in done.stderr
