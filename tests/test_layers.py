"""A module imports only from notebooks with lower numbers, by name."""

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def layers() -> dict[str, str]:
    """Module -> number of its notebook, e.g. `catalogue` -> `01c`."""
    found = {}
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        number, name = path.stem.split("_", 1)
        found[name] = number
    return found


def imports_of(path: Path) -> list[tuple[str, list[str]]]:
    """Modules of the package that a module imports, with the names it takes."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            found.append(("." * node.level + (node.module or ""), names))
        elif isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
    return found


def test_every_notebook_exports_the_module_of_its_name() -> None:
    for name, number in layers().items():
        cells = json.loads((ROOT / f"nbs/{number}_{name}.ipynb").read_text())["cells"]
        first = "".join(cells[0]["source"])
        assert re.search(rf"^#\| default_exp {name}$", first, re.M), f"{number}_{name}: {first}"
        assert (ROOT / f"space_warps/{name}.py").is_file()


def test_modules_import_from_lower_layers_only() -> None:
    numbers = layers()
    for name, number in numbers.items():
        for module, taken in imports_of(ROOT / f"space_warps/{name}.py"):
            assert "*" not in taken, f"{name} imports * from {module}"
            assert module not in (".", "space_warps"), f"{name} imports the package, not a module"
            if module.startswith((".", "space_warps.")):  # nbdev writes the short form
                other = module.removeprefix("space_warps").split(".")[1]
                assert numbers[other] < number, f"{number}_{name} imports {numbers[other]}_{other}"


def test_exported_code_needs_no_tool_of_the_workshop() -> None:
    for name in layers():
        for module, _ in imports_of(ROOT / f"space_warps/{name}.py"):
            assert module.split(".")[0] not in ("nbdev", "fastcore", "execnb")
