"""Every notebook in nbs/ runs from top to bottom, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(
    path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)
RUN = """
import sys
from pathlib import Path
from nbdev.test import test_nb
passed, _ = test_nb(Path(sys.argv[1]), skip_flags=["slow"], basepath=sys.argv[2])
sys.exit(int(not passed))
"""


def test_the_notebooks_are_there() -> None:
    assert len(NOTEBOOKS) > 20


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT / "nbs")))
def test_notebook(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path), str(ROOT)],
        cwd=path.parent,
        env={**os.environ, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
