"""Turn the notebooks of nbs/, and the project's other texts, into pages for Sphinx.

A notebook whose name begins with a number documents a module: what it exports is shown as a
reference with the source beneath it. The others are shown as they are. A folder whose name begins
with a number is a room: its `index.ipynb` heads a section of the reference. Directives of a cell:
`#| hide` leaves it out, `#| echo: false` its code, `#| fig-alt: ...` says what its picture shows.
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

# Sections of the reference where numbered notebooks lie at the top of nbs/, without rooms.
LAYERS = {
    "0": ("data", "Data", "From a CSV and a folder of images to batches."),
    "1": ("network", "Network", "Blocks, the model that they grow into, and its training."),
    "2": ("search", "Search", "What is tried, what is decided, and who trains."),
    "3": (
        "people",
        "What people see",
        "Progress, runs on disk, reports, the dashboard's pictures.",
    ),
    "4": ("ways_in", "Ways in", "The command line and the dashboard."),
}
FOLDERS = {
    "start": "Start",
    "tutorials": "Tutorials",
    "how": "How it works",
    "project": "Project",
}
TEXTS = {"CHANGELOG.md": "project/changelog", "CONTRIBUTING.md": "project/contributing"}


@dataclass
class Site:
    """Everything that pages refer to."""

    modules: dict[str, reference.Module]
    names: dict[str, str]  # Name, short or full -> full name
    pages: dict[str, str]  # Notebook within nbs/, without ending -> page
    exports: dict[str, str]  # Notebook -> module that it exports
    rooms: dict[str, list[str]]  # Folder, e.g. `01_data` -> its notebooks in reading order


def read_site() -> Site:
    """What there is to be told of."""
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
    """The page of a notebook: its name without numbers, in the folder of its room or layer."""
    parts = [structure.without_number(part) for part in notebook.split("/")]
    if not notebook[0].isdigit():
        return "/".join(parts)
    if len(parts) == 1 and not structure.room_folders():
        parts.insert(0, LAYERS[notebook[0]][0])
    return "/".join(["api", *parts])


def write_pages(target: Path) -> None:
    """Write all sources of the site."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "docs/screenshots", target / "screenshots")
    site = read_site()
    for notebook, page in site.pages.items():
        path = target / f"{page}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = json.loads(execute.copy_of(notebook).read_text(encoding="utf-8"))
        cells = cells_of(site, notebook, kept["cells"])
        cells += contents(site) if notebook == "index" else []
        folder = posixpath.dirname(notebook)
        cells += room_contents(site, folder) if notebook == f"{folder}/index" else []
        numbered = [{**cell, "id": f"cell-{number}"} for number, cell in enumerate(cells)]
        made = {**kept, "cells": numbered, "metadata": METADATA}
        path.write_text(json.dumps(made), encoding="utf-8")
    for path, text in {**api_pages(site), **texts()}.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text, encoding="utf-8")


METADATA = {
    "kernelspec": {"display_name": "python3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cells_of(site: Site, notebook: str, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells of a page."""
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
    """A cell of prose."""
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def folded(summary: str, code: str) -> dict[str, Any]:
    """Code that is there for those who open it."""
    head = f"```{{raw}} html\n<details><summary>{summary}</summary>\n```"
    return markdown(f"{head}\n\n```python\n{code}\n```\n\n```{{raw}} html\n</details>\n```")


def shown(
    source: str, directives: dict[str, str], outputs: list[dict[str, Any]], where: str
) -> list[dict[str, Any]]:
    """A cell with its outputs; one that only tests is folded."""
    outputs = [shown_output(output) for output in outputs if not is_widget(output)]
    if not outputs and is_test(source):
        return [folded("Tests", source)]
    metadata: dict[str, Any] = {}
    if any("image/png" in output.get("data", {}) for output in outputs):
        if not directives.get("fig-alt"):
            raise SystemExit(
                f"{where}: a picture without text for those who cannot see it; begin the cell with "
                "`#| fig-alt: what the picture shows`"
            )
        metadata["mystnb"] = {"image": {"alt": directives["fig-alt"]}}
    if directives.get("echo") == "false":
        metadata["tags"] = ["remove-input"]
    made = {"cell_type": "code", "metadata": metadata, "source": source, "outputs": outputs}
    return [{**made, "execution_count": None}]


def is_widget(output: dict[str, Any]) -> bool:
    """A widget needs a kernel; the site has none."""
    return any("widget-view" in kind for kind in output.get("data", {}))


def shown_output(output: dict[str, Any]) -> dict[str, Any]:
    """An output without the text that stands for its picture."""
    data = output.get("data", {})
    if "image/png" in data:
        return {**output, "data": {"image/png": data["image/png"]}}
    return output


def is_test(source: str) -> bool:
    """Whether a cell ends in a test; one with a magic command does not count."""
    try:
        tree = ast.parse(source).body
    except SyntaxError:
        return False
    calls = [node for node in ast.walk(ast.Module(tree[-1:], [])) if isinstance(node, ast.Call)]
    return any(ast.unparse(call.func).startswith("test_") for call in calls)


def exported(site: Site, name: str, source: str) -> list[dict[str, Any]]:
    """The reference of what a cell exports to a module, and its source."""
    module = site.modules[name]
    nodes = ast.parse(source).body
    if all(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes):
        return []
    public = module.top_level()
    names = [name for node in nodes for name in reference.defined_by(node) if name in public]
    message = [reference.describe(module, name, lambda text: linked(site, text)) for name in names]
    return [
        *map(markdown, message),
        folded("Source" if names else "Source of what is used above", source),
    ]


def prose(site: Site, notebook: str, text: str) -> str:
    """Markdown with links to pages and from `names`; a lone link to a text becomes that text."""
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

    def placed(part: str) -> str:
        part = part.replace(f"]({SCREENSHOTS}/", "](/screenshots/")
        return linked(site, NOTEBOOK_LINK.sub(to_page, part))

    return "".join(part if part.startswith("```") else placed(part) for part in parts)


def linked(site: Site, text: str) -> str:
    """Text in which `names` of the package are links, headings apart."""

    def link(match: "re.Match[str]") -> str:
        full = site.names.get(match[1])
        return f"{{py:obj}}`{match[1]}{match[2] or ''} <{full}>`" if full else match[0]

    lines = text.split("\n")
    return "\n".join(line if line.startswith("#") else BACKTICKED.sub(link, line) for line in lines)


def contents(site: Site) -> list[dict[str, Any]]:
    """What the side bar lists."""
    loose = [page for page in site.pages.values() if "/" not in page and page != "index"]
    message = []
    for folder, title in FOLDERS.items():
        pages = [page for page in site.pages.values() if page.startswith(f"{folder}/")]
        pages += loose if folder == "start" else []
        if folder == "project":
            message.append(toctree("Reference", ["api/index", *reference_pages(site)]))
            pages += [*TEXTS.values(), "project/data", "project/citing"]
        message.append(toctree(title, pages))
    return [markdown(text) for text in message]


def reference_pages(site: Site) -> list[str]:
    """What the side bar lists of the reference: modules outside of rooms, then each room."""
    if not site.rooms:
        return []  # api/index lists the layers
    loose = [site.pages[notebook] for notebook in site.exports if "/" not in notebook]
    return [*loose, *(site.pages[f"{folder}/index"] for folder in site.rooms)]


def room_contents(site: Site, folder: str) -> list[dict[str, Any]]:
    """What ends the overview page of a room: the names that it offers, and its pages."""
    room = structure.without_number(folder)
    cells = []
    if (ROOT / structure.PACKAGE / room / "__init__.pyi").is_file():
        cells.append(
            f"## What `space_warps.{room}` offers\n\n| name | says |\n|---|---|\n{offered(site, room)}"
        )
    pages = [site.pages[name] for name in site.rooms[folder] if name != f"{folder}/index"]
    return [markdown(text) for text in [*cells, toctree("", pages)]]


def toctree(caption: str, pages: list[str]) -> str:
    """A part of the side bar."""
    title = f":caption: {caption}\n" if caption else ""
    listed = "\n".join(f"/{page}" for page in pages)
    return f"```{{toctree}}\n:hidden:\n{title}\n{listed}\n```"


def api_pages(site: Site) -> dict[str, str]:
    """The entry to the reference, and, without rooms, a page for each layer."""
    if site.rooms:
        return {"api/index.md": room_table(site)}
    result, rows = {}, []
    for number, (folder, title, message) in LAYERS.items():
        modules = {
            name: page
            for name, page in site.pages.items()
            if page.startswith(f"api/{folder}/") and name.startswith(number)
        }
        if modules:
            table = "\n".join(f"| {module_row(name, page)} |" for name, page in modules.items())
            result[f"api/{folder}/index.md"] = (
                f"# {title}\n\n{message}\n\n| module | says |\n|---|---|\n{table}\n\n"
                + toctree("", list(modules.values()))
            )
            rows.append(f"| [{title}]({folder}/index.md) | {message} |")
    layers = "\n".join(rows)
    pages = [path.removesuffix(".md") for path in result]
    result["api/index.md"] = (
        "# Reference\n\n"
        "Each module is a page that tells why it is needed, shows it at work and holds its tests. "
        "A page builds only on those of layers above it in this table, and on earlier ones of its "
        f"own.\n\n| layer | says |\n|---|---|\n{layers}\n\n"
        "## What `import space_warps` offers\n\n"
        f"| name | says |\n|---|---|\n{offered(site)}\n\n" + toctree("", pages)
    )
    return result


def room_table(site: Site) -> str:
    """The entry to the reference: a row for each room, and the names that the package offers."""
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
        "Each module is a page that says why it is needed, shows it at work and holds its tests. "
        "Modules that belong together form a sub-package. A module imports only from "
        "sub-packages above its own in this table, and from earlier pages of its own.\n\n"
        f"| sub-package | says |\n|---|---|\n{table}\n\n"
        "## What `import space_warps` offers\n\n"
        f"| name | says |\n|---|---|\n{offered(site)}\n"
    )


def module_row(name: str, page: str) -> str:
    """A module with the first sentence of its page."""
    cells = json.loads(execute.copy_of(name).read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    message = re.search(r"^> (.*)$", text, re.MULTILINE)
    title = posixpath.basename(page)
    return f"[{title}]({title}.ipynb) | {message[1] if message else ''}"


def offered(site: Site, package: str = "") -> str:
    """A line for each public name of the package, or of a room."""
    rows = []
    for name, source in structure.stub_names(package).items():
        module = site.modules[source]
        message = reference.docstring(module.top_level()[name])
        rows.append(f"| {{py:obj}}`{name} <{module.full_name}.{name}>` | {linked(site, message)} |")
    return "\n".join(sorted(rows, key=str.lower))


def texts() -> dict[str, str]:
    """Pages that are texts of the repository."""
    result = {f"{page}.md": (ROOT / name).read_text("utf-8") for name, page in TEXTS.items()}
    data = (ROOT / "data/README.md").read_text(encoding="utf-8")
    return {**result, "project/data.md": data, "project/citing.md": citation()}


def citation() -> str:
    """How to cite, from CITATION.cff."""
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
        f"The same for programs, as `CITATION.cff` in the repository:\n\n```yaml\n{text}```\n"
    )
