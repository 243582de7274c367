"""A module imports only from rooms with lower numbers and from earlier pages of its own, by name."""

import json
from pathlib import Path

import pytest
import structure
from structure import Import, Page

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK_TOOLS = ("nbdev", "fastcore", "execnb")


def import_fault(page: Page, one: Import, pages: dict[str, Page]) -> str:
    """Why an import of a page's module is not allowed; empty if it is."""
    if "*" in one.names:
        return f"imports * from {one.module}"
    if one.module.split(".")[0] in NOTEBOOK_TOOLS:
        return f"imports {one.module}, a tool for notebooks"
    if not one.is_internal:
        return ""
    other = pages.get(one.module.removeprefix("space_warps."))
    if other is None:
        return f"imports {one.module}, which no notebook exports: import from a module"
    if other.number < page.number:
        return ""
    return f"imports {other.notebook}, which does not come before it"


def faults(root: Path) -> list[str]:
    """All violations of the layout of notebooks and modules."""
    pages = structure.read_pages(root)
    imports = structure.read_imports(root)
    exported = {page.notebook: page.module for page in pages.values()}
    result = [f"{name}.py: no notebook exports it" for name in imports.keys() - pages.keys()]
    for path in structure.notebook_paths(root):
        notebook = path.relative_to(root / "nbs").with_suffix("").as_posix()
        if exported.get(notebook) != structure.module_of(notebook):
            result.append(f"{notebook}: default_exp is not {structure.module_of(notebook)}")
    for folder in structure.room_folders(root):
        if not (root / f"nbs/{folder}/index.ipynb").is_file():
            result.append(f"{folder}: no overview page, index.ipynb")
        for ending in ("py", "pyi"):
            room = structure.without_number(folder)
            if not (root / f"space_warps/{room}/__init__.{ending}").is_file():
                result.append(f"{folder}: no space_warps/{room}/__init__.{ending}")
    for name, page in pages.items():
        for one in imports.get(name, []):
            if fault := import_fault(page, one, pages):
                result.append(f"{page.notebook}: {fault}")
    return result


def test_modules_import_only_from_earlier_pages() -> None:
    assert len(structure.read_pages(ROOT)) > 40
    assert sum(map(len, structure.internal_imports(ROOT).values())) > 100
    assert not faults(ROOT)


def write_tree(root: Path, modules: dict[str, str]) -> None:
    """Notebooks and the modules that they export: path within nbs/ -> source."""
    for notebook, source in modules.items():
        module = structure.module_of(notebook)
        cells = [
            {"cell_type": "code", "source": f"#| default_exp {module}"},
            {"cell_type": "markdown", "source": "# Title\n\n> Summary."},
        ]
        path = root / f"nbs/{notebook}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
        file = root / f"space_warps/{module.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
        if "/" in notebook:
            (path.parent / "index.ipynb").write_text(json.dumps({"cells": cells[1:]}))
            for ending in ("py", "pyi"):
                (file.parent / f"__init__.{ending}").touch()


TREE = {
    "00_core": "import json\n",
    "01_sky/01_lists": "from ..core import InputError\n",
    "01_sky/02_photos": "from .lists import read\nfrom space_warps.core import InputError\n",
    "02_nets/01_net": "from ..sky.photos import decode\n",
}


def test_a_tree_in_order_is_accepted(tmp_path: Path) -> None:
    write_tree(tmp_path, TREE)
    assert not faults(tmp_path)
    assert sum(map(len, structure.internal_imports(tmp_path).values())) == 4


@pytest.mark.parametrize(
    ("notebook", "source", "fault"),
    [
        ("01_sky/01_lists", "from .photos import decode", "imports 01_sky/02_photos"),
        ("01_sky/02_photos", "from ..nets.net import Net", "imports 02_nets/01_net"),
        ("01_sky/02_photos", "import space_warps.nets.net", "02_nets/01_net"),
        ("00_core", "from .sky.lists import read", "imports 01_sky/01_lists"),
        ("00_core", "def f():\n    from .nets.net import build", "imports 02_nets/01_net"),
        ("02_nets/01_net", "from ..core import *", "imports * from space_warps.core"),
        ("02_nets/01_net", "from .. import core", "imports space_warps, which no"),
        ("02_nets/01_net", "import space_warps", "imports space_warps, which no"),
        ("02_nets/01_net", "from ..sky import read", "imports space_warps.sky, which no"),
        ("01_sky/02_photos", "from . import lists", "imports space_warps.sky, which no"),
        ("02_nets/01_net", "import execnb.shell", "a tool for notebooks"),
        ("02_nets/01_net", "from fastcore.test import test_eq", "a tool for notebooks"),
    ],
)
def test_a_violation_is_found(tmp_path: Path, notebook: str, source: str, fault: str) -> None:
    write_tree(tmp_path, {**TREE, notebook: f"{source}\n"})
    (result,) = faults(tmp_path)
    assert result.startswith(f"{notebook}: ") and fault in result


def test_a_notebook_that_exports_another_module_is_found(tmp_path: Path) -> None:
    write_tree(tmp_path, TREE)
    first = tmp_path / "nbs/01_sky/01_lists.ipynb"
    first.write_text(first.read_text().replace("lists", "tables"))
    assert any("01_sky/01_lists: default_exp is not" in fault for fault in faults(tmp_path))


@pytest.mark.parametrize("missing", ["nbs/01_sky/index.ipynb", "space_warps/sky/__init__.pyi"])
def test_a_room_without_overview_or_names_is_found(tmp_path: Path, missing: str) -> None:
    write_tree(tmp_path, TREE)
    (tmp_path / missing).unlink()
    (result,) = faults(tmp_path)
    assert result.startswith("01_sky: no ") and Path(missing).name in result
