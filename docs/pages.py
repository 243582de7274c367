"""Convert the notebooks of nbs/ and the project's other texts to pages for Sphinx.

A numbered notebook documents a module: exported cells become reference entries with folded source.
A numbered folder is a room, a section of the reference with `index.ipynb` as its overview page.
Directives of a cell: `#| hide` omits it, `#| echo: false` omits its code, `#| fig-alt: ...` is the
text alternative of its figure.
"""

import ast
import json
import posixpath
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import execute
import reference
import structure
import yaml

ROOT = Path(__file__).resolve().parent.parent
DIRECTIVE = re.compile(r"^#\|\s*([\w-]+):?[ \t]*(.*)\n?", re.MULTILINE)
BACKTICKED = re.compile(r"(?<![`\[}\w])`([A-Za-z_][\w.]*)(\(\))?`(?![`\]])")
NOTEBOOK_LINK = re.compile(r"\]\(([\w./-]+)\.ipynb(#[\w-]+)?\)")
SCREENSHOTS = "../../docs/screenshots"  # Seen from a page in a folder of nbs/
TEXT_LINK = re.compile(r"\[[^\]]*\]\(([\w./-]+\.md)\)")

FOLDERS = {
    "start": "Start",
    "tutorials": "Tutorials",
    "how": "How it works",
    "project": "Project",
}
TEXTS = {"CHANGELOG.md": "project/changelog", "CONTRIBUTING.md": "project/contributing"}


@dataclass
class Site:
    """Names and pages that links refer to."""

    modules: dict[str, reference.Module]
    names: dict[str, str]  # Any way to write a name -> full name
    pages: dict[str, str]  # Notebook within nbs/, without suffix -> page
    exports: dict[str, str]  # Notebook -> module that it exports
    rooms: dict[str, list[str]]  # Folder, e.g. `01_data` -> its notebooks in reading order


def read_site() -> Site:
    """Read the package and the list of notebooks."""
    modules = reference.read_package()
    pages = {name: page_of(name) for name in execute.notebook_names()}
    exports = {page.notebook: page.module for page in structure.read_pages().values()}
    rooms = {
        folder: [name for name in pages if posixpath.dirname(name) == folder]
        for folder in structure.room_folders()
    }
    for folder, names in rooms.items():
        if f"{folder}/index" not in names:
            raise SystemExit(f"nbs/{folder}: a room needs an overview page, index.ipynb")
        names.sort(key=lambda name: (not name.endswith("/index"), name))
    return Site(modules, reference.all_names(modules), pages, exports, rooms)


def page_of(notebook: str) -> str:
    """Path of a notebook's page: without numbers; numbered notebooks are in api/."""
    parts = [structure.without_number(part) for part in notebook.split("/")]
    if not notebook[0].isdigit():
        return "/".join(parts)
    return "/".join(["api", *parts])


def write_pages(target: Path) -> None:
    """Write all sources of the site to a folder."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "docs/screenshots", target / "screenshots")
    site = read_site()
    for notebook, page in site.pages.items():
        path = target / f"{page}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        executed = json.loads(execute.copy_of(notebook).read_text(encoding="utf-8"))
        cells = cells_of(site, notebook, executed["cells"])
        cells += contents(site) if notebook == "index" else []
        folder = posixpath.dirname(notebook)
        cells += room_contents(site, folder) if notebook == f"{folder}/index" else []
        numbered = [{**cell, "id": f"cell-{number}"} for number, cell in enumerate(cells)]
        content = {**executed, "cells": numbered, "metadata": METADATA}
        path.write_text(json.dumps(content), encoding="utf-8")
    for path, text in {"api/index.md": reference_index(site), **texts()}.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text, encoding="utf-8")


METADATA = {
    "kernelspec": {"display_name": "python3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cells_of(site: Site, notebook: str, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Convert the cells of a notebook to those of its page."""
    result: list[dict[str, Any]] = []
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            result.append(markdown(prose(site, notebook, source)))
            continue
        directives = dict(DIRECTIVE.findall(source))
        source = DIRECTIVE.sub("", source).strip("\n")
        if directives.keys() & {"export", "exporti"}:
            module = directives.get("export") or directives.get("exporti")
            result += exported(site, module or site.exports[notebook], source)
        elif not directives.keys() & {"hide", "default_exp"}:
            where = f"nbs/{notebook}.ipynb, cell {number}"
            result += shown(source, directives, cell["outputs"], where)
    return result


def markdown(text: str) -> dict[str, Any]:
    """A Markdown cell."""
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def folded(summary: str, code: str) -> dict[str, Any]:
    """Code in a section that readers can unfold."""
    head = f"```{{raw}} html\n<details><summary>{summary}</summary>\n```"
    return markdown(f"{head}\n\n```python\n{code}\n```\n\n```{{raw}} html\n</details>\n```")


def shown(
    source: str, directives: dict[str, str], outputs: list[dict[str, Any]], where: str
) -> list[dict[str, Any]]:
    """Convert a code cell; a test without output is folded, a displayed table becomes prose."""
    outputs = [shown_output(output) for output in outputs if not is_widget(output)]
    if not outputs and is_test(source):
        return [folded("Tests", source)]
    tables = [output.get("data", {}).get("text/markdown") for output in outputs]
    if tables and all(tables) and directives.get("echo") == "false":
        return [markdown("".join(table)) for table in tables]
    metadata: dict[str, Any] = {}
    if any("image/png" in output.get("data", {}) for output in outputs):
        if not directives.get("fig-alt"):
            raise SystemExit(
                f"{where}: a figure without a text alternative; begin the cell with "
                "`#| fig-alt: what the figure shows`"
            )
        metadata["mystnb"] = {"image": {"alt": directives["fig-alt"]}}
    if directives.get("echo") == "false":
        metadata["tags"] = ["remove-input"]
    cell = {"cell_type": "code", "metadata": metadata, "source": source, "outputs": outputs}
    return [{**cell, "execution_count": None}]


def is_widget(output: dict[str, Any]) -> bool:
    """Whether an output is a widget, which needs a kernel."""
    return any("widget-view" in kind for kind in output.get("data", {}))


def shown_output(output: dict[str, Any]) -> dict[str, Any]:
    """An output; of a figure, only the image."""
    data = output.get("data", {})
    if "image/png" in data:
        return {**output, "data": {"image/png": data["image/png"]}}
    return output


def is_test(source: str) -> bool:
    """Whether a cell ends with a test; false for cells with magic commands."""
    try:
        tree = ast.parse(source).body
    except SyntaxError:
        return False
    calls = [node for node in ast.walk(ast.Module(tree[-1:], [])) if isinstance(node, ast.Call)]
    return any(ast.unparse(call.func).startswith("test_") for call in calls)


def exported(site: Site, name: str, source: str) -> list[dict[str, Any]]:
    """Reference entries of the names that a cell exports, and its source."""
    module = site.modules[name]
    nodes = ast.parse(source).body
    if all(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes):
        return []
    public = module.top_level()
    names = [name for node in nodes for name in reference.defined_by(node) if name in public]
    entries = [reference.describe(module, name, lambda text: linked(site, text)) for name in names]
    return [
        *map(markdown, entries),
        folded("Source" if names else "Source of private names", source),
    ]


def prose(site: Site, notebook: str, text: str) -> str:
    """Markdown with links to pages and names; a cell with only a link to a text becomes it."""
    alone = TEXT_LINK.fullmatch(text.strip())
    if alone:
        path = ROOT / "nbs" / posixpath.dirname(notebook) / alone[1]
        return path.read_text(encoding="utf-8").split("\n", 1)[1]
    parts = re.split(r"(?ms)(^```.*?^```[ \t]*$)", text)
    folder, here = posixpath.dirname(notebook), posixpath.dirname(site.pages[notebook])

    def to_page(match: "re.Match[str]") -> str:
        other = site.pages.get(posixpath.normpath(posixpath.join(folder, match[1])))
        if other is None:
            raise SystemExit(f"nbs/{notebook}.ipynb: no notebook {match[1]}.ipynb to link to")
        return f"]({posixpath.relpath(other, here or '.')}.ipynb{match[2] or ''})"

    def with_links(part: str) -> str:
        part = part.replace(f"]({SCREENSHOTS}/", "](/screenshots/")
        return linked(site, NOTEBOOK_LINK.sub(to_page, part))

    return "".join(part if part.startswith("```") else with_links(part) for part in parts)


def linked(site: Site, text: str) -> str:
    """Text with links from `names` of the package, except in headings."""

    def link(match: "re.Match[str]") -> str:
        full = site.names.get(match[1])
        return f"{{py:obj}}`{match[1]}{match[2] or ''} <{full}>`" if full else match[0]

    lines = text.split("\n")
    return "\n".join(line if line.startswith("#") else BACKTICKED.sub(link, line) for line in lines)


def contents(site: Site) -> list[dict[str, Any]]:
    """Contents of the side bar."""
    loose = [page for page in site.pages.values() if "/" not in page and page != "index"]
    trees = []
    for folder, title in FOLDERS.items():
        pages = [page for page in site.pages.values() if page.startswith(f"{folder}/")]
        pages += loose if folder == "start" else []
        if folder == "project":
            trees.append(toctree("Reference", ["api/index", *reference_pages(site)]))
            pages += [*TEXTS.values(), "project/data", "project/citing"]
        trees.append(toctree(title, pages))
    return [markdown(tree) for tree in trees]


def reference_pages(site: Site) -> list[str]:
    """Pages of the reference in the side bar: modules outside of rooms, then each room."""
    loose = [site.pages[notebook] for notebook in site.exports if "/" not in notebook]
    return [*loose, *(site.pages[f"{folder}/index"] for folder in site.rooms)]


def room_contents(site: Site, folder: str) -> list[dict[str, Any]]:
    """End of a room's overview page: its public names and its pages."""
    room = structure.without_number(folder)
    cells = []
    if (ROOT / structure.PACKAGE / room / "__init__.pyi").is_file():
        cells.append(
            f"## Public names of `space_warps.{room}`\n\n| name | description |\n|---|---|\n"
            + public_names(site, room)
        )
    pages = [site.pages[name] for name in site.rooms[folder] if name != f"{folder}/index"]
    return [markdown(text) for text in [*cells, toctree("", pages)]]


def toctree(caption: str, pages: list[str]) -> str:
    """A section of the side bar."""
    title = f":caption: {caption}\n" if caption else ""
    listed = "\n".join(f"/{page}" for page in pages)
    return f"```{{toctree}}\n:hidden:\n{title}\n{listed}\n```"


def reference_index(site: Site) -> str:
    """First page of the reference: a row for each room, and the public names of the package."""
    notebooks = [notebook for notebook in site.exports if "/" not in notebook]
    notebooks += [f"{folder}/index" for folder in site.rooms]
    rows = []
    for notebook in notebooks:
        title, summary = structure.heading_of(ROOT / f"nbs/{notebook}.ipynb")
        link = f"{posixpath.relpath(site.pages[notebook], 'api')}.ipynb"
        rows.append(f"| [{title}]({link}) | {linked(site, summary)} |")
    table = "\n".join(rows)
    return (
        "# Reference\n\n"
        "Each module has a page with its purpose, examples, reference and tests. Modules that belong "
        "together form a sub-package. A module imports only from sub-packages above its own in this "
        "table, and from earlier pages of its own.\n\n"
        f"| sub-package | contents |\n|---|---|\n{table}\n\n"
        "## Public names of `space_warps`\n\n"
        f"| name | description |\n|---|---|\n{public_names(site)}\n"
    )


def public_names(site: Site, package: str = "") -> str:
    """A table row for each public name of the package, or of a room."""
    rows = []
    for name, source in structure.stub_names(package).items():
        module = site.modules[source]
        text = linked(site, reference.docstring(module.top_level()[name]))
        rows.append(f"| {{py:obj}}`{name} <{module.full_name}.{name}>` | {text} |")
    return "\n".join(sorted(rows, key=str.lower))


def texts() -> dict[str, str]:
    """Pages from other texts of the repository."""
    result = {f"{page}.md": (ROOT / name).read_text("utf-8") for name, page in TEXTS.items()}
    data = (ROOT / "data/README.md").read_text(encoding="utf-8")
    return {**result, "project/data.md": data, "project/citing.md": citation()}


def citation() -> str:
    """The page on citing, from CITATION.cff."""
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    facts = yaml.safe_load(text)
    authors = " and ".join(f"{{{item['name']}}}" for item in facts["authors"])
    entry = {
        "title": f"{{{facts['title']}}}",
        "author": authors,
        "version": facts["version"],
        "license": facts["license"],
    }
    lines = ",\n".join(f"  {key:7} = {{{value}}}" for key, value in entry.items())
    return (
        f"# How to cite\n\n{facts['message']} Give the version: a run writes it to "
        "`environment.json`.\n\n"
        f"```bibtex\n@software{{space_warps,\n{lines}\n}}\n```\n\n"
        f"The same in machine-readable form, `CITATION.cff` in the repository:\n\n```yaml\n{text}```\n"
    )
