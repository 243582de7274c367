"""A run folder from somebody else, or a damaged one, ends in one line and harms nothing."""

import importlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pytest
from conftest import ROOT, Tiny, grow, write_tiny

from space_warps.cli.main import main
from space_warps.core import _LIMITS, InputError
from space_warps.dashboard.controller import RunController
from space_warps.dashboard.figures import FigureSet
from space_warps.dashboard.layout import Layout
from space_warps.dashboard.presenter import show_bars, show_choices, show_status
from space_warps.evaluation.evaluate import stored_evaluation
from space_warps.models.saved_model import load_model
from space_warps.runs.folder import RunFolder, check_finished, record_backtrack
from space_warps.runs.journal import event_lines, read_events
from space_warps.runs.resume import RunResumeState
from space_warps.runs.state import RunState, read_run_state, resumable_history
from space_warps.runs.trackers import open_tracker
from space_warps.runs.tree import RunTree, describe_tree
from space_warps.search.events import SearchStarted
from space_warps.search.records import Backtrack

SECRET = b"-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n-----END OPENSSH PRIVATE KEY-----\n"
QUICK = [
    "search.max_layers=1",
    "search.k_candidates=[4,8]",
    "search.epochs_per_eval=2",
    "search.final.epochs=2",
    "data.train_ratio=0.7",
    "data.features=[]",
    "data.test_share=0.2",
    "search.device=cpu",
]


class Handed:
    """A finished run beside the folder of the person who opens copies of it."""

    def __init__(self, folder: Path) -> None:
        self.tiny: Tiny = write_tiny(folder / "tiny")
        self.folder, self.base, self.mine = folder, folder / "base", folder / "mine"
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            grow(self.tiny, self.base, *QUICK)
        self.environment = read_run_state(self.base).environment
        self.files = sorted(
            path.relative_to(self.base).as_posix()
            for path in self.base.rglob("*")
            if path.is_file()
        )

    def copy(self) -> Path:
        """A fresh copy of the run, beside a fresh home of its reader."""
        for name in ("run", "mine"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.mine.mkdir()
        (self.mine / "id_rsa").write_bytes(SECRET)
        shutil.copytree(self.base, self.mine / "thesis")
        return Path(shutil.copytree(self.base, self.folder / "run"))


@pytest.fixture(scope="module")
def handed(tmp_path_factory: pytest.TempPathFactory) -> Handed:
    return Handed(tmp_path_factory.mktemp("handed"))


def everything(folder: Path) -> dict[str, Any]:
    """Every path below a folder with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def command(*args: str) -> str:
    """Run a command; its message, which is one line if it is refused."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(args)
    message = err.getvalue().splitlines()[-1:]
    assert code == 0 or (code == 2 and message[0].startswith("space-warps: ")), (args, message)
    return message[0] if code else ""


# What each command reads and writes of a run, without training and drawing


def resume(run: Path, environment: dict[str, Any]) -> None:
    """Open a run to resume it and load all that it has trained."""
    folder = RunFolder(run, environment, resume=True)
    try:
        load_all(folder.resume_state)
    finally:
        folder.close()


def load_all(resume_state: RunResumeState) -> None:
    for stored in resume_state.state.results.values():
        trained = resume_state.load(stored.result.candidate)
        if trained is not None and stored.result.failed is None:
            trained.saved_model.build()
        resume_state.checkpoint(stored.result.candidate)


def open_tree(run: Path, environment: dict[str, Any]) -> None:
    tree = RunTree(run)
    describe_tree(tree)
    for node in tree.state.nodes[1:]:
        tree.at(node.number).model()
        tree.compare(node.number, node.number)


def evaluate(run: Path, environment: dict[str, Any]) -> None:
    check_finished(run)
    load_model(run).build()
    stored_evaluation(run, None)


COMMANDS: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    "resume": resume,
    "tree": open_tree,
    "undo": lambda run, environment: record_backtrack(run, Backtrack(0)),
    "branch": lambda run, environment: record_backtrack(
        run, Backtrack(0, "wide", overrides={"k_candidates": [8]})
    ),
    "evaluate": evaluate,
    "report": lambda run, environment: check_finished(run),
    "replay": lambda run, environment: resumable_history(read_run_state(run)).sha256,
}


def link_to(target: Path) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return damage


def replaced(content: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(content)

    return damage


def changed(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fifo_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return (
        content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :] if content else b"x"
    )


def other_version(content: bytes) -> bytes:
    return content.replace(b'"version":1', b'"version":7').replace(b'"version": 1', b'"version": 7')


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": replaced(b""),
    "cut": changed(lambda content: content[: len(content) // 2]),
    "bit flip": changed(flip),
    "a list": replaced(b"[]"),
    "null": replaced(b"null"),
    "a number": replaced(b"3"),
    "deep": replaced(b"[" * 100_000 + b"]" * 100_000),
    "deep object": replaced(b'{"a":' * 100_000),
    "huge number": replaced(b'{"version": ' + b"9" * 5000 + b"}"),
    "infinity": replaced(b'{"version": 1e999, "num_rows": Infinity}'),
    "not a number": replaced(b'{"format": NaN}'),
    "not UTF-8": replaced(b"\xff\xfe\x00{}"),
    "folder": folder_instead,
    "FIFO": fifo_instead,
    "no permission": lambda path: path.chmod(0),
    "device": link_to(Path("/dev/zero")),
    "other version": changed(other_version),
}


def test_every_file_with_every_damage(handed: Handed) -> None:
    """One line or success for all files, damages and commands; nothing else is changed."""
    counts: Counter[str] = Counter()
    for file in handed.files:
        for damage_name, damage in DAMAGES.items():
            run = handed.copy()
            damage(run / file)
            before = everything(handed.mine)
            for name, action in COMMANDS.items():
                try:
                    action(run, handed.environment)
                    counts["worked"] += 1
                except InputError as error:
                    assert "\n" not in str(error), (file, damage_name, name)
                    counts["refused"] += 1
                except Exception as error:
                    raise AssertionError(f"{name} of a run with {file}: {damage_name}") from error
            assert everything(handed.mine) == before, (file, damage_name)
    print(f"{len(handed.files)} files, {len(DAMAGES)} damages, {counts.total()} cases: {counts}")
    assert counts["refused"] > 500 and counts["worked"] > 500


def test_no_file_of_a_run_is_read_or_written_through_a_link(handed: Handed) -> None:
    """Each file is a link to the same file of another run, then to a private key."""
    for file in handed.files:
        for target in (Path("thesis") / file, Path("id_rsa")):
            run = handed.copy()
            link_to(handed.mine / target)(run / file)
            before = everything(handed.mine)
            for action in COMMANDS.values():
                with suppress(InputError):
                    action(run, handed.environment)
            assert everything(handed.mine) == before, (file, target)
            for path in run.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    assert SECRET not in path.read_bytes(), path


def test_no_folder_of_a_run_leads_elsewhere(handed: Handed) -> None:
    for folder in ("step_01", "final"):
        run = handed.copy()
        shutil.rmtree(run / folder)
        (run / folder).symlink_to(handed.mine / "thesis" / folder)
        (run / "events.jsonl").write_bytes(event_lines(read_events(handed.base)[:-3]))
        before = everything(handed.mine)
        for action in COMMANDS.values():
            with suppress(InputError):
                action(run, handed.environment)
        command("search", f"run.dir={run}", "run.resume=true")
        assert everything(handed.mine) == before


@pytest.mark.parametrize("name", ["events.jsonl", "test_access.jsonl", "config.yaml", ".lock"])
@pytest.mark.parametrize(
    "args",
    [
        ["undo", "step=0"],
        ["branch", "branch=b", "step=0"],
        ["search", "run.resume=true"],
        ["evaluate"],
    ],
    ids=lambda args: args[0],
)
def test_a_link_to_a_private_key(handed: Handed, name: str, args: list[str]) -> None:
    run = handed.copy()
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(handed.mine / "id_rsa")
    more = [] if args[0] != "evaluate" else handed.tiny.words()
    before = everything(handed.mine)
    command(args[0], f"run.dir={run}", *args[1:], *more)
    assert everything(handed.mine) == before
    for path in run.rglob("*"):
        assert path.is_symlink() or path.is_dir() or SECRET not in path.read_bytes(), path


def test_a_torn_line_is_cut_only_after_every_line_was_checked(handed: Handed) -> None:
    run = handed.copy()
    events = read_events(run)
    events[2] = {"event": "unknown"}
    content = event_lines(events) + b"torn"
    (run / "events.jsonl").write_bytes(content)
    for name in ("undo", "branch", "resume"):
        with pytest.raises(InputError, match="unknown event"):
            COMMANDS[name](run, handed.environment)
        assert (run / "events.jsonl").read_bytes() == content


# Records with names and values that nobody would write


def names_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values within JSON."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(inner for key, item in items for inner in names_of(item, (*path, key)))]


def with_value(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """JSON with one value replaced."""
    copy = json.loads(json.dumps(value))
    if not path:
        return new
    target = copy
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = new
    return copy


@pytest.mark.parametrize("branch", ["../mine/thesis", "*", "a/b", "..", "step_01", "", "a\nb"])
def test_a_branch_is_checked_where_it_is_read(handed: Handed, branch: str) -> None:
    run = handed.copy()
    events = read_events(run)
    position = next(n for n, event in enumerate(events) if event["event"] == "candidate_ended")
    fake = with_value(events[position], ("result", "candidate", "branch"), branch)
    (run / "events.jsonl").write_bytes(event_lines([*events[: position + 1], fake]))
    before = everything(handed.mine)
    for action in COMMANDS.values():
        with pytest.raises(InputError, match="the name of a branch"):
            action(run, handed.environment)
    assert everything(handed.mine) == before


def test_a_checkpoint_is_known_by_its_own_name_only(handed: Handed) -> None:
    events = read_events(handed.base)
    position = next(n for n, event in enumerate(events) if event["event"] == "epoch_ended")
    for name in ("../mine/id_rsa", "model.safetensors", "/etc/passwd", 3):
        fake = {**events[position], "checkpoint": name, "checkpoint_sha256": "0" * 64}
        state = RunState()
        with pytest.raises(InputError, match="checkpoint"):
            for event in [*events[:position], fake]:
                state.add(event)


def test_every_value_of_an_event_may_have_another_type(handed: Handed) -> None:
    """Each value of each kind of event is replaced; the events are accepted or refused."""
    events, kinds = read_events(handed.base), Counter[str]()
    seen: set[str] = set()
    for position, event in enumerate(events):
        if event["event"] in seen:
            continue
        seen.add(event["event"])
        state = RunState()
        for earlier in events[:position]:
            state.add(earlier)
        for path in names_of(event):
            for new in (None, [], {}, "x", -1, 2**63, 1e308, True, [[]], {"a": None}):
                fake = with_value(event, path, new)
                if not isinstance(fake, dict):
                    continue  # refused by the journal
                try:
                    rebuilt(events[:position], fake)
                    kinds["accepted"] += 1
                except InputError:
                    kinds["refused"] += 1
                except Exception as error:
                    raise AssertionError(f"{event['event']} {path} {new!r}") from error
    print(kinds)
    assert kinds["refused"] > 1000


def rebuilt(earlier: list[dict[str, Any]], event: dict[str, Any]) -> RunState:
    """State after an event, with all that is derived from it."""
    state = RunState()
    for item in [*earlier[:1], *[e for e in earlier[1:] if e["event"] != "epoch_ended"], event]:
        state.add(item)
    if state.history is not None:
        state.kept_results()
        state.history.layers()
        assert state.history.sha256
        for node in state.nodes:
            assert node.history.final_result is None or node.history.final_result.candidate.name
    return state


@pytest.mark.parametrize("name", sorted(_LIMITS))
def test_no_number_of_a_record_asks_for_more_than_any_search(handed: Handed, name: str) -> None:
    """Wherever a limited field stands in the events, the model or the settings."""
    events = read_events(handed.base)
    for position, event in enumerate(events):
        path = next((path for path in names_of(event) if path and path[-1] == name), None)
        if path is not None:
            value = event
            for key in path:
                value = value[key]
            number: Any = _LIMITS[name] + 1
            if isinstance(value, list):
                is_shape = value and isinstance(value[0], int)
                number = [number] if is_shape else (value[:1] or [0]) * min(number, 10**6 + 1)
            fake = with_value(event, path, number)
            with pytest.raises(InputError, match=f"{name}|is of type"):
                rebuilt(events[:position], fake)
            break


def test_nothing_of_a_handed_run_is_imported_or_tracked(
    handed: Handed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Modules on the path, named by the settings, the events and the model of a handed run."""
    run = handed.copy()
    (handed.folder / "trap.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(handed.folder))
    text = (run / "config.yaml").read_text()
    assert "- conv" in text and "track: null" in text
    trap = text.replace("- conv", "- trap:Block").replace("track: null", "track: wandb")
    strategy = text.replace("strategy: greedy", "strategy: trap:propose")
    content = json.dumps(read_events(run))
    blocks = content.replace('"family": "conv"', '"family": "trap:Block"')
    for changed_config, changed_events in (
        (trap, content),
        (strategy, content),
        (text, blocks.replace('"families": ["conv"]', '"families": ["trap:Block"]')),
        (text, content.replace('"strategy": "greedy"', '"strategy": "trap:propose"')),
    ):
        (run / "config.yaml").write_text(changed_config)
        (run / "events.jsonl").write_bytes(event_lines(json.loads(changed_events)))
        for args in (
            *(["search", "run.resume=true"], ["evaluate"], ["report"], ["tree"]),
            *(["replay", "step=1"], ["undo", "step=0"], ["branch", "branch=b", "step=0"]),
        ):
            shutil.rmtree(handed.folder / "again", ignore_errors=True)
            shutil.copytree(run, handed.folder / "again")
            command(args[0], f"run.dir={handed.folder / 'again'}", *args[1:])
            assert "trap" not in sys.modules and "wandb" not in sys.modules, args
    (run / "config.yaml").write_text(text.replace("track: null", "track: wandb"))
    (run / "events.jsonl").write_bytes(event_lines(read_events(handed.base)))
    assert main(["search", f"run.dir={run}", "run.resume=true"]) == 0
    assert "track=wandb of this run is not used; add it to use it" in capsys.readouterr().out


HOSTILE = "\x1b]52;c;eA==\x07\x1b[2J\r\u202e<script>alert(1)</script>$\\frac{_^"


def hostile_events(events: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Events with hostile text wherever they are accepted with it, and their number of places."""
    state, result, count = RunState(), list[dict[str, Any]](), 0
    for position, event in enumerate(events):
        for path in names_of(event):
            value = event
            for key in path:
                value = value[key]
            changed_event = with_value(event, path, HOSTILE) if isinstance(value, str) else None
            if changed_event is None or path in (("event",), ("history_sha256",)):
                continue
            with suppress(InputError):
                rebuilt(result, with_hash(state, changed_event))
                event, count = changed_event, count + 1
        event = with_hash(state, event)
        state.add(event)
        result.append(event)
        assert position + 1 == len(result)
    return result, count


def with_hash(state: RunState, event: dict[str, Any]) -> dict[str, Any]:
    """The end of a search with the hash that its history has."""
    if event["event"] != "search_ended" or state.history is None:
        return event
    ended = replace(state.history, stop_reason=event["stop_reason"])
    return {**event, "history_sha256": ended.sha256}


def test_text_of_a_run_acts_on_nothing(
    handed: Handed, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the terminal, the report and the dashboard."""
    run = handed.copy()
    events, count = hostile_events(read_events(run))
    assert count > 50
    (run / "events.jsonl").write_bytes(event_lines(events))
    for args in (
        *(["tree"], ["report"], ["evaluate"], ["replay", "step=1"], ["search", "run.resume=true"]),
        *(["branch", "branch=b", "step=0", f"note={HOSTILE}"], ["tree"]),
        *(["undo", "step=0", f"note={HOSTILE}"], ["search", "run.resume=true"], ["tree"]),
    ):
        command_of(*args, f"run.dir={run}")
        shown = "".join(capfd.readouterr())
        assert not set("\x1b\x07\r\u202e") & set(shown), (args, shown)
    assert "<script" not in (run / "report.html").read_text()
    controller = RunController(handed.folder)
    controller.open_run(run)
    page = Layout(controller.config, FigureSet(controller))
    show_status(page, controller, [HOSTILE], ())
    show_bars(page, controller.monitor)
    show_choices(page, controller)
    texts = [w.value for w in vars(page).values() if isinstance(w, widgets.HTML)]
    assert any("alert(1)" in text for text in texts)
    assert not any("<script" in text for text in texts)


def command_of(*args: str) -> None:
    """Run a command that may be refused, in one line."""
    assert main(args) in (0, 1, 2), args


def test_a_tracker_writes_into_its_own_folder(handed: Handed) -> None:
    run = handed.copy()
    for link in ("tensorboard", "tensorboard/search", "tensorboard/a/b"):
        shutil.rmtree(run / "tensorboard", ignore_errors=True)
        (run / link).parent.mkdir(parents=True, exist_ok=True)
        (run / link).symlink_to(handed.mine)
        with pytest.raises(InputError, match="leads to another folder"):
            open_tracker("tensorboard", run / "tensorboard")
        (run / link).unlink()


# Deaths of the process


def test_a_candidate_that_ends_the_process_twice_has_failed(handed: Handed) -> None:
    events = read_events(handed.base)
    position = next(n for n, event in enumerate(events) if event["event"] == "candidate_started")
    state, resumed = RunState(), {"event": "resumed", "environment": {}}
    for event in events[: position + 1]:
        state.add(event)
    (candidate,) = state.starting and [c for c in state.candidates if c.name in state.starting]
    resume_state = RunResumeState(handed.base, state)
    state.add(resumed)
    assert resume_state.load(candidate) is None, "one death may be by chance"
    state.add(resumed)
    assert resume_state.load(candidate) is None, "it was not started again"
    state.add(events[position])
    state.add(resumed)
    trained = resume_state.load(candidate)
    assert trained is not None and trained.result is not None
    assert "ended the process 2 times" in str(trained.result.failed)


def test_a_training_beyond_its_first_epoch_is_trained_again(handed: Handed) -> None:
    events = read_events(handed.base)
    position = next(n for n, event in enumerate(events) if event["event"] == "epoch_ended")
    state = RunState()
    for event in events[: position + 1]:
        state.add(event)
    for _ in range(3):
        state.add({"event": "resumed", "environment": {}})
    assert not state.deaths


def test_a_search_with_other_settings_names_both_values(handed: Handed) -> None:
    run = handed.copy()
    folder = RunFolder(run, handed.environment, resume=True)
    history = resumable_history(folder.state)
    config = replace(history.config, max_layers=7)
    with pytest.raises(InputError, match=r"max_layers was 1 and is 7.*start a branch"):
        folder(SearchStarted(config, history.base_architecture, history.num_train, history.num_val))
    folder.close()


# Mutations


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the cases run in forked processes")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_mutated_runs_models_and_catalogues(
    tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short run of benchmarks/fuzz.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    fuzz = importlib.import_module("fuzz")
    result = fuzz.fuzz(tmp_path, 100)
    assert not result["faults"]
    assert result["counts"]["refused"] > 50
