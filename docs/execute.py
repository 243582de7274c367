"""Run notebooks as pages: what they print and draw is kept, in place or in a copy for the site.

python docs/execute.py                every notebook of nbs/, in place
python docs/execute.py 00_core ...    these
python docs/execute.py --copy NAME    one, into _docs/executed, also where it is there already
"""

import functools
import hashlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "nbs"
EXECUTED = ROOT / "_docs" / "executed"
SKIPPED = {"slow"}
FEEDS_A_PAGE = ("space_warps/*.py*", "data/sample/*.*", "benchmarks/figures/*.json", "*.cff")


def notebook_names() -> list[str]:
    """All notebooks, as paths within nbs/ without ending."""
    paths = sorted(NOTEBOOKS.rglob("*.ipynb"))
    kept = [path for path in paths if ".ipynb_checkpoints" not in path.parts]
    return [path.relative_to(NOTEBOOKS).with_suffix("").as_posix() for path in kept]


@functools.cache
def surroundings() -> str:
    """Hash of all that a page's outputs depend on, apart from the page."""
    known = hashlib.sha256(Path(__file__).read_bytes())
    known.update(repr(sorted({(d.name, d.version) for d in distributions()})).encode())
    known.update(repr((sys.version, notebook_names())).encode())
    for pattern in FEEDS_A_PAGE:
        for path in sorted(ROOT.glob(pattern)):
            known.update(path.name.encode() + path.read_bytes())
    return known.hexdigest()


def key_of(name: str) -> str:
    """Hash of a notebook's cells, without their outputs, and of what surrounds them."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    told = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    return hashlib.sha256((surroundings() + json.dumps(told)).encode()).hexdigest()


def copy_of(name: str) -> Path:
    """Where the executed copy of a notebook lies."""
    return EXECUTED / f"{name}.ipynb"


def is_current(name: str) -> bool:
    """Whether the copy is there and nothing that it depends on has changed."""
    path = copy_of(name)
    if not path.is_file():
        return False
    kept = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    return kept.get("executed_from") == key_of(name)


def is_skipped(cell: Any) -> bool:
    """Cells that are prose, or that a directive keeps from running."""
    directives = getattr(cell, "directives_", None) or {}
    never = directives.get("eval:", [""])[0].lower() == "false"
    return cell.cell_type != "code" or bool(SKIPPED & directives.keys()) or never


def execute(path: Path) -> Any:
    """Run a notebook in a shell of its own: its cells with their outputs, and its failure if any."""
    from execnb.nbio import read_nb
    from execnb.shell import CaptureShell
    from nbdev.process import NBProcessor

    sys.path.insert(0, str(ROOT))
    os.environ["IN_TEST"] = "1"
    notebook = NBProcessor(path, process=True).nb
    for cell in notebook.cells:
        if not is_skipped(cell):
            cell["outputs"] = []  # one that shows nothing now would keep what it showed before
    shell = CaptureShell(path, mpl_format="png")
    os.chdir(path.parent)
    shell.run_all(notebook, exc_stop=True, preproc=is_skipped)
    written = read_nb(path)
    for cell, run in zip(written.cells, notebook.cells, strict=True):
        if cell.cell_type == "code":
            cell["outputs"] = run.get("outputs", [])
            cell["execution_count"] = None
    return written, shell.exc


def told(name: str, failure: BaseException) -> str:
    """Where a notebook failed, and why."""
    return f"{name}:\n{''.join(traceback.format_exception(failure))}"


def execute_in_place(name: str) -> None:
    """Write the outputs into the notebook."""
    from execnb.nbio import write_nb

    path = NOTEBOOKS / f"{name}.ipynb"
    notebook, failure = execute(path)
    write_nb(notebook, path)
    if failure:
        raise SystemExit(told(name, failure))


def execute_copy(name: str) -> None:
    """Write the notebook with its outputs for the site, if it runs to its end."""
    from execnb.nbio import write_nb

    key = key_of(name)
    copy_of(name).unlink(missing_ok=True)
    notebook, failure = execute(NOTEBOOKS / f"{name}.ipynb")
    if failure:
        raise SystemExit(told(name, failure))
    notebook.metadata["executed_from"] = key
    copy_of(name).parent.mkdir(parents=True, exist_ok=True)
    part = copy_of(name).with_suffix(".part")
    write_nb(notebook, part)
    part.replace(copy_of(name))


Done = subprocess.CompletedProcess[str]


def run_apart(*words: str) -> Done:
    """This script in a process of its own, with one thread, so that outputs are the same."""
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return subprocess.run(
        [sys.executable, __file__, *words],
        env={**os.environ, **threads, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@contextmanager
def copies_of(names: Sequence[str]) -> Iterator[dict[str, "Future[Done]"]]:
    """Execute copies of notebooks, up to four side by side."""
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    try:
        yield {name: pool.submit(run_apart, "--copy", name) for name in names}
    finally:
        pool.shutdown(cancel_futures=True)


def main(words: list[str]) -> None:
    """Run the named notebooks, each in a process of its own."""
    if words[:1] == ["--copy"]:
        return execute_copy(words[1])
    names = [word.removesuffix(".ipynb") for word in words]
    if len(names) == 1:
        return execute_in_place(names[0])
    for name in names or notebook_names():
        print(name, flush=True)
        done = run_apart(name)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
