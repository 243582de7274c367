"""Text and numbers from somebody else's run cannot harm or end a report."""

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from conftest import Tiny, grow, write_tiny
from matplotlib.figure import Figure

from space_warps.cli.main import main
from space_warps.core import InputError, sha256_file
from space_warps.data.audit import audit_catalogue
from space_warps.data.loaders import create_train_val_dataloaders
from space_warps.models.blocks import BlockSpec
from space_warps.reports import cutouts, diagrams, html, plots, test_plots
from space_warps.reports.audit_report import write_audit_report
from space_warps.runs.state import read_run_state, resumable_history

SCRIPT = "<script>alert(1)</script>"
ODD_NAMES = ["$a_{$", "_hidden\x1b[31m", "\u4e2d\u6587\ue000"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an evaluation."""
    folder = tmp_path_factory.mktemp("reports")
    tiny, run = write_tiny(folder / "tiny"), folder / "run"
    words = ["search.k_candidates=[2]", "search.max_layers=1", "search.epochs_per_eval=1"]
    grow(tiny, run, *words, "search.device=cpu", "data.features=[]", "search.final.epochs=1")
    assert main(["evaluate", f"run.dir={run}", *tiny.words()]) == 0
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test can break."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def change(run: Path, **values: Any) -> None:
    """Write other values into evaluation.json; keys are paths with two underscores."""
    path = run / "evaluation.json"
    record = json.loads(path.read_text())
    for key, value in values.items():
        place, names = record, key.split("__")
        for name in names[:-1]:
            place = place[int(name) if isinstance(place, list) else name]
        place[int(names[-1]) if isinstance(place, list) else names[-1]] = value
    path.write_text(json.dumps(record))


class Tags(HTMLParser):
    """The elements of a page, and text that stands in no element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)


WRONG = {
    "num_rows": SCRIPT,
    "num_objects": None,
    "num_evaluations": "1",
    "num_overlapping": SCRIPT,
    "accuracy": SCRIPT,
    "log_loss": True,
    "ceiling": [],
    "ece": {},
    "catalogue": 3,
    "classes": "ab",
    "classes__0": 7,
    "intervals": 1,
    "intervals__accuracy": [0.1],
    "intervals__accuracy__0": SCRIPT,
    "per_class": [],
    "per_class__GALAXY": 1,
    "per_class__GALAXY__purity": SCRIPT,
    "per_class__GALAXY__num_rows": None,
    "confusion": 0,
    "confusion__counts": [[1]],
    "confusion__counts__0__0": SCRIPT,
    "confusion__by_true__0": 1,
    "reliability": SCRIPT,
    "reliability__0__accuracy": SCRIPT,
    "curves__GALAXY__roc": 1,
    "curves__GALAXY__roc__0": SCRIPT,
    "curves": {"other": {"roc": [0, 1], "precision_recall": [0, 1]}},
    "by_signal_to_noise__0__low": SCRIPT,
    "baselines": 1,
    "baselines ": [{"name": "x"}],
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_in_an_evaluation_is_refused(run: Path, key: str) -> None:
    change(run, **{key.strip(): WRONG[key]})
    record = json.loads((run / "evaluation.json").read_text())
    with pytest.raises(
        InputError, match=r"evaluation\.json is damaged: .*evaluate again"
    ) as refused:
        test_plots.check_evaluation(record, run)
    assert "\n" not in str(refused.value)


def test_a_damaged_evaluation_ends_the_command_in_one_line(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change(run, accuracy=SCRIPT)
    (run / "report.html").unlink()
    assert main(["report", f"run.dir={run}"]) != 0
    message = capfd.readouterr().err.strip()
    assert len(message.splitlines()) == 1, message
    assert "evaluation.json is damaged" in message
    assert not (run / "report.html").exists()


def test_markup_in_text_stays_text(run: Path) -> None:
    record = json.loads((run / "evaluation.json").read_text())
    names = [f"{SCRIPT}{name}" for name in record["classes"]]
    pairs = list(zip(record["classes"], names, strict=True))
    baseline = {"name": SCRIPT, "inputs": SCRIPT, "accuracy": 0.5, "interval": [0.4, 0.6]}
    change(
        run,
        catalogue=SCRIPT,
        classes=names,
        per_class={new: record["per_class"][old] for old, new in pairs},
        curves={new: record["curves"][old] for old, new in pairs if old in record["curves"]},
        baselines=[{**baseline, "log_loss": 1.0, "num_params": None}],
    )
    assert main(["report", f"run.dir={run}"]) == 0
    page = (run / "report.html").read_text()
    assert "script" not in Tags(page).names
    assert page.count("&lt;script&gt;") >= 5  # catalogue, baseline twice, classes
    assert Tags(page).names.count("svg") == 6


def drawings(run: Path, tiny: Tiny) -> dict[str, Callable[[], Figure]]:
    """All plots, with class names that are odd."""
    record = json.loads((run / "evaluation.json").read_text())
    names = dict(zip(record["classes"], ODD_NAMES, strict=True))
    record["classes"] = ODD_NAMES
    for key in ("per_class", "curves"):
        record[key] = {names[name]: value for name, value in record[key].items()}
    lines = tiny.lines()
    for name, odd in names.items():
        lines = [line.replace(f",{name},", f",{odd},") for line in lines]
    tiny.write([lines[0].replace("z_err", "$z_{$"), *lines[1:]])
    loaders = create_train_val_dataloaders(*tiny[:2], features=["$z_{$"])
    train, val = (loader.dataset for loader in loaders)
    state = read_run_state(run)
    history = resumable_history(state)
    logits = np.eye(3, dtype=np.float32)[(val.catalogue.labels + 1) % 3]
    right = np.eye(3, dtype=np.float32)[val.catalogue.labels]
    changed = cutouts.find_changed_predictions(logits, right, val.catalogue.labels)
    return {
        "confusion": lambda: test_plots.plot_confusion(record),
        "curves": lambda: test_plots.plot_curves(record),
        "reliability": lambda: test_plots.plot_reliability(record),
        "brightness": lambda: test_plots.plot_by_brightness(record),
        "classes": lambda: cutouts.plot_classes(train),
        "distributions": lambda: cutouts.plot_distributions(train, val),
        "misclassified": lambda: cutouts.plot_misclassifications(val, logits),
        "changed": lambda: cutouts.plot_changed_predictions(val, changed),
        "growth": lambda: plots.plot_accuracy_vs_depth(history),
        "pareto": lambda: plots.plot_pareto(history),
        "learning": lambda: plots.plot_learning_curves(history.steps[0].results),
        "network": lambda: diagrams.plot_network(history.base_architecture, [BlockSpec(4)]),
        "tree": lambda: diagrams.plot_tree(state),
    }


def test_odd_names_are_drawn_as_they_are(finished: Path, tiny: Tiny) -> None:
    for name, draw in drawings(finished, tiny).items():
        figure = draw()
        assert plots.to_png(figure)[:4] == b"\x89PNG", name  # a missing glyph warns: an error here
        texts = " ".join(text.get_text() for text in figure.findobj(mpl.text.Text))
        assert "\x1b" not in texts, name
        if name in ("curves", "distributions"):
            legends = [axes.get_legend() for axes in figure.axes]
            counts = [len(legend.get_texts()) for legend in legends if legend is not None]
            assert 3 in counts, name  # matplotlib omits a label that begins with _


def test_a_matplotlibrc_changes_no_figure(finished: Path, tiny: Tiny) -> None:
    expected = {name: plots.to_png(draw()) for name, draw in drawings(finished, tiny).items()}
    settings = {"text.usetex": True, "font.size": 30, "savefig.bbox": "tight", "axes.grid": True}
    with mpl.rc_context(settings):
        for name, draw in drawings(finished, tiny).items():
            assert plots.to_png(draw()) == expected[name], name
        assert mpl.rcParams["text.usetex"]  # and the settings of the user stay


def test_a_figure_that_fails_is_named_in_terminal_and_report(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **options: Any) -> Figure:
        raise RuntimeError(f"latex\nis {SCRIPT} missing")

    before = sha256_file(run / "events.jsonl")
    monkeypatch.setitem(html._TEST_PLOTS, "confusion matrix", fail)
    monkeypatch.setattr(html.plots, "plot_pareto", fail)
    (run / "pareto.png").unlink()
    assert main(["report", f"run.dir={run}"]) == 0
    page, errors = (run / "report.html").read_text(), caplog.text
    for name in ("confusion matrix", "log-loss against parameters and multiply-adds"):
        assert f"{name} could not be drawn: RuntimeError: latex is" in page
        assert f"{name} could not be drawn: RuntimeError: latex is" in errors
    assert "script" not in Tags(page).names
    assert Tags(page).names.count("svg") == 4
    assert not (run / "pareto.png").exists()
    assert sha256_file(run / "events.jsonl") == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_audit_report_fits_the_screen(
    browser: Any, tmp_path: Path, tiny: Tiny, scheme: str, width: int
) -> None:
    """No sideways scrolling, text that stands out, no request, and markup stays text."""
    tiny.write([line.replace("GALAXY", "<b id=x>G</b>" + "long" * 30) for line in tiny.lines()])
    tiny.image(3).write_bytes(b"<script>")
    audit = audit_catalogue(*tiny, print_result=False)
    write_audit_report(audit, tmp_path / "audit.html", str(tiny.img_dir_path))
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "audit.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.query_selector("#x") is None and "<b id=x>" in page.inner_text("main")
    assert [url for url in requests if not url.startswith("data:")] == [page.url]
    light, dark = "rgb(246, 246, 244)", "rgb(17, 19, 23)"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == (dark if scheme == "dark" else light)
    page.close()
