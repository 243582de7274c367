"""Every benchmark script imports what exists, and its options are current."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.mark.parametrize("script", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_a_script_can_be_imported(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    assert importlib.import_module(script).__doc__


def test_options_of_the_recipe_are_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    recipe = importlib.import_module("recipe")
    options = recipe.choices()
    assert len(set(map(repr, options.values()))) == len(options)
