"""Exported files run in other programs and say what they are; bad input is one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Tiny, grow, write_tiny

from space_warps.cli.main import main
from space_warps.evaluation.evaluate import predict, read_labelled
from space_warps.models.saved_model import load_model

pytest.importorskip("onnxscript", reason="the extra export is not installed")
ROOT = Path(__file__).resolve().parent.parent
BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "space_warps", "pandas", "astropy"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Path]:
    """A catalogue and a short run on it."""
    folder = tmp_path_factory.mktemp("export")
    tiny, run = write_tiny(folder / "tiny"), folder / "run"
    short = ["search.max_layers=1", "search.k_candidates=[4]", "search.epochs_per_eval=1"]
    grow(tiny, run, *short, "search.final.epochs=2", "search.device=cpu")
    return tiny, run


def tutorial_script() -> str:
    """The script of the tutorial."""
    notebook = json.loads((ROOT / "nbs/tutorials/7_export.ipynb").read_text(encoding="utf-8"))
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
    (script,) = re.findall(r"(?ms)^```python\n(.*?)^```$", text)
    return str(script)


def test_the_script_of_the_tutorial_needs_neither_torch_nor_this_package(
    run: tuple[Tiny, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny, folder = run
    target = tmp_path / "model.onnx"
    assert main(["export", f"run.dir={folder}", f"out={target}"]) == 0
    assert "largest difference from PyTorch" in capsys.readouterr().out
    script = tmp_path / "classify.py"
    script.write_text(BLOCKED + tutorial_script())
    images = [str(tiny.image(row)) for row in range(5)]
    done = subprocess.run(
        [sys.executable, "-I", script, target, *images], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    given = [
        [float(p) for p in re.findall(r"=([\d.e-]+)", line)] for line in done.stdout.splitlines()
    ]
    model = load_model(folder)
    data = read_labelled(model.architecture, tiny.csv_path, tiny.img_dir_path)
    data.features[:] = float("nan")  # the script gives none
    expected = predict(model, data, "cpu").logits[:5].astype(float)
    expected = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    assert np.array(given) == pytest.approx(expected, abs=2e-5)


def test_metadata_tell_what_the_file_reads(run: tuple[Tiny, Path], tmp_path: Path) -> None:
    import onnx
    from safetensors import safe_open

    folder = run[1]
    for name in ("onnx", "safetensors"):
        assert main(["export", f"run.dir={folder}", f"out={tmp_path / 'm'}.{name}"]) == 0
    proto = onnx.load(tmp_path / "m.onnx")
    metadata = {item.key: json.loads(item.value) for item in proto.metadata_props}
    stored = json.loads((folder / "model.json").read_text())
    assert metadata["model_sha256"] == stored["weights_sha256"]
    assert metadata["classes"] == stored["architecture"]["classes"]
    assert metadata["features"] == ["z", "z_err"] and metadata["image_type"] == "uint8"
    assert [item.name for item in proto.graph.input] == ["images", "features"]
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata()["classes"] == json.dumps(metadata["classes"], separators=(",", ":"))


def test_bad_input_is_one_line_and_writes_nothing(
    run: tuple[Tiny, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny, folder = run
    (tmp_path / "there.onnx").touch()
    other = tmp_path / "other.csv"
    other.write_text("id,class\n")
    cases = {
        "out is missing": [],
        "run.dir is missing": [f"out={tmp_path / 'a.onnx'}", "run.dir=null"],
        "exists already": [f"out={tmp_path / 'there.onnx'}"],
        "format is one of onnx, pt2, safetensors": [f"out={tmp_path / 'a.h5'}"],
        "not in an existing folder": [f"out={tmp_path / 'no/a.onnx'}"],
        "nowhere.csv": [
            f"out={tmp_path / 'a.onnx'}",
            "data.csv_path=nowhere.csv",
            f"data.img_dir_path={tiny.img_dir_path}",
        ],
    }
    for message, keys in cases.items():
        assert main(["export", f"run.dir={folder}", *keys]) == 2, message
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line, line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.csv", "there.onnx"]
