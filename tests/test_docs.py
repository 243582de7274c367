"""The documentation site: built without a warning, every page whole in a browser, README current."""

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
import structure
import torch
from conftest import Tiny
from test_layers import write_tree

from space_warps import __version__
from space_warps.cli.config import known_keys
from space_warps.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "nbs/index.ipynb"


class Page(HTMLParser):
    """What a test asks of a page: its title, description, links, pictures and anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.description, self.title, self.inside = "", "", ""
        self.links: list[str] = []
        self.sources: list[str] = []
        self.anchors: set[str] = set()
        self.without_text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.inside = tag
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("img", "script", "iframe") and "src" in given:
            self.sources.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.sources.append(given["href"])
        if tag == "img" and not given.get("alt"):
            self.without_text.append(given.get("src", ""))
        if tag == "meta" and given.get("name") == "description":
            self.description = given["content"]

    def handle_data(self, data: str) -> None:
        if self.inside == "title" and not self.title:
            self.title = data.strip()


@pytest.fixture(scope="module")
def site() -> Path:
    """The site, built once; pages that the tests have just executed are not executed again."""
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
    """The site, served over loopback."""
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


def test_pages_have_a_title_a_description_and_text_for_pictures(parsed: dict[Path, Page]) -> None:
    for path, page in parsed.items():
        assert f"space_warps {__version__}" in page.title and len(page.title) < 90, path
        assert 20 <= len(page.description) <= 200, (path, page.description)
        assert not page.without_text, (path, page.without_text)


def test_links_within_the_site_lead_somewhere(site: Path, parsed: dict[Path, Page]) -> None:
    for path, page in parsed.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            index, _, anchor = link.partition("#")
            target = (path.parent / index).resolve() if index else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (path.relative_to(site), link)
            if anchor and target in parsed:
                assert anchor in parsed[target].anchors, (path.relative_to(site), link)


def test_nothing_is_loaded_from_elsewhere(parsed: dict[Path, Page]) -> None:
    for path, page in parsed.items():
        assert not [s for s in page.sources if re.match(r"([a-z]+:)?//", s)], path


def test_references_carry_comments_types_and_source(site: Path) -> None:
    text = (site / "api/search/search.html").read_text(encoding="utf-8")
    message = re.sub(r"<[^>]+>", "", text)
    assert "Largest number of blocks" in message
    assert "tuple[ProgressiveModel, SearchHistory]" in message
    assert re.search(r'href="[^"]*history\.html#space_warps\.history\.SearchHistory"', text)
    assert re.search(r"https://github\.com/[^\"]*/space_warps/search\.py#L\d+-L\d+", text)


def test_pages_follow_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pages.page_of("how/1_growth") == "how/growth"
    assert pages.page_of("01_sky/02_photos") == "api/sky/photos"
    assert pages.page_of("01_sky/index") == "api/sky/index"
    monkeypatch.setattr(structure, "room_folders", lambda: ["01_sky"])
    assert pages.page_of("00_core") == "api/core"
    monkeypatch.setattr(structure, "room_folders", lambda: [])
    assert pages.page_of("00_core") == "api/data/core"


def test_names_in_sub_packages_are_resolved(tmp_path: Path) -> None:
    tree = {
        "00_core": "class InputError(Exception): ...\n",
        "01_sky/01_lists": "from ..core import InputError\n\n\ndef read(): ...\n",
        "01_sky/02_photos": "from .lists import read as read_list\n",
    }
    write_tree(tmp_path, tree)
    modules = reference.read_package(tmp_path)
    assert modules["sky.lists"].imported["InputError"] == "space_warps.core.InputError"
    assert modules["sky.photos"].imported["read_list"] == "space_warps.data.sky.lists.read"
    names = reference.all_names(modules)
    for name in ("read", "sky.read", "space_warps.data.sky.read", "sky.lists.read"):
        assert names[name] == "space_warps.data.sky.lists.read", name
    assert reference.lines_of(modules, "space_warps.data.sky.lists", "read") == (4, 4)


def test_a_picture_without_text_is_refused() -> None:
    picture = [{"output_type": "display_data", "data": {"image/png": ""}, "metadata": {}}]
    with pytest.raises(SystemExit, match="fig-alt"):
        pages.shown("plot()", {}, picture, "nbs/some.ipynb, cell 3")
    cell = pages.shown("plot()", {"fig-alt": "A line."}, picture, "")[0]
    assert cell["metadata"]["mystnb"]["image"]["alt"] == "A line."


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
    copy = {"cells": [], "metadata": {"executed_from": execute.key_of("a")}}
    execute.copy_of("a").write_text(json.dumps(copy))
    assert execute.is_current("a")
    write("1 + 2")
    assert not execute.is_current("a")


def test_pages_open_on_a_phone_without_an_error(
    browser: Any, address: str, site: Path, parsed: dict[Path, Page]
) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    wrong: list[str] = []
    page.on(
        "console", lambda message: wrong.append(message.text) if message.type == "error" else None
    )
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda requested: wrong.extend(failure_of(requested)))
    page.on(
        "request",
        lambda requested: (
            None if requested.url.startswith((address, "data:")) else wrong.append(requested.url)
        ),
    )
    for path in parsed:
        response = page.goto(f"{address}/{path.relative_to(site).as_posix()}")
        assert response.ok, path
        assert not wrong, (path, wrong)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    page.close()


def failure_of(requested: Any) -> list[str]:
    """Why a request failed, unless by going to the next page."""
    return [] if "ERR_ABORTED" in requested.failure else [f"{requested.url}: {requested.failure}"]


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


def test_a_click_turns_it_dark(browser: Any, address: str) -> None:
    page = browser.new_page(color_scheme="light")
    page.goto(f"{address}/index.html")
    shade = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(shade)
    page.locator("button.theme-toggle:visible").click()
    assert page.locator("body").get_attribute("data-theme") == "dark"
    assert sum(numbers(light)) > 600 > 180 > sum(numbers(page.evaluate(shade)))
    page.close()


def numbers(colour: str) -> list[int]:
    """Red, green and blue."""
    return [int(number) for number in re.findall(r"\d+", colour)[:3]]


def test_readme_is_current() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme.text()


def commands(text: str) -> list[list[str]]:
    """Program, command and keys of each line that calls make or space-warps."""
    whole = text.replace("\\\n", " ")
    lines = [line.strip().replace("$(BIN)/", "") for line in whole.splitlines()]
    wanted = [line for line in lines if line.startswith(("make ", "space-warps "))]
    return [shlex.split(line.removesuffix("&")) for line in wanted]


def readme_blocks(language: str = "") -> list[str]:
    """The blocks of README in a language; those of a shell have none."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", text)


def test_commands_of_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"(?m)^([a-z]+):", makefile)
    result = commands("\n".join(readme_blocks()))
    assert len(result) > 6
    assert len(commands(makefile)) == 1  # make demo
    for program, command, *args in [*result, *commands(makefile)]:
        assert command in (targets if program == "make" else COMMANDS), command
        assert {word.split("=")[0] for word in args} <= set(known_keys()), args


def test_commands_of_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_tiny: Callable[..., Tiny]
) -> None:
    """In their order, on small catalogues under the names that README gives them."""
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
        has_begun = command == "search" and Path("results/mine").exists()
        if has_begun and "run.resume=true" not in args:
            continue  # README begins anew there and kills it; here the first run is gone on with
        more = [] if has_begun else extra.get(command, [])
        assert main([command, *args, *more]) == 0, (command, args)
    assert Path("other.json").is_file()
    names = {"images": torch.rand(5, 1, 12, 12), "features": torch.rand(5, 2)}
    exec(next(code for code in readme_blocks("python") if "load_snapshot" in code), names)
    assert names["scores"].shape == (5, 3)
