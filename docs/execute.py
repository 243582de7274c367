"""Execute notebooks and keep their outputs, in place or in a copy for the site.

python docs/execute.py                every notebook of nbs/, in place
python docs/execute.py 00_core ...    these
"""

import functools
import hashlib
import json
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "nbs"
EXECUTED = ROOT / "_docs" / "executed"
SKIPPED = {"slow"}
TIMEOUT_S = 600  # Of a notebook
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "MPLBACKEND": "agg"}
# Modules that nearly every notebook imports, loaded once for all processes.
PRELOADED = """torch torchvision pandas matplotlib.pyplot sklearn.ensemble scipy.stats omegaconf
ipywidgets nbdev.process execnb.shell"""
FEEDS_A_PAGE = (
    "space_warps/**/*.py",
    "space_warps/**/*.pyi",
    "docs/drawings.py",
    "docs/structure.py",
    "data/sample/*.*",
    "benchmarks/figures/*.json",
    "*.cff",
)


def notebook_names() -> list[str]:
    """All notebooks, as paths within nbs/ without the suffix."""
    paths = sorted(NOTEBOOKS.rglob("*.ipynb"))
    kept = [path for path in paths if ".ipynb_checkpoints" not in path.parts]
    return [path.relative_to(NOTEBOOKS).with_suffix("").as_posix() for path in kept]


@functools.cache
def surroundings() -> str:
    """Hash of everything that the outputs of a page depend on, except the page itself."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(repr(sorted({(d.name, d.version) for d in distributions()})).encode())
    digest.update(repr((sys.version, notebook_names())).encode())
    for pattern in FEEDS_A_PAGE:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def key_of(name: str) -> str:
    """Hash of the sources of a notebook's cells and of everything that they depend on."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    return hashlib.sha256((surroundings() + json.dumps(text)).encode()).hexdigest()


def copy_of(name: str) -> Path:
    """Path of the executed copy of a notebook."""
    return EXECUTED / f"{name}.ipynb"


def is_current(name: str) -> bool:
    """Whether the copy exists and nothing that it depends on has changed."""
    path = copy_of(name)
    if not path.is_file():
        return False
    kept = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    return kept.get("executed_from") == key_of(name)


def is_skipped(cell: Any) -> bool:
    """Whether a cell is prose or excluded by a directive."""
    directives = getattr(cell, "directives_", None) or {}
    never = directives.get("eval:", [""])[0].lower() == "false"
    return cell.cell_type != "code" or bool(SKIPPED & directives.keys()) or never


def execute(path: Path) -> Any:
    """Execute a notebook in its own shell and return its cells with their outputs."""
    from execnb.nbio import read_nb
    from execnb.shell import CaptureShell
    from nbdev.process import NBProcessor

    sys.path.insert(0, str(ROOT))
    os.environ["IN_TEST"] = "1"
    notebook = NBProcessor(path, process=True).nb
    for cell in notebook.cells:
        if not is_skipped(cell):
            cell["outputs"] = []  # otherwise a cell without output keeps its old one
    shell = CaptureShell(path, mpl_format="png")
    os.chdir(path.parent)
    shell.run_all(notebook, exc_stop=True, preproc=is_skipped)
    written = read_nb(path)
    for cell, run in zip(written.cells, notebook.cells, strict=True):
        if cell.cell_type == "code":
            cell["outputs"] = run.get("outputs", [])
            cell["execution_count"] = None
    return written


def execute_in_place(name: str) -> None:
    """Write the outputs into the notebook."""
    from execnb.nbio import write_nb

    path = NOTEBOOKS / f"{name}.ipynb"
    write_nb(execute(path), path)


def execute_copy(name: str) -> None:
    """Write a copy of the notebook with its outputs, if it runs without an error."""
    from execnb.nbio import write_nb

    key = key_of(name)
    copy_of(name).unlink(missing_ok=True)
    notebook = execute(NOTEBOOKS / f"{name}.ipynb")
    notebook.metadata["executed_from"] = key
    copy_of(name).parent.mkdir(parents=True, exist_ok=True)
    part = copy_of(name).with_suffix(".part")
    write_nb(notebook, part)
    part.replace(copy_of(name))


def copy_apart(name: str) -> str:
    """Write a copy, in a process of its own; returns the traceback, or an empty string."""

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError(f"not finished after {TIMEOUT_S} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(TIMEOUT_S)
    try:
        execute_copy(name)
    except BaseException:  # including those that cannot be pickled
        return f"{name}:\n{traceback.format_exc()}"
    return ""


@contextmanager
def copies_of(names: Sequence[str]) -> Iterator[dict[str, "Future[str]"]]:
    """Execute copies of notebooks, up to four at once, each in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED.split())
    before = dict(os.environ)
    os.environ.update(ONE_THREAD)  # so that outputs are the same
    multiprocessing.forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)
    number = min(4, os.cpu_count() or 1)
    pool = ProcessPoolExecutor(number, mp_context=context, max_tasks_per_child=1)
    try:
        yield {name: pool.submit(copy_apart, name) for name in names}
    finally:
        pool.shutdown(cancel_futures=True)


def main(args: list[str]) -> None:
    """Execute the named notebooks, each in a process of its own."""
    names = [name.removesuffix(".ipynb") for name in args]
    if len(names) == 1:
        return execute_in_place(names[0])
    for name in names or notebook_names():
        print(name, flush=True)
        one = [sys.executable, __file__, name]
        if subprocess.run(one, env={**os.environ, **ONE_THREAD}, timeout=TIMEOUT_S).returncode:
            raise SystemExit(f"{name} failed; see above")


if __name__ == "__main__":
    main(sys.argv[1:])
