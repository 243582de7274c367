"""Every notebook in nbs/ runs from top to bottom, each in a process of its own.

What it printed and drew stays in _docs/executed, where the documentation site takes it from.
"""

import execute
import pytest


def test_the_notebooks_are_there() -> None:
    assert len(execute.notebook_names()) > 20


@pytest.mark.parametrize("name", execute.notebook_names())
def test_notebook(name: str) -> None:
    done = execute.run_apart("--copy", name)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert execute.is_current(name)
