"""The dashboard in a real JupyterLab, and as a page of its own, driven by a browser."""

import io
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from PIL import Image

from space_warps.cli.commands import make_runner
from space_warps.cli.config import read_run_config
from space_warps.cli.datasets import catalogue_paths, read_loaders
from space_warps.dashboard.controller import latest_run
from space_warps.data.simulate import sample_catalogue
from space_warps.runs.state import read_history, read_run_state
from space_warps.runs.tree import repeat_decisions
from space_warps.search.search import search

NOTEBOOK = Path(__file__).resolve().parent.parent / "nbs/dashboard.ipynb"
PICTURES = Path(os.environ.get("SCREENSHOTS", NOTEBOOK.parent.parent / "results/screenshots"))
WAIT = 120_000  # milliseconds; a busy machine is slow to start a kernel
SETTINGS = """\
from space_warps import FinalConfig, SearchConfig, SelectionConfig
from space_warps.cli.config import ComputeConfig, Config, DataConfig
settings = SearchConfig({keys}, final=FinalConfig(epochs=4))
compute = ComputeConfig(device="cpu")
config = Config(data=DataConfig(fraction={fraction}), search=settings, compute=compute)
"""
QUICK = (
    "max_layers=3, k_candidates=(4, 6), epochs_per_eval=2, selection=SelectionConfig(patience=3)"
)


class Lab(NamedTuple):
    """A JupyterLab on a folder of its own."""

    url: str
    token: str
    folder: Path

    def ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        """Talk to the server itself."""
        body = None if content is None else json.dumps(content).encode()
        about = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/{path}", body, about, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def theme(self, name: str) -> None:
        """What pages that are loaded from now on look like."""
        plugin = "lab/api/settings/@jupyterlab/apputils-extension:themes"
        self.ask("PUT", plugin, {"raw": json.dumps({"theme": f"JupyterLab {name}"})})

    def end_kernels(self) -> None:
        """Leave nothing that computes beside the next test."""
        for kernel in self.ask("GET", "api/kernels"):
            self.ask("DELETE", f"api/kernels/{kernel['id']}")

    def notebook(self, name: str, keys: str = QUICK, fraction: float = 0.3) -> Path:
        """A copy of the dashboard's notebook with quick settings; its folder of runs."""
        runs = self.folder / f"{name}_runs"
        story = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
        for cell in story["cells"]:
            source = "".join(cell["source"])
            quick = source.replace('"../results/dashboard"', f"{str(runs)!r}, config")
            if quick != source:
                cell["source"] = SETTINGS.format(keys=keys, fraction=fraction) + quick
        (self.folder / f"{name}.ipynb").write_text(json.dumps(story), encoding="utf-8")
        return runs


@contextmanager
def served(command: list[str], folder: Path, is_up: str) -> Iterator[int]:
    """A server on a free port, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    indices = {name: str(folder / name) for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    env = {**os.environ, **indices, "JUPYTER_CONFIG_DIR": str(folder)}
    log = folder / "log"
    with log.open("w") as file:
        args = [word.format(port=port) for word in command]
        process = subprocess.Popen(
            [sys.executable, "-m", *args], stdout=file, stderr=file, env=env, cwd=folder
        )
        try:
            for _ in range(300):
                assert process.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(is_up.format(port=port), timeout=2).close()
                    break
                except urllib.error.HTTPError:  # it answers
                    break
                except OSError:
                    time.sleep(0.2)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def lab(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab that writes nowhere else."""
    work, own = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("lab")
    (own / "labconfig").mkdir()
    left_out = {"@jupyterlab/apputils-extension:announcements": True}
    page = json.dumps({"disabledExtensions": left_out})
    (own / "labconfig/page_config.json").write_text(page, encoding="utf-8")
    token = secrets.token_hex(8)
    command = ["jupyterlab", "--allow-root", "--no-browser", "--ip=127.0.0.1", "--port={port}"]
    command += [f"--IdentityProvider.token={token}", "--LabApp.extension_manager=readonly"]
    command += [f"--ServerApp.root_dir={work}"]
    with served(command, own, "http://127.0.0.1:{port}/api?token=" + token) as port:
        yield Lab(f"http://127.0.0.1:{port}", token, work)


def keep_picture(content: bytes, name: str) -> None:
    """Write a PNG with few colours, which is a third as large."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    picture = (
        Image.open(io.BytesIO(content))
        .convert("RGB")
        .quantize(256, Image.Quantize.MAXCOVERAGE, dither=0)
    )
    picture.save(PICTURES / f"{name}.png", optimize=True)


class Shown:
    """A notebook in a browser, and what a person does with it."""

    def __init__(self, browser: Any, lab: Lab, name: str) -> None:
        from playwright.sync_api import expect

        expect.set_options(timeout=WAIT)
        self.expect, self.lab, self.name = expect, lab, name
        self.page = browser.new_page(viewport={"width": 1280, "height": 800})
        self.page.set_default_timeout(WAIT)
        self.open()

    def open(self) -> None:
        """Load the page, and wait until its kernel is there."""
        index = f"lab/workspaces/{self.name}/tree/{self.name}.ipynb"  # of its own: no other tabs
        self.page.goto(f"{self.lab.url}/{index}?token={self.lab.token}")
        self.page.locator(".jp-Notebook").wait_for()
        self.expect(self.bar).to_contain_text("| Idle")

    @property
    def bar(self) -> Any:
        """Lab's status bar: its toolbar reads idle while it is still connecting."""
        return self.page.locator("#jp-main-statusbar")

    def run_all(self) -> None:
        """The menu's Run All, until a new dashboard stands where an old one may have stood."""
        old = "all => all.forEach(each => each.setAttribute('data-old', ''))"
        self.page.locator(".sw-dashboard").evaluate_all(old)
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.locator('li[data-command="runmenu:run-all"]').click()
        self.expect(self.page.locator(".sw-dashboard[data-old]")).to_have_count(0)
        self.button("Step").wait_for()

    def button(self, name: str) -> Any:
        """A button of the dashboard."""
        return self.page.locator(".sw-dashboard").get_by_role("button", name=name, exact=True)

    def press(self, name: str) -> None:
        """Wait until a button can be pressed, and press it."""
        self.expect(self.button(name)).to_be_enabled()
        self.button(name).click()

    def says(self, text: str | re.Pattern[str]) -> None:
        """Wait for the status line."""
        self.expect(self.page.locator(".sw-status")).to_contain_text(text)

    def picture(self, name: str) -> Any:
        """One of the pictures."""
        return self.page.locator(f"img.sw-{name}")

    def sources(self, *names: str) -> list[str | None]:
        """What pictures show now, by their addresses."""
        return [self.picture(name).get_attribute("src") for name in names]

    def tab(self, name: str) -> None:
        """Open a page of the dashboard."""
        self.page.get_by_role("tab", name=name, exact=True).click()

    def field(self, label: str) -> Any:
        """A control and what is said about it."""
        return self.page.locator(".sw-field").filter(has_text=label)

    def keep(self, name: str) -> None:
        """A picture of the whole dashboard, for a person to look at, and for the documentation."""
        self.page.set_viewport_size({"width": 1280, "height": 2000})
        self.page.locator(".sw-dashboard").evaluate("e => e.scrollIntoView()")
        self.page.wait_for_timeout(400)
        keep_picture(self.page.locator(".sw-dashboard").screenshot(), name)
        self.page.set_viewport_size({"width": 1280, "height": 800})

    def is_wider_than_the_window(self) -> bool:
        """Whether something has to be scrolled sideways."""
        measured = "e => e.scrollWidth > e.clientWidth + 1"
        indices = (".sw-dashboard", ".jp-WindowedPanel-outer", ".jp-OutputArea-output")
        return any(self.page.locator(p).first.evaluate(measured) for p in indices)


@pytest.fixture
def show(browser: Any, lab: Lab) -> Iterator[Callable[..., Shown]]:
    """Opens notebooks, and closes them."""
    opened: list[Shown] = []

    def open_notebook(name: str) -> Shown:
        opened.append(Shown(browser, lab, name))
        return opened[-1]

    yield open_notebook
    for shown in opened:
        shown.page.close()
    lab.end_kernels()


def headless(folder: Path) -> str:
    """The hash of the network that the same settings and decisions give without a dashboard."""
    config = read_run_config(folder)
    loaders = read_loaders(config, *catalogue_paths(config.data))
    runner = make_runner(config, loaders)
    message = read_run_state(folder).decisions
    _, history = search(config.search, runner, decide_step=repeat_decisions(message))
    assert history.final_result is not None
    return history.final_result.weights_sha256


def run_of(runs: Path) -> Path:
    """The one run in a folder."""
    folder = latest_run(runs)
    assert folder is not None
    return folder


def test_a_network_is_grown_by_hand(lab: Lab, show: Callable[..., Shown]) -> None:
    runs = lab.notebook("hand")
    shown = show("hand")
    shown.run_all()
    shown.picture("classes").wait_for()
    shown.picture("distributions").wait_for()
    shown.keep("data_light")

    shown.button("Step").focus()
    shown.page.keyboard.press("Enter")  # with the keyboard alone
    shown.says("asking")
    live = ("curves", "growth", "network", "flips")
    for name in live:
        shown.picture(name).wait_for()
    (flips,) = shown.sources("flips")
    shown.expect(shown.page.locator(".sw-table tbody tr")).to_have_count(3)
    choice = shown.page.locator(".sw-dashboard select").first
    other = 1 - int(choice.evaluate("e => e.selectedIndex"))
    choice.select_option(index=other)
    shown.expect(shown.picture("flips")).not_to_have_attribute("src", flips or "")
    shown.press("Accept this one")
    shown.says("resting at step 1")
    assert read_history(run_of(runs)).steps[0].decision.index == other

    shown.page.wait_for_timeout(2000)  # what follows from the decision is drawn
    before_step = shown.sources(*live)
    shown.press("Step")
    shown.says("asking")
    for name, before in zip(live, before_step, strict=True):
        shown.expect(shown.picture(name)).not_to_have_attribute("src", before or "")
    shown.picture("tree").wait_for()
    shown.keep("asking_light")
    shown.press("Undo")
    shown.says("resting at step 1")

    shown.page.get_by_placeholder("branch name").fill("main")
    shown.page.get_by_placeholder("branch name").press("Tab")
    shown.press("Branch")
    shown.expect(shown.page.locator(".sw-message")).to_contain_text("not that of another folder")
    shown.page.get_by_placeholder("branch name").fill("wide")
    shown.page.get_by_placeholder("branch name").press("Tab")
    nodes = shown.page.locator(".sw-dashboard select").nth(1)
    nodes.select_option(index=0)
    instead = shown.page.locator(".sw-dashboard select").nth(2)
    shown.expect(instead.locator("option")).to_have_count(2)
    instead.select_option(index=1)
    shown.press("Branch")
    shown.says("of branch wide")
    assert read_history(run_of(runs)).steps[0].decision.index == 1 - other
    shown.press("Step")
    shown.says("asking")
    shown.press("Accept best")
    shown.says("resting at step 2")
    shown.press("Finish")
    shown.says("at its end: growing was ended at step 2")

    record = read_run_state(run_of(runs))
    assert record.model_sha256 == headless(run_of(runs))
    assert record.history is not None and record.history.branch == "wide"

    shown.press("Evaluate")
    for name in ("confusion", "reliability", "mistakes"):
        shown.picture(name).wait_for()
    ids = pd.read_csv(sample_catalogue().test_csv_path, dtype=str)["id"]
    shown.page.get_by_placeholder("id of a cutout").fill(ids[0])
    shown.press("Show")
    shown.picture("attention").wait_for()
    shown.keep("after_light")
    shown.page.get_by_placeholder("id of a cutout").fill("nothing")
    shown.press("Show")
    shown.expect(shown.page.locator(".sw-message")).to_contain_text("no row with id 'nothing'")
    shown.press("Copy as code")
    code = re.compile(r"Turn\(1, 'wide'.*take=1.*is_last=True", re.DOTALL)
    shown.expect(shown.page.locator(".sw-dashboard textarea")).to_have_value(code)
    shown.press("Save figures")
    shown.expect(shown.page.locator(".sw-message")).to_contain_text("as PNG and SVG")
    assert (run_of(runs) / "figures/network.svg").is_file()
    assert not shown.is_wider_than_the_window()


def test_pause_reload_restart(lab: Lab, show: Callable[..., Shown]) -> None:
    long = "max_layers=2, k_candidates=(6, 8), epochs_per_eval=4, patience=3"
    runs = lab.notebook("cut", long)
    shown = show("cut")
    shown.run_all()
    shown.press("Start")
    shown.says("networks trained")
    shown.expect(shown.page.locator(".sw-table tbody tr")).to_have_count(2)
    shown.picture("curves").wait_for()
    shown.keep("training_light")
    shown.press("Pause")
    shown.says("paused")
    shown.page.wait_for_timeout(500)
    held = (run_of(runs) / "events.jsonl").read_bytes()
    shown.page.wait_for_timeout(1500)
    assert (run_of(runs) / "events.jsonl").read_bytes() == held
    shown.press("Start")
    shown.says("training")
    shown.press("Pause")
    shown.says("paused")

    shown.page.keyboard.press("Control+s")
    shown.page.wait_for_timeout(500)
    shown.page.once("dialog", lambda dialog: dialog.accept())
    shown.open()  # the browser is reloaded; the kernel keeps what it has
    shown.run_all()
    shown.says("paused")
    before = (run_of(runs) / "events.jsonl").stat().st_size

    shown.page.get_by_role("menuitem", name="Kernel", exact=True).click()
    shown.page.locator('li[data-command="kernelmenu:restart"]').click()
    shown.page.get_by_role("button", name="Confirm Kernel Restart").click()
    shown.expect(shown.bar).to_contain_text("| Idle")
    shown.run_all()
    shown.says("resting at step")
    assert not read_run_state(run_of(runs)).is_complete
    assert (run_of(runs) / "events.jsonl").stat().st_size >= before > 0
    shown.press("Start")
    shown.says("at its end")
    assert len(list(runs.iterdir())) == 1
    assert read_run_state(run_of(runs)).model_sha256 == headless(run_of(runs))


def test_wrong_values_and_errors_in_the_dark(lab: Lab, show: Callable[..., Shown]) -> None:
    lab.notebook("wrong", "max_layers=1, k_candidates=(4, 6, 8), epochs_per_eval=1", fraction=0.3)
    lab.theme("Dark")
    shown = show("wrong")
    shown.expect(shown.page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    shown.run_all()
    shown.picture("classes").wait_for()
    path = shown.field("empty: the sample)")
    path.locator("input").fill("/no/such.csv")
    path.locator("input").press("Tab")
    images = shown.field("folder of images").locator("input")
    images.fill("/no")
    images.press("Tab")
    shown.press("Read")
    shown.expect(path.locator(".sw-error")).to_contain_text("no catalogue at /no/such.csv")
    for control in (path.locator("input"), images):
        control.fill("")
        control.press("Tab")
    shown.tab("Settings")
    rate = shown.field("learning rate").locator("input")
    rate.fill("-3")
    rate.press("Tab")
    message = shown.field("learning rate").locator(".sw-error")
    shown.expect(message).to_contain_text("lr is a learning rate above 0; got -3")
    shown.press("Start")
    shown.expect(shown.page.locator(".sw-message")).to_contain_text("search.lr is not right yet")
    rate.fill("1e30")
    rate.press("Tab")
    shown.expect(message).to_have_count(0)
    shown.press("Start")
    shown.says("all candidates failed at step 1")
    shown.says("the loss became nan")
    shown.press("New run")
    shown.tab("Settings")
    rate.fill("0.003")
    rate.press("Tab")
    shown.press("New run")
    shown.press("Step")
    shown.says("asking")
    shown.picture("flips").wait_for()
    assert "invert" in shown.picture("curves").evaluate("e => getComputedStyle(e).filter")
    assert shown.picture("flips").evaluate("e => getComputedStyle(e).filter") == "none"
    shown.keep("asking_dark")
    assert not shown.is_wider_than_the_window()
    lab.theme("Light")


def test_a_page_of_its_own(browser: Any, lab: Lab, tmp_path: Path) -> None:
    lab.notebook("page")
    shutil.copy(lab.folder / "page.ipynb", tmp_path)
    token = secrets.token_hex(8)
    command = ["voila", "page.ipynb", "--no-browser", "--Voila.ip=127.0.0.1", "--port={port}"]
    command += [f"--token={token}", "--VoilaExecutor.iopub_timeout=60"]
    with served(command, tmp_path, "http://127.0.0.1:{port}/api/kernels") as port:  # runs nothing
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(WAIT)
        page.goto(f"http://127.0.0.1:{port}/?token={token}")
        page.locator("img.sw-classes").wait_for()
        page.get_by_role("button", name="Step", exact=True).click()
        page.locator("img.sw-curves").wait_for()
        keep_picture(page.screenshot(full_page=True), "page_light")
        page.close()
