"""Which strategy finds the better network at the same cost?

Every strategy has the same budget in epochs, including final training and controls, and the same search
space, with up to 6 million multiply-adds for an image of 75 pixels (the fixed ladder has 4.3). Searches
continue without gains until the budget is spent; the training of a parent is counted once. Random search
never starts from trained weights, so it has no variants "from scratch". Epochs of a large network cost
more than those of a small one, so the multiply-adds of all trainings are given as well. Two fixed
networks serve as baselines: a ladder of four blocks, trained once for the whole budget, and torchvision's
ResNet-18 from scratch, for fewer epochs that cost many times as much.

The catalogue is divided into five parts of whole objects. A search, with its own seed, uses two of them, a
third of these objects for validation: with fewer, its comparisons are noise. It is tested on the other
three. Two accuracies are recorded: of the network that the search returns, and the mean accuracy of its
architecture when it is trained again from scratch with other seeds. The second measures the choice of
blocks; repeated trainings differ by more than most strategies do. Folds share rows, so standard errors
over folds are somewhat too small.

`--half "pnas, halving"` adds a line with half the budget and half the epochs of final training. `--crop 48`
uses the central pixels of every cutout and scales the limit of multiply-adds. Lines that the file of
`--json` already contains, by name and fold, are not run again, so an interrupted run continues; each line
records its commit and machine. `--quick` is one fold and a small budget, on 1,500 simulated rows if no
catalogue is given.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_epoch import Loaders
from grown import split_catalogue
from PIL import Image
from side_by_side import commit, machine
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from space_warps.core import InputError, derive_seed, seeded, sha256_file, write_json
from space_warps.data.augment import Augment
from space_warps.data.dataset import Space_Galaxi
from space_warps.data.loaders import create_train_val_dataloaders
from space_warps.data.simulate import simulate_catalogue
from space_warps.evaluation.baselines import ResNet18
from space_warps.evaluation.metrics import Predictions, summarize_metrics
from space_warps.models.blocks import BlockSpec
from space_warps.search.config import SearchConfig
from space_warps.search.records import Candidate, CandidateResult
from space_warps.search.runner import LocalRunner
from space_warps.search.search import search
from space_warps.search.settings import list_settings, with_overrides
from space_warps.search.strategies import settings_without_effect, strategies
from space_warps.search.surrogate import rank_correlation
from space_warps.training.calibration import fit_temperature
from space_warps.training.config import TrainConfig
from space_warps.training.loop import evaluate, train

SPACE: dict[str, Any] = {
    "space.families": ("conv", "residual", "separable", "inception"),
    "num_candidates": 9,
    "space.mutations": ("deepen", "widen", "swap"),
    "space.max_macs": 6_000_000,  # Of 75 pixels
    "max_steps": 100,
    "selection.patience": 100,
}
STRATEGIES = ("greedy", "random", "beam", "pnas")
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "halving": {"rungs": (1, 3, 9)},
    "from scratch": {"training.copy_weights": False},
    "halving, from scratch": {"rungs": (1, 3, 9), "training.copy_weights": False},
}
MORE_VARIANTS: dict[str, dict[str, Any]] = {  # Only if args with --ways
    "longer halving": {"rungs": (2, 6)},
    "longer halving, from scratch": {"rungs": (2, 6), "training.copy_weights": False},
}
TRAIN_RATIO = 2 / 3
Run = Callable[[Loaders, Space_Galaxi, argparse.Namespace], dict[str, Any]]
LADDER_NAME = "ladder 8, 16, 32, 64"
LADDER = (BlockSpec(8, kernel_size=5, downsample=3), BlockSpec(16), BlockSpec(32), BlockSpec(64))


def variants(strategies: list[str], ways: list[str]) -> dict[str, dict[str, Any]]:
    """Settings of each line by name."""
    return {
        f"{strategy}{', ' if way else ''}{way}": {
            "strategy": strategy,
            **(VARIANTS | MORE_VARIANTS)[way],
        }
        for strategy in strategies
        for way in ways
        if strategy != "random" or "from scratch" not in way
    }


def search_config(base: SearchConfig, changes: dict[str, Any]) -> SearchConfig:
    """The base with these changes, and with defaults where a setting has no effect."""
    config, default = with_overrides(base, changes), list_settings(SearchConfig())
    useless = {path: default[path] for path in settings_without_effect(config) if path in default}
    return with_overrides(config, useless)


def test_metrics(
    model: torch.nn.Module, unseen: Space_Galaxi, temperature: float = 1.0
) -> dict[str, float]:
    """Accuracy and log-loss of a network on unseen objects."""
    measured = evaluate(model, DataLoader(unseen, 256))
    scores = measured.logits.numpy() / temperature
    groups = unseen.catalogue.groups
    result = summarize_metrics(Predictions(scores, measured.labels.numpy(), groups, unseen.classes))
    return {"test_acc": result["accuracy"], "test_loss": result["log_loss"]}


def cost_of(results: Iterable[CandidateResult], num_train: int) -> dict[str, float]:
    """Cost of trainings: images times epochs, and their multiply-adds in units of 10^12."""
    costs = [(r.candidate.train_config.epochs, r.num_macs) for r in results]
    macs = sum(epochs * macs for epochs, macs in costs)
    return {
        "image_epochs": num_train * sum(epochs for epochs, _ in costs),
        "tera_macs": round(num_train * macs / 1e12, 3),
    }


def train_blocks(
    blocks: tuple[BlockSpec, ...], plan: TrainConfig, runner: LocalRunner
) -> tuple[Any, CandidateResult]:
    """Train a network of these blocks from scratch; returns it with its result."""
    fixed = Candidate(len(blocks), 0, blocks, plan, False, 0.0, role="scratch")
    (trained,) = runner.train([fixed], [runner.base_model], lambda event: None)
    assert trained.result is not None
    return trained.saved_model.build().eval(), trained.result


def retrained_metrics(
    blocks: tuple[BlockSpec, ...],
    config: SearchConfig,
    runner: LocalRunner,
    unseen: Space_Galaxi,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Mean metrics of these blocks over several trainings, which do not count as cost."""
    seeds = [derive_seed(config.seed, 1000 + n) for n in range(args.repeats)]
    plans = [config.plan(args.finish_epochs, 1000 * n, seed) for n, seed in enumerate(seeds, 1)]
    result = [test_metrics(train_blocks(blocks, plan, runner)[0], unseen) for plan in plans]
    means = {key: float(np.mean([f[key] for f in result])) for key in result[0]} if result else {}
    return {f"again_{key.removeprefix('test_')}": value for key, value in means.items()}


def run_search(
    config: SearchConfig, loaders: Loaders, unseen: Space_Galaxi, args: argparse.Namespace
) -> dict[str, Any]:
    """Run a search; returns metrics of its network and of its blocks."""
    began = time.monotonic()
    runner = LocalRunner(*loaders, seed=config.seed)
    model, history = search(config, runner)
    seconds = time.monotonic() - began
    correlations = [rank_correlation(step) for step in history.steps]
    final = history.final_training.results if history.final_training else ()
    trained = [*(result for step in history.steps for result in step.trained), *final]
    return {
        **test_metrics(model, unseen),
        **retrained_metrics(model.architecture.blocks, config, runner, unseen, args),
        "params": model.num_params,
        "macs": history.final_result.num_macs if history.final_result else 0,
        "blocks": [f"{spec.family} {spec.k}" for spec in model.architecture.blocks],
        **cost_of(trained, history.num_train),
        "seconds": round(seconds, 1),
        "steps": [step.decision.action for step in history.steps],
        "rank_correlations": [None if item is None else round(item, 2) for item in correlations],
        "stopped": history.stop_reason,
    }


def run_ladder(
    config: SearchConfig, loaders: Loaders, unseen: Space_Galaxi, args: argparse.Namespace
) -> dict[str, Any]:
    """Train the fixed ladder once for the whole budget."""
    began = time.monotonic()
    runner = LocalRunner(*loaders, seed=config.seed)
    model, result = train_blocks(LADDER, config.plan(args.budget, 0, config.seed), runner)
    return {
        **test_metrics(model, unseen),
        "seconds": round(time.monotonic() - began, 1),
        **retrained_metrics(LADDER, config, runner, unseen, args),
        "params": result.num_params,
        "macs": result.num_macs,
        "blocks": [f"{spec.family} {spec.k}" for spec in LADDER],
        **cost_of([result], runner.num_train),
    }


def run_resnet(
    config: SearchConfig, loaders: Loaders, unseen: Space_Galaxi, args: argparse.Namespace
) -> dict[str, Any]:
    """Train ResNet-18 from scratch, calibrated as grown networks are."""
    began, epochs = time.monotonic(), args.resnet_epochs
    runner = LocalRunner(*loaders, seed=config.seed)
    architecture = runner.base_model.architecture
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        images, features = (
            torch.zeros(2, *architecture.image_shape),
            torch.zeros(2, len(architecture.feature_names)),
        )
        ResNet18(architecture).train()(images, features)
    macs = counter.get_total_flops() // 4  # two images; a multiply-add is two operations
    with seeded(config.seed):
        model = ResNet18(architecture)
    trained = train(model, *loaders, config.plan(epochs, 0, config.seed), device=runner.device)
    model.load_state_dict(trained.state_dict)
    seconds = round(time.monotonic() - began, 1)
    validated = evaluate(model.eval(), loaders[1], runner.device)
    return {
        **test_metrics(
            model, unseen, fit_temperature(validated.logits.numpy(), validated.labels.numpy())
        ),
        "params": sum(p.numel() for p in model.parameters()),
        "macs": macs,
        "image_epochs": runner.num_train * epochs,
        "tera_macs": round(runner.num_train * epochs * macs / 1e12, 3),
        "seconds": seconds,
    }


def lines_of_fold(
    folder: Path, fold: int, args: argparse.Namespace, done: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Run the missing lines of the table on one fold, one after the other."""
    with tempfile.TemporaryDirectory() as folder_of_folds:
        seen, tested = split_catalogue(
            folder, args.features, fold, Path(folder_of_folds), args.num_seen
        )
        shared = {"features": args.features, "seed": fold, "train_ratio": TRAIN_RATIO}
        loaders = create_train_val_dataloaders(seen, folder / "images", Augment(), **shared)
        data: Any = loaders[0].dataset
        unseen = Space_Galaxi(
            tested, folder / "images", features=args.features, classes=data.classes
        )
        side = unseen.image_shape[1]
        limit = round(SPACE["space.max_macs"] * (side / 75) ** 2)
        plain = with_overrides(
            SearchConfig(seed=fold, budget=f"{args.budget}epochs"),
            {**SPACE, "space.max_macs": limit, "final.epochs": args.finish_epochs},
        )
        half = {
            "budget": f"{args.budget // 2}epochs",
            "final.epochs": args.finish_epochs // 2,
        }
        settings = variants(args.strategies, args.ways)
        halves = variants(list(STRATEGIES), list(VARIANTS))
        settings |= {f"{name}, half": {**halves[name], **half} for name in args.half}
        lines: dict[str, tuple[dict[str, Any], Run]] = {
            name: (changes, partial(run_search, search_config(plain, changes)))
            for name, changes in settings.items()
        }
        if args.ladder:
            lines[LADDER_NAME] = {}, partial(run_ladder, plain)
        if args.resnet_epochs:
            lines["ResNet-18"] = {"epochs": args.resnet_epochs}, partial(run_resnet, plain)
        existing = {row["name"]: row["settings"] for row in done if row["fold"] == fold}
        for name, (changes, _) in lines.items():
            now = json.loads(json.dumps(changes))
            if existing.get(name, now) != now:
                raise SystemExit(
                    f"{name} was run with {existing[name]}, not {now}; give another file"
                )
        for name, (changes, run) in lines.items():
            if name not in existing:
                row = run(loaders, unseen, args)
                yield {"name": name, "fold": fold, "settings": changes, **row}


def cropped(folder: Path, side: int, into: Path) -> Path:
    """Write a catalogue with the central pixels of each cutout, as PNG."""
    (into / "images").mkdir(parents=True)
    shutil.copy(folder / "annotations.csv", into)
    for path in sorted((folder / "images").iterdir()):
        with Image.open(path) as image:
            left, top = (image.width - side) // 2, (image.height - side) // 2
            window = image.crop((left, top, left + side, top + side))
            window.save(into / "images" / f"{path.stem}.png")
    return into


def read_results(path: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """Results in a file, or none; exits if the file has other settings."""
    now: dict[str, Any] = json.loads(json.dumps(options))
    if path is None or not path.exists():
        return {"options": now, "machines": [], "rows": []}
    result: dict[str, Any] = json.loads(path.read_text())
    stored = result["options"]
    if other := [name for name in now if stored.get(name) != now[name]]:
        text = "; ".join(f"{name} {stored.get(name)}, not {now[name]}" for name in other)
        raise SystemExit(f"{path} has {text}; give another file")
    return result


COLUMNS = {
    "test_acc": "accuracy",
    "again_acc": "architecture, retrained",
    "again_loss": "its log-loss",
}


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table: means over folds with standard errors, and differences from greedy by fold."""
    columns = [column for name in COLUMNS.values() for column in (name, "above greedy")]
    costs = ["parameters", "images x epochs", "10^12 multiply-adds", "seconds"]
    print(f"| | folds | {' | '.join([*columns, *costs])} |\n|" + "---|" * 12)
    greedy = {row["fold"]: row for row in rows if row["name"] == "greedy"}
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        both = [(row, greedy[row["fold"]]) for row in own if row["fold"] in greedy]
        cells = [name, str(len(own))]
        for key in COLUMNS:
            gains = [of(row, key) - of(other, key) for row, other in both]
            cells += [format_mean([of(row, key) for row in own]), format_mean(gains, "+")]
            cells[-1] += f" ({len(both)} folds)" if len(both) < len(own) else ""
        for key in ("params", "image_epochs", "tera_macs", "seconds"):
            mean = np.mean([of(row, key) for row in own])
            cells.append(f"{mean:,.{2 if key == 'tera_macs' else 0}f}")
        print(f"| {' | '.join(cells)} |")
    if len(commits := dict.fromkeys(row["commit"] for row in rows)) > 1:
        print(f"\nLines of several commits: {', '.join(map(str, commits))}.")


def of(row: dict[str, Any], key: str) -> float:
    """A value of a line, NaN if missing."""
    return float(row.get(key, np.nan))


def format_mean(values: list[float], sign: str = "") -> str:
    """Format a mean and its standard error; a dash if there is none."""
    mean, error = np.mean(values or [np.nan]), error_of(values)
    suffix = "" if np.isnan(error) else f" ± {error:.3f}"
    return "-" if np.isnan(mean) else f"{mean:{sign}.3f}{suffix}"


def error_of(values: list[float]) -> float:
    """Standard error of a mean; NaN for a single value."""
    return float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else np.nan


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalogue", type=Path, nargs="?", help="folder with annotations.csv")
    parser.add_argument("--simulate", type=int, default=0, help="rows of a simulated sky instead")
    parser.add_argument(
        "--features", nargs="*", default=[], help="feature columns, none by default"
    )
    parser.add_argument("--folds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--strategies", nargs="*", default=list(STRATEGIES), choices=strategies.names
    )
    parser.add_argument(
        "--ways", nargs="*", default=list(VARIANTS), choices=[*VARIANTS, *MORE_VARIANTS]
    )
    parser.add_argument(
        "--half",
        nargs="*",
        default=[],
        choices=list(variants(list(STRATEGIES), list(VARIANTS))),
        help="lines to run with half the budget as well",
    )
    parser.add_argument("--budget", type=int, default=160, help="epochs of each search")
    parser.add_argument("--finish-epochs", type=int, default=20)
    parser.add_argument("--num-seen", type=int, default=2, help="parts of five that a search uses")
    parser.add_argument("--resnet-epochs", type=int, default=40, help="0 omits ResNet-18")
    parser.add_argument("--crop", type=int, default=0, help="central pixels to use; 0 for all")
    parser.add_argument(
        "--repeats", type=int, default=3, help="trainings of each selected architecture"
    )
    parser.add_argument("--no-ladder", dest="ladder", action="store_false", help="omit the ladder")
    parser.add_argument("--quick", action="store_true", help="one fold, few epochs, fewer variants")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    if args.quick:
        args.folds, args.ways = args.folds[:1], ["", "halving"]
        args.budget, args.finish_epochs, args.resnet_epochs = 80, 10, 4
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.catalogue
        if args.simulate or folder is None:
            folder = Path(temporary) / "sky"
            num_rows = args.simulate or (1500 if args.quick else 4000)
            simulate_catalogue(folder, num_rows=num_rows, num_test_rows=0, progress=False)
        names = ("features", "num_seen", "budget", "finish_epochs", "crop", "repeats")
        settings: dict[str, Any] = {name: getattr(args, name) for name in names}
        settings |= {"catalogue": sha256_file(folder / "annotations.csv"), "space": SPACE}
        result = read_results(args.json, settings | {"train_ratio": TRAIN_RATIO})
        rows, machines, own = result["rows"], result["machines"], machine()
        machines += [] if own in machines else [own]
        if args.crop:
            folder = cropped(folder, args.crop, Path(temporary) / "cropped")
        for fold in args.folds:
            for row in lines_of_fold(folder, fold, args, rows):
                rows.append({**row, "commit": commit(), "machine": machines.index(own)})
                print(json.dumps(row), flush=True)
                if args.json:
                    write_json(args.json, result)
    show(rows)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(str(error)) from error
