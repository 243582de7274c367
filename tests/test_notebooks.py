"""Every notebook in nbs/ runs from top to bottom, each in a process of its own.

What it printed and drew stays in _docs/executed, where the documentation site takes it from.
"""

from collections.abc import Iterator
from concurrent.futures import Future

import execute
import pytest

Copies = dict[str, "Future[str]"]


@pytest.fixture(scope="module")
def copies(request: pytest.FixtureRequest) -> Iterator[Copies]:
    """The notebooks that are asked for, some of them side by side."""
    chosen = [item.callspec for item in request.session.items if hasattr(item, "callspec")]
    names = [entry.params["notebook"] for entry in chosen if "notebook" in entry.params]
    with execute.copies_of(names) as copies:
        yield copies


def test_the_notebooks_are_there() -> None:
    assert len(execute.notebook_names()) > 20


@pytest.mark.parametrize("notebook", execute.notebook_names())
def test_notebook(notebook: str, copies: Copies) -> None:
    assert not copies[notebook].result()
    assert execute.is_current(notebook)
