"""Layout of the package: which notebook exports which module, and what a module imports.

A room is a folder of notebooks, `nbs/01_data`, and the sub-package that they export,
`space_warps/data`. Numbers of rooms and of the pages in them give the reading order.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "space_warps"
NUMBERED = re.compile(r"(\d\w*?)_(?=[^\W\d])")  # `01_data` and `02_images`
DEFAULT_EXP = re.compile(r"^#\|\s*default_exp[ \t]+([\w.]+)", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """A notebook that exports a module."""

    notebook: str  # Within nbs/, without ending, e.g. `01_data/02_images`
    module: str  # Within the package, e.g. `data.images`
    number: tuple[str, ...]  # Of its folder and of itself, e.g. `("01", "02")`
    title: str
    summary: str  # The sentence after `>` below the title

    @property
    def room(self) -> str:
        """Sub-package of the module, e.g. `data`; empty at the top of the package."""
        return self.module.rpartition(".")[0]


@dataclass(frozen=True)
class Import:
    """An import statement, with the full name of its module."""

    module: str  # e.g. `space_warps.data.images`, `torch.nn`
    names: tuple[str, ...]  # Empty for `import module`

    @property
    def is_internal(self) -> bool:
        """Whether it names the package or a part of it."""
        return f"{self.module}.".startswith(f"{PACKAGE}.")


def cells_of(path: Path) -> list[str]:
    """Sources of a notebook's cells."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells]


def heading_of(path: Path) -> tuple[str, str]:
    """Title of a notebook and its `>` summary; empty if missing."""
    text = "\n".join(cells_of(path))
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    summary = re.search(r"^> (.+)$", text, re.MULTILINE)
    return title[1] if title else "", summary[1] if summary else ""


def without_number(name: str) -> str:
    """Name of a notebook or folder without its number."""
    match = NUMBERED.match(name)
    return name[match.end() :] if match else name


def module_of(notebook: str) -> str:
    """Module that a notebook must export, from its path within nbs/."""
    return ".".join(without_number(part) for part in notebook.split("/"))


def number_of(notebook: str) -> tuple[str, ...]:
    """Numbers of a notebook's folders and of itself, the reading order of pages."""
    matches = (NUMBERED.match(part) for part in notebook.split("/"))
    return tuple(match[1] if match else "" for match in matches)


def notebook_paths(root: Path) -> list[Path]:
    """Numbered notebooks at the top of nbs/ and in its rooms."""
    notebooks = root / "nbs"
    return [
        *sorted(notebooks.glob("[0-9]*.ipynb")),
        *sorted(notebooks.glob("[0-9]*_*/[0-9]*.ipynb")),
    ]


def room_folders(root: Path = ROOT) -> list[str]:
    """Folders of notebooks that are rooms, in reading order, e.g. `01_data`."""
    paths = (path for path in (root / "nbs").glob("[0-9]*_*") if path.is_dir())
    return sorted(path.name for path in paths if any(path.glob("*.ipynb")))


def read_pages(root: Path = ROOT) -> dict[str, Page]:
    """Pages that export a module, by module, in reading order."""
    pages = []
    for path in notebook_paths(root):
        exported = DEFAULT_EXP.search("\n".join(cells_of(path)))
        if exported:
            notebook = path.relative_to(root / "nbs").with_suffix("").as_posix()
            number = number_of(notebook)
            pages.append(Page(notebook, exported[1], number, *heading_of(path)))
    return {page.module: page for page in sorted(pages, key=lambda page: page.number)}


def module_paths(root: Path = ROOT) -> dict[str, Path]:
    """Files of the package's modules, by name within the package, e.g. `data.images`."""
    package = root / PACKAGE
    paths = {path.relative_to(package).with_suffix(""): path for path in package.rglob("[a-z]*.py")}
    return {".".join(name.parts): path for name, path in sorted(paths.items())}


def resolve(module: str, node: ast.ImportFrom) -> str:
    """Full name of the module in a `from ... import` of a module of the package."""
    if not node.level:
        return str(node.module)
    parts = f"{PACKAGE}.{module}".split(".")[: -node.level]
    return ".".join([*parts, *([node.module] if node.module else [])])


def imports_of(module: str, tree: ast.Module) -> Iterator[Import]:
    """All imports of a module, including those within functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield Import(resolve(module, node), tuple(alias.name for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (Import(alias.name, ()) for alias in node.names)


def read_imports(root: Path = ROOT) -> dict[str, list[Import]]:
    """Imports of each module of the package, by its name within the package."""
    trees = {name: ast.parse(path.read_text("utf-8")) for name, path in module_paths(root).items()}
    return {name: list(imports_of(name, tree)) for name, tree in trees.items()}


def internal_imports(root: Path = ROOT) -> dict[str, set[str]]:
    """Modules of the package that each module imports, both by name within the package."""
    imports = read_imports(root)
    return {
        name: {one.module.removeprefix(f"{PACKAGE}.") for one in items if one.is_internal}
        & imports.keys()
        for name, items in imports.items()
    }


def rooms_of(pages: Mapping[str, Page]) -> dict[str, str]:
    """Room of each module in reading order; a module at the top of the package is its own."""
    return {module: page.room or module for module, page in pages.items()}


def room_imports(
    rooms: Mapping[str, str], imports: Mapping[str, set[str]]
) -> dict[tuple[str, str], int]:
    """Number of imports between each two different rooms, as (importing, imported)."""
    counts: dict[tuple[str, str], int] = {}
    for module, room in rooms.items():
        for other in sorted(imports[module] & rooms.keys()):
            if rooms[other] != room:
                pair = (room, rooms[other])
                counts[pair] = counts.get(pair, 0) + 1
    return counts


def stub_names(package: str = "", root: Path = ROOT) -> dict[str, str]:
    """Names that `__init__.pyi` of the package or of a room offers, with the module of each.

    A name that the package re-exports from a room is resolved to its module.
    """
    stub = root / PACKAGE / package.replace(".", "/") / "__init__.pyi"
    names = {}
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        for alias in node.names if isinstance(node, ast.ImportFrom) else []:
            module = ".".join(part for part in (package, node.module) if part)
            if (root / PACKAGE / module.replace(".", "/") / "__init__.pyi").is_file():
                module = stub_names(module, root)[alias.name]
            names[alias.asname or alias.name] = module
    return names
