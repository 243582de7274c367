"""Run notebooks in place, as the tests run them, and keep what they print and draw.

python docs/execute.py              every notebook of nbs/
python docs/execute.py 00_core ...  these
"""

import os
import sys
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.process import NBProcessor

SKIPPED = {"slow"}


def is_skipped(cell) -> bool:
    """Cells that are prose, or that a directive keeps from running."""
    directives = getattr(cell, "directives_", None) or {}
    never = directives.get("eval:", [""])[0].lower() == "false"
    return cell.cell_type != "code" or bool(SKIPPED & directives.keys()) or never


def execute(path: Path) -> None:
    """Run the notebook at `path` in a shell of its own and write its outputs into it."""
    notebook = NBProcessor(path, process=True).nb
    shell = CaptureShell(path, mpl_format="png")
    os.chdir(path.parent)
    shell.run_all(notebook, exc_stop=True, preproc=is_skipped)
    written = read_nb(path)
    for cell, run in zip(written.cells, notebook.cells, strict=True):
        if cell.cell_type == "code":
            cell["outputs"] = run.get("outputs", [])
            cell["execution_count"] = None
    write_nb(written, path)
    if shell.exc:
        raise SystemExit(f"{path.name}: {shell.exc}")


def main(names: list[str]) -> None:
    """Run the named notebooks, each in a process of its own."""
    config = get_config()
    root, folder = Path(config.config_path).resolve(), Path(config.nbs_path).resolve()
    if len(names) == 1:
        sys.path.insert(0, str(root))
        os.environ["IN_TEST"] = "1"
        return execute(folder / f"{names[0].removesuffix('.ipynb')}.ipynb")
    every = (p.relative_to(folder).with_suffix("") for p in sorted(folder.rglob("*.ipynb")))
    for name in names or [str(p) for p in every if ".ipynb_checkpoints" not in p.parts]:
        print(name, flush=True)
        if code := os.spawnv(os.P_WAIT, sys.executable, [sys.executable, __file__, name]):
            raise SystemExit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
