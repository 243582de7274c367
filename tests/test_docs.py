"""The site builds without a warning, its pages work in a browser, and README is up to date."""

import functools
import http.server
import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import execute
import pages
import pytest
import readme
import reference
import torch
from conftest import Tiny
from test_layers import write_tree

from space_warps import __version__
from space_warps.cli.config import Config, known_keys, read_config
from space_warps.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "nbs/index.ipynb"


class Page(HTMLParser):
    """Title, description, links, images and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.description, self.title, self.tag = "", "", ""
        self.links: list[str] = []
        self.sources: list[str] = []
        self.anchors: set[str] = set()
        self.images_without_text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tag = tag
        self.anchors |= {attributes[name] for name in ("id", "name") if name in attributes}
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag in ("img", "script", "iframe") and "src" in attributes:
            self.sources.append(attributes["src"])
        if tag == "link" and attributes.get("rel") in ("stylesheet", "icon", "preload"):
            self.sources.append(attributes["href"])
        if tag == "img" and not attributes.get("alt"):
            self.images_without_text.append(attributes.get("src", ""))
        if tag == "meta" and attributes.get("name") == "description":
            self.description = attributes["content"]

    def handle_data(self, data: str) -> None:
        if self.tag == "title" and not self.title:
            self.title = data.strip()


@pytest.fixture(scope="module")
def site() -> Path:
    """The site, built once; up-to-date executed copies of notebooks are reused."""
    done = subprocess.run(
        [sys.executable, "docs/build.py"], cwd=ROOT, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return ROOT / "_docs/html"


@pytest.fixture(scope="module")
def parsed(site: Path) -> dict[Path, Page]:
    """Every page of the site."""
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Address of the site, served over loopback."""
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_notebook_has_a_page(site: Path) -> None:
    names = execute.notebook_names()
    assert {f"start/{n}" for n in ("1_install", "2_first_search")} < set(names)
    for name in names:
        assert (site / f"{pages.page_of(name)}.html").is_file(), name


def test_pages_have_a_title_a_description_and_image_texts(parsed: dict[Path, Page]) -> None:
    for path, page in parsed.items():
        assert f"space_warps {__version__}" in page.title and len(page.title) < 90, path
        assert 20 <= len(page.description) <= 200, (path, page.description)
        assert not page.images_without_text, (path, page.images_without_text)


def test_links_within_the_site_exist(site: Path, parsed: dict[Path, Page]) -> None:
    for path, page in parsed.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            address, _, anchor = link.partition("#")
            target = (path.parent / address).resolve() if address else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (path.relative_to(site), link)
            if anchor and target in parsed:
                assert anchor in parsed[target].anchors, (path.relative_to(site), link)


def test_pages_load_nothing_from_other_sites(parsed: dict[Path, Page]) -> None:
    for path, page in parsed.items():
        assert not [s for s in page.sources if re.match(r"([a-z]+:)?//", s)], path


def test_reference_shows_comments_types_and_source(site: Path) -> None:
    text = (site / "api/search/search.html").read_text(encoding="utf-8")
    shown = re.sub(r"<[^>]+>", "", text)
    assert "Ignored by a resumed search" in shown
    assert "tuple[ProgressiveModel, SearchHistory]" in shown
    name = r"space_warps\.search\.history\.SearchHistory"
    assert re.search(rf'href="[^"]*history\.html#{name}"', text)
    assert re.search(r"https://github\.com/[^\"]*/space_warps/search/search\.py#L\d+-L\d+", text)


def test_pages_follow_rooms() -> None:
    assert pages.page_of("how/1_growth") == "how/growth"
    assert pages.page_of("01_sky/02_photos") == "api/sky/photos"
    assert pages.page_of("01_sky/index") == "api/sky/index"
    assert pages.page_of("00_core") == "api/core"


def test_names_in_sub_packages_are_resolved(tmp_path: Path) -> None:
    tree = {
        "00_core": "class InputError(Exception): ...\n",
        "01_sky/01_lists": "from ..core import InputError\n\n\ndef read(): ...\n",
        "01_sky/02_photos": "from .lists import read as read_list\n",
        "01_sky/03_books": "import space_warps.sky.lists as lists\n",
    }
    write_tree(tmp_path, tree)
    modules = reference.read_package(tmp_path)
    assert modules["sky.lists"].imported["InputError"] == "space_warps.core.InputError"
    assert modules["sky.photos"].imported["read_list"] == "space_warps.sky.lists.read"
    assert modules["sky.books"].imported["lists"] == "space_warps.sky.lists"
    names = reference.all_names(modules)
    for name in ("read", "sky.read", "space_warps.sky.read", "sky.lists.read"):
        assert names[name] == "space_warps.sky.lists.read", name
    assert reference.lines_of(modules, "space_warps.sky.lists", "read") == (4, 4)


def test_a_figure_without_a_text_alternative_is_refused() -> None:
    figure = [{"output_type": "display_data", "data": {"image/png": ""}, "metadata": {}}]
    with pytest.raises(SystemExit, match="fig-alt"):
        pages.shown("plot()", {}, figure, "nbs/some.ipynb, cell 3")
    cell = pages.shown("plot()", {"fig-alt": "A line."}, figure, "")[0]
    assert cell["metadata"]["mystnb"]["image"]["alt"] == "A line."


def test_a_displayed_table_is_prose() -> None:
    table = [{"output_type": "display_data", "data": {"text/markdown": ["| a |\n", "|---|"]}}]
    (cell,) = pages.shown("display(Markdown(table))", {"echo": "false"}, table, "")
    assert cell == pages.markdown("| a |\n|---|")
    assert pages.shown("display(Markdown(table))", {}, table, "")[0]["cell_type"] == "code"


def test_a_changed_notebook_is_executed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "NOTEBOOKS", tmp_path / "nbs")
    monkeypatch.setattr(execute, "EXECUTED", tmp_path / "executed")
    for folder in ("nbs", "executed"):
        (tmp_path / folder).mkdir()

    def write(source: str) -> None:
        cell = {"cell_type": "code", "source": source, "outputs": [], "metadata": {}}
        (tmp_path / "nbs/a.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}}))

    write("1 + 1")
    executed = {"cells": [], "metadata": {"executed_from": execute.key_of("a")}}
    execute.copy_of("a").write_text(json.dumps(executed))
    assert execute.is_current("a")
    write("1 + 2")
    assert not execute.is_current("a")


def test_pages_open_on_a_phone_without_an_error(
    browser: Any, address: str, site: Path, parsed: dict[Path, Page]
) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    errors: list[str] = []
    page.on(
        "console", lambda message: errors.append(message.text) if message.type == "error" else None
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.extend(failure_of(request)))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((address, "data:")) else errors.append(request.url)
        ),
    )
    for path in parsed:
        response = page.goto(f"{address}/{path.relative_to(site).as_posix()}")
        assert response.ok, path
        assert not errors, (path, errors)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    page.close()


def failure_of(request: Any) -> list[str]:
    """Why a request failed; empty if it was aborted by leaving the page."""
    return [] if "ERR_ABORTED" in request.failure else [f"{request.url}: {request.failure}"]


def test_search_finds_a_page(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/index.html")
    page.get_by_placeholder("Search").first.fill("warm start")
    page.keyboard.press("Enter")
    hit = page.locator("#search-results li a").first
    hit.wait_for(timeout=20_000)
    hit.click()
    page.wait_for_load_state()
    assert "search.html?" not in page.url
    assert "warm start" in page.locator("article").inner_text().lower()
    page.close()


def test_a_click_switches_to_the_dark_theme(browser: Any, address: str) -> None:
    page = browser.new_page(color_scheme="light")
    page.goto(f"{address}/index.html")
    shade = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(shade)
    page.locator("button.theme-toggle:visible").click()
    assert page.locator("body").get_attribute("data-theme") == "dark"
    dark = page.evaluate(shade)
    assert sum(rgb_of(light)) > 600 > 180 > sum(rgb_of(dark))
    page.close()


def rgb_of(colour: str) -> list[int]:
    """Red, green and blue of a CSS colour."""
    return [int(number) for number in re.findall(r"\d+", colour)[:3]]


def test_readme_is_current() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme.text()


def test_readme_lists_every_key_with_its_default() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"(?m)^\| `([\w.]+)` \| `(.*?)` \|", text))
    assert list(listed) == list(known_keys())
    assert read_config([f"{key}={default}" for key, default in listed.items()]) == Config()


def commands(text: str) -> list[list[str]]:
    """Program, command and keys of each line that calls make or space-warps."""
    joined = text.replace("\\\n", " ")
    lines = [line.strip().replace("$(BIN)/", "") for line in joined.splitlines()]
    calls = [line for line in lines if line.startswith(("make ", "space-warps "))]
    return [shlex.split(line.removesuffix("&")) for line in calls]


def readme_blocks(language: str = "") -> list[str]:
    """Code blocks of README in a language; shell commands have none."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", text)
    return [block for name, block in blocks if name == language]


def test_commands_of_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"(?m)^([a-z]+):", makefile)
    in_readme, in_makefile = commands("\n".join(readme_blocks())), commands(makefile)
    assert len(in_readme) > 6
    assert len(in_makefile) == 1  # make demo
    for program, command, *args in [*in_readme, *in_makefile]:
        assert command in (targets if program == "make" else COMMANDS), command
        assert {arg.split("=")[0] for arg in args} <= set(known_keys()), args


def test_commands_of_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_tiny: Callable[..., Tiny]
) -> None:
    """In order, on small catalogues with the file names of README."""
    monkeypatch.chdir(tmp_path)
    for name, num_rows in (("my", 140), ("other", 60)):
        tiny = make_tiny(num_rows=num_rows)
        tiny.csv_path.rename(f"{name}.csv")
        tiny.img_dir_path.rename(f"{name}_images")
    short = ["search.max_layers=2", "search.epochs_per_eval=1", "search.final.epochs=2"]
    short += ["search.device=cpu", "search.k_candidates=[4,8]"]
    extra = {"search": short, "evaluate": ["evaluate.epochs=1", "evaluate.resnet_epochs=0"]}
    for program, command, *args in commands("\n".join(readme_blocks())):
        if program == "make":
            continue
        exists = command == "search" and Path("results/mine").exists()
        if exists and "run.resume=true" not in args:
            continue  # README kills a new run there; this test resumes the first one
        more = [] if exists else extra.get(command, [])
        assert main([command, *args, *more]) == 0, (command, args)
    assert Path("other.json").is_file()
    names = {"images": torch.rand(5, 1, 12, 12), "features": torch.rand(5, 2)}
    exec(next(code for code in readme_blocks("python") if "load_model" in code), names)
    assert names["logits"].shape == (5, 3)
