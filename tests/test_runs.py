"""A run that is stopped, killed or damaged resumes to the same bits, and can go back and branch."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT, Tiny, grow

from space_warps.cli.main import main
from space_warps.core import _LIMITS, sha256_file
from space_warps.data.loaders import create_train_val_dataloaders
from space_warps.runs.artifacts import read_val_rows
from space_warps.runs.environment import describe_environment
from space_warps.runs.folder import RunFolder
from space_warps.runs.journal import event_lines, read_events
from space_warps.runs.state import read_history
from space_warps.runs.tree import RunTree
from space_warps.search.config import FinalConfig, SearchConfig, TrainingConfig
from space_warps.search.runner import LocalRunner
from space_warps.search.search import search

QUICK = [
    "search.max_layers=2",
    "search.k_candidates=[4,8]",
    "search.epochs_per_eval=2",
    "search.final.epochs=3",
    "data.train_ratio=0.7",
    "data.features=[]",
    "run.checkpoint_s=0",
]


def resume(run: Path, *args: str) -> int:
    """Exit code of a search that resumes."""
    return main(["search", f"run.dir={run}", "run.resume=true", *args])


def start(tiny: Tiny, run: Path) -> subprocess.Popen[str]:
    """Start a search in a process of its own, with as many threads as this one."""
    args = [*tiny.words(), f"run.dir={run}", *QUICK]
    return subprocess.Popen(
        [sys.executable, "-m", "space_warps.cli.main", "search", *args],
        cwd=run.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )


def wait_for(searching: subprocess.Popen[str], run: Path, event: bytes) -> None:
    """Wait until an event of that kind is on disk."""
    journal = run / "events.jsonl"
    while not journal.exists() or event not in journal.read_bytes():
        assert searching.poll() is None, searching.communicate()
        time.sleep(0.01)


def run_signalled(at: int, signals: Sequence[str], *args: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own that sends itself `signals` at its training step `at`."""
    kills = "".join(f"        os.kill(os.getpid(), signal.{name})\n" for name in signals)
    code = (
        "import os, signal, sys\n"
        "import space_warps.training.loop as loop\n"
        "from space_warps.cli.main import main\n"
        "step, calls = loop.train_step, []\n"
        "def signalled(*args):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == {at}:\n{kills}"
        "    return step(*args)\n"
        "loop.train_step = signalled\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, env=threads
    )


@pytest.fixture
def faults(one_thread: None) -> Iterator[ModuleType]:
    """The script that counts which faults a run survives; it forks, so it has one thread."""
    spec = importlib.util.spec_from_file_location("faults", ROOT / "benchmarks/faults.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["faults"]


def test_faults_of_the_machine(faults: ModuleType, tmp_path: Path) -> None:
    bench = faults.prepare(tmp_path)
    flips = faults.bit_flip_trials(bench, 50)
    assert flips["accepted"] == 0 and flips["refused"] >= 45
    torn = faults.torn_line_trials(bench, resumed_every=150)
    assert torn["read_correctly"] == torn["trials"] > 500
    assert torn["identical"] == torn["resumed"] >= 4
    full = faults.full_disk_trials(bench, every=6)
    assert full["errors"] == full["identical"] == full["trials"] >= 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed processes are forked")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_killed_searches_end_with_the_same_bits(faults: ModuleType, tmp_path: Path) -> None:
    bench = faults.prepare(tmp_path)
    result = faults.kill_trials(bench, 10)
    assert result["identical"] == result["trials"] == 10
    assert result["kills"] >= 3, "nothing was disturbed"


@pytest.mark.parametrize(
    ("event", "number"),
    [(b"epoch_ended", signal.SIGTERM), (b"final_training_started", signal.SIGINT)],
)
def test_a_stopped_search_resumes_to_the_same_bits(
    tiny: Tiny, tmp_path: Path, event: bytes, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, run = grow(tiny, tmp_path / "whole", *QUICK), tmp_path / "run"
    searching = start(tiny, run)
    wait_for(searching, run, event)
    searching.send_signal(number)
    output, _ = searching.communicate(timeout=60)
    assert searching.returncode == 128 + number
    assert f"to resume: space-warps search run.dir={run} run.resume=true" in output
    assert "interrupted" in read_history(run).stop_reason
    capsys.readouterr()
    assert resume(run) == 0
    assert "resuming after" in capsys.readouterr().out
    again = json.loads((run / "progressive_summary.json").read_text())
    for key in ("history_sha256", "model_sha256", "stop_reason", "final_training", "steps"):
        assert again[key] == whole[key]
    assert resume(run) == 0
    assert "is complete" in capsys.readouterr().out


OPENED: list[str] = []  # Files that were opened for reading, while it is watched


def count_reads(event: str, args: tuple[object, ...]) -> None:
    """Audit hook; hooks cannot be removed."""
    flags = args[2] if event == "open" and len(args) == 3 else None
    if isinstance(flags, int) and not flags & (os.O_WRONLY | os.O_RDWR):
        OPENED.append(Path(str(args[0])).name)


def test_a_resumed_search_reads_its_journal_once(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    grow(tiny, run, *QUICK, "data.test_share=0.2")
    cut_after(run, "step_ended")
    sys.addaudithook(count_reads)
    OPENED.clear()
    assert resume(run) == 0
    assert (run / "evaluation.json").exists() and (run / "report.html").exists()
    assert OPENED.count("events.jsonl") == 1


def test_a_second_interrupt_stops_immediately_and_the_search_resumes(
    tiny: Tiny, tmp_path: Path
) -> None:
    whole, run = grow(tiny, tmp_path / "whole", *QUICK), tmp_path / "run"
    args = [*tiny.words(), f"run.dir={run}", *QUICK]
    done = run_signalled(12, ["SIGINT", "SIGINT"], "search", *args)
    assert done.returncode == 130, done.stderr
    last = read_events(run)[-1]
    assert last["event"] == "search_ended" and last["interrupted"] is True
    assert resume(run) == 0
    again = json.loads((run / "progressive_summary.json").read_text())
    assert again["model_sha256"] == whole["model_sha256"]


def test_two_searches_cannot_share_a_folder(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    searching = start(tiny, run)
    wait_for(searching, run, b"candidate_started")
    assert resume(run) == 2
    assert "is being written to by another search" in capsys.readouterr().err
    assert main(["search", *tiny.words(), f"run.dir={run}", *QUICK]) == 2
    assert "is not empty" in capsys.readouterr().err
    searching.kill()
    searching.communicate()
    assert resume(run) == 0, "the lock is released with the process"


def cut_after(run: Path, event: str) -> None:
    """Cut the journal after the first event of that kind, as if the machine had stopped."""
    lines = (run / "events.jsonl").read_bytes().splitlines(keepends=True)
    names = [item["event"] for item in read_events(run)]
    (run / "events.jsonl").write_bytes(b"".join(lines[: names.index(event) + 2]))  # and the header


@pytest.mark.parametrize("fault", ["changed", "deleted"])
def test_an_image_that_has_changed(
    tiny: Tiny, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    whole = grow(tiny, run, *QUICK)
    cut_after(run, "step_ended")
    content = tiny.image(5).read_bytes()
    if fault == "changed":
        shutil.copy(tiny.image(6), tiny.image(5))
    else:
        tiny.image(5).unlink()
    capsys.readouterr()
    assert resume(run) == 2
    message = capsys.readouterr().err
    assert ("rows_sha256 differs" if fault == "changed" else tiny.image(5).name[:20]) in message
    tiny.image(5).write_bytes(content)
    assert resume(run) == 0
    again = json.loads((run / "progressive_summary.json").read_text())
    assert again["model_sha256"] == whole["model_sha256"]


def test_another_environment_is_refused_unless_accepted(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    grow(tiny, run, *QUICK)
    cut_after(run, "step_ended")
    events = read_events(run)
    environment = events[0]["environment"]
    assert environment == json.loads((run / "environment.json").read_text())
    assert {"threads", "device", "packages", "rows_sha256", "commit"} <= set(environment)
    environment["threads"] = 99
    environment["packages"]["torch"] = "1.0"
    (run / "events.jsonl").write_bytes(event_lines(events))
    capsys.readouterr()
    assert resume(run) == 2
    message = capsys.readouterr().err
    assert "threads was 99 and is" in message and "torch was 1.0 and is" in message
    assert "sums are taken in another order" in message and "run.accept_changes=true" in message
    assert resume(run, "run.accept_changes=true") == 0
    assert "differs from that of the run: threads was 99" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["search.lr=0.1"], "search.lr is 0.003 in the run, got 0.1; it cannot change"),
        (["run.keep=some"], "keep is selected or all"),
    ],
)
def test_keys_that_a_resumed_search_refuses(
    tiny: Tiny, tmp_path: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    grow(tiny, run, *QUICK)
    cut_after(run, "step_ended")
    capsys.readouterr()
    assert resume(run, *args) == 2
    assert message in capsys.readouterr().err
    assert resume(run) == 0


@pytest.mark.parametrize("folder", ["none", "images"])
def test_a_folder_that_is_not_a_run_is_not_touched(
    tiny: Tiny, tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny.img_dir_path if folder == "images" else tmp_path / "none"
    assert resume(path) == 2
    assert "give the folder of a run" in capsys.readouterr().err
    assert not (path / ".lock").exists()


def test_a_folder_that_cannot_be_written_to(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    grow(tiny, run, *QUICK)
    cut_after(run, "step_ended")
    (run / "events.jsonl").rename(run / "kept.jsonl")
    (run / "events.jsonl").mkdir()  # instead of a read-only file, which root may write
    before = sorted(path.name for path in run.iterdir())
    capsys.readouterr()
    assert resume(run) == 2
    assert "events.jsonl" in capsys.readouterr().err
    assert sorted(path.name for path in run.iterdir()) == before


def test_changed_weights_are_refused_and_missing_ones_trained_again(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    whole = grow(tiny, run, *QUICK, "run.keep=all")
    cut_after(run, "step_ended")
    selected = read_history(run).steps[0].selected
    assert selected is not None
    file = run / f"{selected.candidate.name}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    capsys.readouterr()
    assert resume(run) == 2
    assert "is not the file that the run wrote" in capsys.readouterr().err
    file.unlink()
    assert resume(run) == 0
    assert sha256_file(file) == selected.weights_sha256
    again = json.loads((run / "progressive_summary.json").read_text())
    assert again["model_sha256"] == whole["model_sha256"]


def test_a_branch_is_searched_and_replayed(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    whole = grow(tiny, run, *QUICK)
    first = read_history(run).steps[0]
    assert first.selected is not None
    other = 1 - first.selected.candidate.index
    args = [f"run.dir={run}", "step=1", "branch=other", f"take={other}", "note=what if, then?"]
    assert main(["branch", *args, "search.selection.patience=0"]) == 0
    assert resume(run) == 0
    capsys.readouterr()
    assert main(["tree", f"run.dir={run}"]) == 0
    text = capsys.readouterr().out
    assert "what if, then?" in text and "patience=0" in text and text.count(" ended: ") == 2
    tree = RunTree(run)
    branches = {node.history.branch for node in tree.state.nodes}
    assert branches == {"main", "other"}
    assert tree.at(1).result == first.selected, "the first branch has not changed"
    assert tree.at(1).model().num_params == first.selected.num_params
    assert read_history(run).steps[0].decision.author == "person"
    assert read_history(run).config.selection.patience == 0
    ended = json.loads((run / "progressive_summary.json").read_text())
    assert (ended["branch"], ended["history_sha256"] == whole["history_sha256"]) == ("other", False)
    for step in ("1", "2", "final")[: 1 + len(read_history(run).steps)]:
        assert main(["replay", f"run.dir={run}", f"step={step}"]) == 0
        assert "identical" in capsys.readouterr().out
    for args, message in (
        (["branch", "step=1", "branch=other"], "other already"),
        (["branch", "step=9", "branch=new"], "there is no step 9"),
        (["branch", "step=1", "branch=a/b"], "up to 40 letters"),
        (["branch", "node=9", "branch=new"], "no node 9"),
        (["branch", "step=1", "branch=new", "run.keep=all"], "run.keep has no effect on branch"),
        (["undo", "step=1", "take=0"], "take has no effect on undo"),
        (["branch", "step=1", "branch=new", "search.lr=-1"], "lr is a learning rate above 0"),
        (["undo", "step=up"], "step is a whole number"),
        (["replay", "step=9"], "no step 9"),
    ):
        assert main([args[0], f"run.dir={run}", *args[1:]]) == 2
        assert message in capsys.readouterr().err


def test_a_replay_lists_differences(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    grow(tiny, run, *QUICK)
    for row in (8, 11):
        shutil.copy(tiny.image(5), tiny.image(row))
    capsys.readouterr()
    assert main(["replay", f"run.dir={run}", "step=1"]) == 1
    output = capsys.readouterr().out
    assert "step_01/control differs: " in output and "weights " in output
    assert "rows_sha256 differs" in output


def test_a_tracker_of_the_command_line(tiny: Tiny, tmp_path: Path) -> None:
    grow(tiny, tmp_path / "run", *QUICK, "track=tensorboard")
    written = list((tmp_path / "run/tensorboard").rglob("events.out.tfevents.*"))
    assert len(written) > 5
    assert main(["search", *tiny.words(), f"run.dir={tmp_path / 'b'}", "track=paper"]) == 2
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("args", [[], ["search.plain=true", "search.k_candidates=[3,4,5]"]])
def test_a_branch_selects_another_candidate_and_continues_any_node(
    tiny: Tiny, tmp_path: Path, args: list[str]
) -> None:
    """Also where candidates start from others of the step, whose weights are removed."""
    run = tmp_path / "run"
    grow(tiny, run, *QUICK, *args)
    step = read_history(run).steps[0]
    others = [result for result in step.results if result is not step.selected]
    for number, other in enumerate(others):
        take = f"take={other.candidate.index}"
        assert main(["branch", f"run.dir={run}", "node=1", f"branch=b{number}", take]) == 0
        assert resume(run) == 0
        assert read_history(run).steps[0].selected == other
    assert main(["undo", f"run.dir={run}", "step=0"]) == 0
    assert main(["branch", f"run.dir={run}", "node=1", "branch=back"]) == 0
    assert resume(run) == 0
    tree = RunTree(run)
    for node in tree.state.nodes[1:]:
        if node.history.steps[-1].selected is not None:
            opened = tree.at(node.number)
            assert opened.model().num_params == opened.result.num_params
            correct = (
                opened.scores().argmax(dim=1).numpy()
                == read_val_rows(run, tree.state.val_sha256).labels
            )
            assert correct.mean() == pytest.approx(opened.result.val_acc)


def test_evaluate_and_report_refuse_a_run_that_went_back(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    grow(tiny, run, *QUICK, "data.test_share=0.2")
    assert main(["undo", f"run.dir={run}", "step=1"]) == 0
    for command in ("evaluate", "report"):
        capsys.readouterr()
        assert main([command, f"run.dir={run}"]) == 2
        assert "went back and has not been resumed" in capsys.readouterr().err
    assert resume(run) == 0
    assert main(["evaluate", f"run.dir={run}"]) == 0


def test_a_resume_writes_missing_reports_and_evaluations(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    grow(tiny, run, *QUICK, "data.test_share=0.2")
    (run / "report.html").unlink()
    (run / "evaluation.json").unlink()
    assert resume(run) == 0
    assert "<h2>Test set</h2>" in (run / "report.html").read_text()
    num_logged = (run / "test_access.jsonl").read_text().count("\n")
    assert resume(run) == 0, "everything is done"
    assert (run / "test_access.jsonl").read_text().count("\n") == num_logged == 2


def test_whole_numbers_for_float_settings(tiny: Tiny, tmp_path: Path) -> None:
    """A 0 is read back as 0.0, with the same hash."""
    loaders = create_train_val_dataloaders(*tiny, train_ratio=0.7, features=[])
    config = SearchConfig(
        max_layers=1,
        k_candidates=(4,),
        epochs_per_eval=1,
        training=TrainingConfig(dropout=0, weight_decay=0),
        final=FinalConfig(enabled=False),
    )
    folder = RunFolder(tmp_path / "run", describe_environment(tiny.csv_path, "cpu", loaders))
    _, history = search(config, LocalRunner(*loaders, device="cpu"), observers=[folder])
    assert read_history(tmp_path / "run").sha256 == history.sha256


def test_a_step_whose_candidates_all_fail_is_an_error_each_time(
    tiny: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("space_warps.search.config._MAX_WIDTH", 10**11)  # beyond the memory
    for name in ("k", "k_candidates"):
        monkeypatch.setitem(_LIMITS, name, 10**11)
    run = tmp_path / "run"
    args = [*tiny.words(), f"run.dir={run}", *QUICK, "search.k_candidates=[[4],[10000000000]]"]
    assert main(["search", *args]) == 2
    assert "all candidates failed at step 2" in capsys.readouterr().err
    assert RunTree(run).at(1).model().num_layers == 1, "the network of step 1 is kept"
    assert resume(run) == 2
    assert "all candidates failed at step 2" in capsys.readouterr().err
    assert main(["branch", f"run.dir={run}", "step=1", "branch=b", "search.max_layers=1"]) == 0
    assert resume(run) == 0


def test_a_branch_with_mutations_that_the_base_network_does_not_allow(
    tiny: Tiny, tmp_path: Path
) -> None:
    """The base network has no block to widen, but the branch starts later."""
    run = tmp_path / "run"
    grow(tiny, run, *QUICK)
    (narrow,) = (o for o in read_history(run).steps[0].results if o.candidate.blocks[0].k == 4)
    args = ["step=1", "branch=wide", f"take={narrow.candidate.index}"]
    args += ["search.space.mutations=[widen]", "search.k_candidates=[4,16]"]
    assert main(["branch", f"run.dir={run}", *args]) == 0
    assert resume(run) == 0
    (wide,) = read_history(run).steps[1].results
    assert (wide.candidate.mutation, [spec.k for spec in wide.candidate.blocks]) == ("widen", [16])
    assert resume(run) == 0


def test_a_stop_while_an_unselected_candidate_is_trained_again(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    grow(tiny, run, *QUICK)
    first = read_history(run).steps[0]
    assert first.selected is not None
    take = f"take={1 - first.selected.candidate.index}"
    assert main(["branch", f"run.dir={run}", "step=1", "branch=b", take]) == 0
    done = run_signalled(1, ["SIGTERM"], "search", f"run.dir={run}", "run.resume=true")
    assert done.returncode == 143, done.stderr
    assert resume(run) == 0
    assert read_history(run).branch == "b"
