"""The dashboard in JupyterLab and as a standalone page, driven by a browser."""

import io
import json
import os
import re
import secrets
import shlex
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
from space_warps.cli.datasets import read_split
from space_warps.dashboard.controller import latest_run
from space_warps.data.simulate import sample_catalogue
from space_warps.runs.state import read_history, read_run_state
from space_warps.runs.tree import repeat_decisions
from space_warps.search.search import search

NOTEBOOK = Path(__file__).resolve().parent.parent / "nbs/dashboard.ipynb"
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", NOTEBOOK.parent.parent / "results/screenshots"))
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
    """A JupyterLab server with a folder of its own."""

    url: str
    token: str
    folder: Path

    def request(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        """JSON answer of the server to a request."""
        body = None if content is None else json.dumps(content).encode()
        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/{path}", body, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def theme(self, name: str) -> None:
        """Set the theme of pages loaded from now on."""
        plugin = "lab/api/settings/@jupyterlab/apputils-extension:themes"
        self.request("PUT", plugin, {"raw": json.dumps({"theme": f"JupyterLab {name}"})})

    def end_kernels(self) -> None:
        """Shut down all kernels, so that none computes during the next test."""
        for kernel in self.request("GET", "api/kernels"):
            self.request("DELETE", f"api/kernels/{kernel['id']}")

    def notebook(self, name: str, keys: str = QUICK, fraction: float = 0.3) -> Path:
        """Copy the dashboard notebook with quick settings; return its folder of runs."""
        runs = self.folder / f"{name}_runs"
        notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            quick = source.replace('"../results/dashboard"', f"{str(runs)!r}, config")
            if quick != source:
                cell["source"] = SETTINGS.format(keys=keys, fraction=fraction) + quick
        (self.folder / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
        return runs


@contextmanager
def served(command: list[str], folder: Path, health_url: str) -> Iterator[int]:
    """Run a server on a free port until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {name: str(folder / name) for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    env = {**os.environ, **folders, "JUPYTER_CONFIG_DIR": str(folder)}
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
                    urllib.request.urlopen(health_url.format(port=port), timeout=2).close()
                    break
                except urllib.error.HTTPError:  # the server responds
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
    """A JupyterLab server that writes only to temporary folders."""
    work, own = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("lab")
    (own / "labconfig").mkdir()
    disabled = {"@jupyterlab/apputils-extension:announcements": True}
    page = json.dumps({"disabledExtensions": disabled})
    (own / "labconfig/page_config.json").write_text(page, encoding="utf-8")
    token = secrets.token_hex(8)
    command = ["jupyterlab", "--allow-root", "--no-browser", "--ip=127.0.0.1", "--port={port}"]
    command += [f"--IdentityProvider.token={token}", "--LabApp.extension_manager=readonly"]
    command += [f"--ServerApp.root_dir={work}"]
    with served(command, own, "http://127.0.0.1:{port}/api?token=" + token) as port:
        yield Lab(f"http://127.0.0.1:{port}", token, work)


def save_screenshot(content: bytes, name: str) -> None:
    """Write a PNG with 256 colours, a third of the size."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    picture = (
        Image.open(io.BytesIO(content))
        .convert("RGB")
        .quantize(256, Image.Quantize.MAXCOVERAGE, dither=0)
    )
    picture.save(SCREENSHOTS / f"{name}.png", optimize=True)


class Notebook:
    """A notebook in a browser, with the actions of a person."""

    def __init__(self, browser: Any, lab: Lab, name: str) -> None:
        from playwright.sync_api import expect

        expect.set_options(timeout=WAIT)
        self.expect, self.lab, self.name = expect, lab, name
        self.page = browser.new_page(viewport={"width": 1280, "height": 800})
        self.page.set_default_timeout(WAIT)
        self.open()

    def open(self) -> None:
        """Load the page and wait for its kernel."""
        path = f"lab/workspaces/{self.name}/tree/{self.name}.ipynb"  # a new workspace has no other tabs
        self.page.goto(f"{self.lab.url}/{path}?token={self.lab.token}")
        self.page.locator(".jp-Notebook").wait_for()
        self.expect(self.bar).to_contain_text("| Idle")

    @property
    def bar(self) -> Any:
        """Status bar of JupyterLab; its toolbar shows idle while the kernel still connects."""
        return self.page.locator("#jp-main-statusbar")

    def run_all(self) -> None:
        """Run all cells and wait until a new dashboard replaces a former one."""
        mark_old = "items => items.forEach(item => item.setAttribute('data-old', ''))"
        self.page.locator(".sw-dashboard").evaluate_all(mark_old)
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.locator('li[data-command="runmenu:run-all"]').click()
        self.expect(self.page.locator(".sw-dashboard[data-old]")).to_have_count(0)
        self.button("Step").wait_for()

    def button(self, name: str) -> Any:
        """A button of the dashboard."""
        return self.page.locator(".sw-dashboard").get_by_role("button", name=name, exact=True)

    def press(self, name: str) -> None:
        """Wait until a button is enabled, then press it."""
        self.expect(self.button(name)).to_be_enabled()
        self.button(name).click()

    def wait_for_status(self, text: str | re.Pattern[str]) -> None:
        """Wait until the status line contains a text."""
        self.expect(self.page.locator(".sw-status")).to_contain_text(text)

    def figure(self, name: str) -> Any:
        """A figure of the dashboard."""
        return self.page.locator(f"img.sw-{name}")

    def sources(self, *names: str) -> list[str | None]:
        """Addresses of figures, which change with their content."""
        return [self.figure(name).get_attribute("src") for name in names]

    def tab(self, name: str) -> None:
        """Open a page of the dashboard."""
        self.page.get_by_role("tab", name=name, exact=True).click()

    def field(self, label: str) -> Any:
        """A field of a form with its error message."""
        return self.page.locator(".sw-field").filter(has_text=label)

    def save(self, name: str) -> None:
        """Screenshot of the whole dashboard, for the documentation."""
        self.page.set_viewport_size({"width": 1280, "height": 2000})
        self.page.locator(".sw-dashboard").evaluate("e => e.scrollIntoView()")
        self.page.wait_for_timeout(400)
        save_screenshot(self.page.locator(".sw-dashboard").screenshot(), name)
        self.page.set_viewport_size({"width": 1280, "height": 800})

    def is_wider_than_the_window(self) -> bool:
        """Whether there is a horizontal scroll bar."""
        overflows = "e => e.scrollWidth > e.clientWidth + 1"
        selectors = (".sw-dashboard", ".jp-WindowedPanel-outer", ".jp-OutputArea-output")
        return any(self.page.locator(p).first.evaluate(overflows) for p in selectors)


@pytest.fixture
def show(browser: Any, lab: Lab) -> Iterator[Callable[..., Notebook]]:
    """Function that opens notebooks; they are closed at the end of the test."""
    opened: list[Notebook] = []

    def open_notebook(name: str) -> Notebook:
        opened.append(Notebook(browser, lab, name))
        return opened[-1]

    yield open_notebook
    for shown in opened:
        shown.page.close()
    lab.end_kernels()


def headless(folder: Path) -> str:
    """Hash of the network that the same settings and decisions give without the dashboard."""
    config = read_run_config(folder)
    loaders, _ = read_split(config)
    runner = make_runner(config, loaders)
    decisions = read_run_state(folder).decisions
    _, history = search(config.search, runner, decide_step=repeat_decisions(decisions))
    assert history.final_result is not None
    return history.final_result.weights_sha256


def run_of(runs: Path) -> Path:
    """The only run in a folder."""
    folder = latest_run(runs)
    assert folder is not None
    return folder


def test_steer_a_search_by_hand(lab: Lab, show: Callable[..., Notebook]) -> None:
    runs = lab.notebook("hand")
    shown = show("hand")
    shown.run_all()
    shown.figure("classes").wait_for()
    shown.figure("distributions").wait_for()
    shown.save("data_light")

    shown.button("Step").focus()
    shown.page.keyboard.press("Enter")  # by keyboard
    shown.wait_for_status("Waiting for you")
    live = ("curves", "growth", "network", "changed")
    for name in live:
        shown.figure(name).wait_for()
    (changed,) = shown.sources("changed")
    shown.expect(shown.page.locator(".sw-table tbody tr")).to_have_count(3)
    choice = shown.page.locator(".sw-dashboard select").first
    other = 1 - int(choice.evaluate("e => e.selectedIndex"))
    choice.select_option(index=other)
    shown.expect(shown.figure("changed")).not_to_have_attribute("src", changed or "")
    shown.press("Accept selected")
    shown.wait_for_status("Idle: step 1")
    assert read_history(run_of(runs)).steps[0].decision.index == other

    shown.page.wait_for_timeout(2000)  # until the figures of the decision are drawn
    before_step = shown.sources(*live)
    shown.press("Step")
    shown.wait_for_status("Waiting for you")
    for name, before in zip(live, before_step, strict=True):
        shown.expect(shown.figure(name)).not_to_have_attribute("src", before or "")
    shown.figure("tree").wait_for()
    shown.save("waiting_light")
    shown.press("Undo")
    shown.wait_for_status("Idle: step 1")

    shown.page.get_by_placeholder("branch name").fill("main")
    shown.page.get_by_placeholder("branch name").press("Tab")
    shown.press("Branch")
    shown.expect(shown.page.locator(".sw-message")).to_contain_text("not that of another folder")
    shown.page.get_by_placeholder("branch name").fill("wide")
    shown.page.get_by_placeholder("branch name").press("Tab")
    nodes = shown.page.locator(".sw-dashboard select").nth(1)
    nodes.select_option(index=0)
    alternative = shown.page.locator(".sw-dashboard select").nth(2)
    shown.expect(alternative.locator("option")).to_have_count(2)
    alternative.select_option(index=1)
    shown.press("Branch")
    shown.wait_for_status("of branch wide")
    assert read_history(run_of(runs)).steps[0].decision.index == 1 - other
    shown.press("Step")
    shown.wait_for_status("Waiting for you")
    shown.press("Accept best")
    shown.wait_for_status("Idle: step 2")
    shown.press("Finish")
    shown.wait_for_status("Finished. Growth stopped at step 2")

    state = read_run_state(run_of(runs))
    assert state.model_sha256 == headless(run_of(runs))
    assert state.history is not None and state.history.branch == "wide"

    shown.press("Evaluate")
    for name in ("confusion", "reliability", "misclassified"):
        shown.figure(name).wait_for()
    ids = pd.read_csv(sample_catalogue().test_csv_path, dtype=str)["id"]
    shown.page.get_by_placeholder("id of a cutout").fill(ids[0])
    shown.press("Explain")
    shown.figure("occlusion").wait_for()
    shown.save("results_light")
    shown.page.get_by_placeholder("id of a cutout").fill("nothing")
    shown.press("Explain")
    shown.expect(shown.page.locator(".sw-message")).to_contain_text("no row with id 'nothing'")
    shown.press("Show code")
    code = re.compile(
        r"Backtrack\(to_step=1, branch='wide'.*candidate=1.*stop_growing=True", re.DOTALL
    )
    shown.expect(shown.page.locator(".sw-dashboard textarea")).to_have_value(code)
    shown.press("Save figures")
    shown.expect(shown.page.locator(".sw-message")).to_contain_text("as PNG and SVG")
    assert (run_of(runs) / "figures/network.svg").is_file()
    assert not shown.is_wider_than_the_window()


def test_pause_reload_restart(lab: Lab, show: Callable[..., Notebook]) -> None:
    long = "max_layers=2, k_candidates=(6, 8), epochs_per_eval=4, selection=SelectionConfig(patience=3)"
    runs = lab.notebook("cut", long)
    shown = show("cut")
    shown.run_all()
    shown.press("Start")
    shown.wait_for_status("networks trained")
    shown.expect(shown.page.locator(".sw-table tbody tr")).to_have_count(2)
    shown.figure("curves").wait_for()
    shown.save("training_light")
    shown.press("Pause")
    shown.wait_for_status("Paused")
    shown.page.wait_for_timeout(500)
    held = (run_of(runs) / "events.jsonl").read_bytes()
    shown.page.wait_for_timeout(1500)
    assert (run_of(runs) / "events.jsonl").read_bytes() == held
    shown.press("Start")
    shown.wait_for_status("Training")
    shown.press("Pause")
    shown.wait_for_status("Paused")

    shown.page.keyboard.press("Control+s")
    shown.page.wait_for_timeout(500)
    shown.page.once("dialog", lambda dialog: dialog.accept())
    shown.open()  # the browser is reloaded; the kernel keeps what it has
    shown.run_all()
    shown.wait_for_status("Paused")
    before = (run_of(runs) / "events.jsonl").stat().st_size

    shown.page.get_by_role("menuitem", name="Kernel", exact=True).click()
    shown.page.locator('li[data-command="kernelmenu:restart"]').click()
    shown.page.get_by_role("button", name="Confirm Kernel Restart").click()
    shown.expect(shown.bar).to_contain_text("| Idle")
    shown.run_all()
    shown.wait_for_status("Idle: step")
    assert not read_run_state(run_of(runs)).is_complete
    assert (run_of(runs) / "events.jsonl").stat().st_size >= before > 0
    shown.press("Start")
    shown.wait_for_status("Finished")
    assert len(list(runs.iterdir())) == 1
    assert read_run_state(run_of(runs)).model_sha256 == headless(run_of(runs))


def test_invalid_values_and_errors_in_dark_theme(lab: Lab, show: Callable[..., Notebook]) -> None:
    lab.notebook("wrong", "max_layers=1, k_candidates=(4, 6, 8), epochs_per_eval=1", fraction=0.3)
    lab.theme("Dark")
    shown = show("wrong")
    shown.expect(shown.page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    shown.run_all()
    shown.figure("classes").wait_for()
    path = shown.field("empty: the sample)")
    path.locator("input").fill("/no/such.csv")
    path.locator("input").press("Tab")
    images = shown.field("image folder").locator("input")
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
    shown.expect(shown.page.locator(".sw-message")).to_contain_text("search.lr is invalid")
    rate.fill("1e30")
    rate.press("Tab")
    shown.expect(message).to_have_count(0)
    shown.press("Start")
    shown.wait_for_status("all candidates failed at step 1")
    shown.wait_for_status("the loss became nan")
    shown.press("New run")
    shown.tab("Settings")
    rate.fill("0.003")
    rate.press("Tab")
    shown.press("New run")
    shown.press("Step")
    shown.wait_for_status("Waiting for you")
    shown.figure("changed").wait_for()
    assert "invert" in shown.figure("curves").evaluate("e => getComputedStyle(e).filter")
    assert shown.figure("changed").evaluate("e => getComputedStyle(e).filter") == "none"
    shown.save("waiting_dark")
    assert not shown.is_wider_than_the_window()
    lab.theme("Light")


def test_standalone_page(browser: Any, lab: Lab, tmp_path: Path) -> None:
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
        save_screenshot(page.screenshot(full_page=True), "page_light")
        page.close()


def app_options() -> list[str]:
    """The options of `make app`."""
    recipe = (
        (NOTEBOOK.parent.parent / "Makefile")
        .read_text(encoding="utf-8")
        .partition("\napp: setup\n")[2]
    )
    words = shlex.split(recipe.partition("\n\n")[0].replace("\\\n", " "))
    return words[words.index("nbs/dashboard.ipynb") + 1 :]


def status_of(port: int, path: str, host: str = "") -> int:
    """Status of a request, perhaps under another host name; 401 for the login page."""
    headers = {"Host": host} if host else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return 401 if "/login" in answer.url else int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_app_answers_only_this_machine_and_only_with_the_token(tmp_path: Path) -> None:
    pytest.importorskip("voila", reason="voila is not installed")
    notebook: dict[str, Any] = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "page.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    Image.new("L", (2, 2)).save(tmp_path / "secret.png")
    token = secrets.token_hex(8)
    options = [word.replace("{", "{{").replace("}", "}}") for word in app_options()]
    command = ["voila", "page.ipynb", "--no-browser", "--port={port}", *options]
    command.append(f"--token={token}")
    with served(command, tmp_path, "http://127.0.0.1:{port}/api/kernels") as port:
        assert status_of(port, f"?token={token}") == 200
        assert status_of(port, "?token=wrong") == 401
        assert status_of(port, "voila/files/secret.png") == 403
        assert status_of(port, f"voila/files/secret.png?token={token}") == 403
        assert status_of(port, f"?token={token}", "evil.example") == 403
        assert status_of(port, f"?token={token}", "localhost") == 200
