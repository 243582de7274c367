"""Which strategy finds the better network at the same cost?

No strategy may spend more than so many epochs, its training in full and the control of every step
included. All have the same space of blocks, of up to 6 million multiply-adds an image of 75 pixels (the
fixed ladder has 4.3), and go on, however little they gain, until no further step fits in; what a
candidate inherits was paid for when its parent was trained. Random search starts nothing from trained
weights, so that it has no ways from scratch. Epochs of a large network cost more than those of a small
one, so the multiply-adds that the trainings took are told as well. Beside the strategies stand two
fixed networks: a ladder of four blocks, trained once for the whole budget, and torchvision's ResNet-18
from scratch, for fewer epochs, of which each costs many times as much.

The catalogue is cut into five parts of whole objects. A search, with a seed of its own, sees two of
them, of which a third of the objects is for validation: with fewer, all that a search compares is noise.
It is tested on the other three. Two figures are kept: the accuracy of the network that the search hands
over, and the mean accuracy of its blocks when they are trained again from scratch with other seeds.
The second says how good a choice they were; one training differs from the next by more than most
strategies do. Folds share rows, so that standard errors over folds are rather too small.

`--half "pnas, halving"` adds a line with half the budget, of which the training in full gets half as
much. `--crop 48` cuts the middle out of every cutout, which costs as much less as it has fewer pixels;
so does the limit. Lines that the file of `--json` has, by name and fold, are not run again: what was
cut off goes on, and each line names its commit and its machine. `--quick` is one fold and a small
budget, of 1,500 simulated rows where no catalogue is named.
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
from space_warps.evaluation.metrics import Predictions
from space_warps.evaluation.metrics import summarize_metrics as figures_of
from space_warps.models.blocks import BlockSpec
from space_warps.search.config import SearchConfig
from space_warps.search.records import Candidate, CandidateResult
from space_warps.search.runner import LocalRunner
from space_warps.search.search import search
from space_warps.search.settings import list_settings, with_overrides
from space_warps.search.strategies import registered_strategies, settings_without_effect
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
WAYS: dict[str, dict[str, Any]] = {
    "": {},
    "halving": {"rungs": (1, 3, 9)},
    "from scratch": {"training.copy_weights": False},
    "halving, from scratch": {"rungs": (1, 3, 9), "training.copy_weights": False},
}
MORE_WAYS: dict[str, dict[str, Any]] = {  # On demand
    "longer halving": {"rungs": (2, 6)},
    "longer halving, from scratch": {"rungs": (2, 6), "training.copy_weights": False},
}
TRAIN_RATIO = 2 / 3
Run = Callable[[Loaders, Space_Galaxi, argparse.Namespace], dict[str, Any]]
LADDER_NAME = "ladder 8, 16, 32, 64"
LADDER = (BlockSpec(8, kernel_size=5, downsample=3), BlockSpec(16), BlockSpec(32), BlockSpec(64))


def variants(strategies: list[str], ways: list[str]) -> dict[str, dict[str, Any]]:
    """Name -> settings that differ."""
    return {
        f"{strategy}{', ' if way else ''}{way}": {
            "strategy": strategy,
            **(WAYS | MORE_WAYS)[way],
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


def measured(
    model: torch.nn.Module, unseen: Space_Galaxi, temperature: float = 1.0
) -> dict[str, float]:
    """Figures of a network on objects it has never seen."""
    message = evaluate(model, DataLoader(unseen, 256))
    scores = message.scores.numpy() / temperature
    groups = unseen.catalogue.groups
    result = figures_of(Predictions(scores, message.labels.numpy(), groups, unseen.classes))
    return {"test_acc": result["accuracy"], "test_loss": result["log_loss"]}


def cost_of(results: Iterable[CandidateResult], num_train: int) -> dict[str, float]:
    """What trainings took: passes over an image, and multiply-adds of these, in units of 10^12."""
    text = [(o.candidate.train_config.epochs, o.num_macs) for o in results]
    macs = sum(epochs * macs for epochs, macs in text)
    return {
        "image_epochs": num_train * sum(epochs for epochs, _ in text),
        "tera_macs": round(num_train * macs / 1e12, 3),
    }


def train_blocks(
    blocks: tuple[BlockSpec, ...], plan: TrainConfig, runner: LocalRunner
) -> tuple[Any, CandidateResult]:
    """A network of these blocks from scratch, and what its training gave."""
    fixed = Candidate(len(blocks), 0, blocks, plan, False, 0.0, role="scratch")
    (trained,) = runner.train([fixed], [runner.base_model], lambda event: None)
    assert trained.result is not None
    return trained.saved_model.build().eval(), trained.result


def trained_again(
    blocks: tuple[BlockSpec, ...],
    config: SearchConfig,
    runner: LocalRunner,
    unseen: Space_Galaxi,
    requested: argparse.Namespace,
) -> dict[str, Any]:
    """How good these blocks are, apart from the luck of one training; charged to nobody."""
    seeds = [derive_seed(config.seed, 1000 + n) for n in range(requested.repeats)]
    plans = [
        config.plan(requested.finish_epochs, 1000 * n, seed) for n, seed in enumerate(seeds, 1)
    ]
    result = [measured(train_blocks(blocks, plan, runner)[0], unseen) for plan in plans]
    means = {key: float(np.mean([f[key] for f in result])) for key in result[0]} if result else {}
    return {f"again_{key.removeprefix('test_')}": value for key, value in means.items()}


def run_search(
    config: SearchConfig, loaders: Loaders, unseen: Space_Galaxi, requested: argparse.Namespace
) -> dict[str, Any]:
    """One search, how good its network is, and how good its blocks are."""
    began = time.monotonic()
    runner = LocalRunner(*loaders, seed=config.seed)
    model, history = search(config, runner)
    seconds = time.monotonic() - began
    text = [rank_correlation(step) for step in history.steps]
    finish = history.final_training.results if history.final_training else ()
    trained = [*(result for step in history.steps for result in step.trained), *finish]
    return {
        **measured(model, unseen),
        **trained_again(model.architecture.blocks, config, runner, unseen, requested),
        "params": model.num_params,
        "macs": history.final_result.num_macs if history.final_result else 0,
        "blocks": [f"{spec.family} {spec.k}" for spec in model.architecture.blocks],
        **cost_of(trained, history.num_train),
        "seconds": round(seconds, 1),
        "steps": [step.decision.action for step in history.steps],
        "rank_correlations": [None if item is None else round(item, 2) for item in text],
        "stopped": history.stop_reason,
    }


def run_ladder(
    config: SearchConfig, loaders: Loaders, unseen: Space_Galaxi, requested: argparse.Namespace
) -> dict[str, Any]:
    """The fixed ladder, trained once for the whole budget."""
    began = time.monotonic()
    runner = LocalRunner(*loaders, seed=config.seed)
    model, result = train_blocks(LADDER, config.plan(requested.budget, 0, config.seed), runner)
    return {
        **measured(model, unseen),
        "seconds": round(time.monotonic() - began, 1),
        **trained_again(LADDER, config, runner, unseen, requested),
        "params": result.num_params,
        "macs": result.num_macs,
        "blocks": [f"{spec.family} {spec.k}" for spec in LADDER],
        **cost_of([result], runner.num_train),
    }


def run_resnet(
    config: SearchConfig, loaders: Loaders, unseen: Space_Galaxi, requested: argparse.Namespace
) -> dict[str, Any]:
    """ResNet-18 from scratch, asked and cooled as the grown networks are."""
    began, epochs = time.monotonic(), requested.resnet_epochs
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
    message = evaluate(model.eval(), loaders[1], runner.device)
    return {
        **measured(model, unseen, fit_temperature(message.scores.numpy(), message.labels.numpy())),
        "params": sum(p.numel() for p in model.parameters()),
        "macs": macs,
        "image_epochs": runner.num_train * epochs,
        "tera_macs": round(runner.num_train * epochs * macs / 1e12, 3),
        "seconds": seconds,
    }


def lines_of_fold(
    folder: Path, fold: int, requested: argparse.Namespace, done: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Every line of the table on one fold that is not done, one after the other."""
    with tempfile.TemporaryDirectory() as index:
        seen, tested = split_catalogue(
            folder, requested.features, fold, Path(index), requested.num_seen
        )
        shared = {"features": requested.features, "seed": fold, "train_ratio": TRAIN_RATIO}
        loaders = create_train_val_dataloaders(seen, folder / "images", Augment(), **shared)
        data: Any = loaders[0].dataset
        unseen = Space_Galaxi(
            tested, folder / "images", features=requested.features, classes=data.classes
        )
        side = unseen.image_shape[1]
        limit = round(SPACE["space.max_macs"] * (side / 75) ** 2)
        plain = with_overrides(
            SearchConfig(seed=fold, budget=f"{requested.budget}epochs"),
            {**SPACE, "space.max_macs": limit, "final.epochs": requested.finish_epochs},
        )
        half = {
            "budget": f"{requested.budget // 2}epochs",
            "final.epochs": requested.finish_epochs // 2,
        }
        tried = variants(requested.strategies, requested.ways)
        halves = variants(list(STRATEGIES), list(WAYS))
        tried |= {f"{name}, half": {**halves[name], **half} for name in requested.half}
        lines: dict[str, tuple[dict[str, Any], Run]] = {
            name: (text, partial(run_search, search_config(plain, text)))
            for name, text in tried.items()
        }
        if requested.ladder:
            lines[LADDER_NAME] = {}, partial(run_ladder, plain)
        if requested.resnet_epochs:
            lines["ResNet-18"] = {"epochs": requested.resnet_epochs}, partial(run_resnet, plain)
        existing = {row["name"]: row["settings"] for row in done if row["fold"] == fold}
        for name, (text, _) in lines.items():
            now = json.loads(json.dumps(text))
            if existing.get(name, now) != now:
                raise SystemExit(
                    f"{name} was run with {existing[name]}, not {now}; name another file"
                )
        for name, (text, run) in lines.items():
            if name not in existing:
                row = run(loaders, unseen, requested)
                yield {"name": name, "fold": fold, "settings": text, **row}


def cropped(folder: Path, side: int, into: Path) -> Path:
    """The catalogue with the middle of each of its cutouts, as PNG."""
    (into / "images").mkdir(parents=True)
    shutil.copy(folder / "annotations.csv", into)
    for path in sorted((folder / "images").iterdir()):
        with Image.open(path) as image:
            left, top = (image.width - side) // 2, (image.height - side) // 2
            window = image.crop((left, top, left + side, top + side))
            window.save(into / "images" / f"{path.stem}.png")
    return into


def already_done(path: Path | None, requested: dict[str, Any]) -> dict[str, Any]:
    """What a file has that was begun with the same settings; exits if they were others."""
    now: dict[str, Any] = json.loads(json.dumps(requested))
    if path is None or not path.exists():
        return {"asked": now, "machines": [], "rows": []}
    result: dict[str, Any] = json.loads(path.read_text())
    there = result["asked"]
    if other := [name for name in now if there.get(name) != now[name]]:
        text = "; ".join(f"{name} {there.get(name)}, not {now[name]}" for name in other)
        raise SystemExit(f"{path} was begun with {text}; name another file")
    return result


FIGURES = {
    "test_acc": "accuracy",
    "again_acc": "of its blocks, trained again",
    "again_loss": "log-loss of these",
}


def show(rows: list[dict[str, Any]]) -> None:
    """The table: means over folds with standard errors, and what each is above greedy, fold by fold."""
    columns = [column for message in FIGURES.values() for column in (message, "above greedy")]
    costs = ["parameters", "image-epochs", "10^12 multiply-adds", "seconds"]
    print(f"| | folds | {' | '.join([*columns, *costs])} |\n|" + "---|" * 12)
    greedy = {row["fold"]: row for row in rows if row["name"] == "greedy"}
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        both = [(row, greedy[row["fold"]]) for row in own if row["fold"] in greedy]
        cells = [name, str(len(own))]
        for key in FIGURES:
            gains = [of(row, key) - of(other, key) for row, other in both]
            cells += [told_mean([of(row, key) for row in own]), told_mean(gains, "+")]
            cells[-1] += f" ({len(both)} folds)" if len(both) < len(own) else ""
        for key in ("params", "image_epochs", "tera_macs", "seconds"):
            mean = np.mean([of(row, key) for row in own])
            cells.append(f"{mean:,.{2 if key == 'tera_macs' else 0}f}")
        print(f"| {' | '.join(cells)} |")
    if len(commits := dict.fromkeys(row["commit"] for row in rows)) > 1:
        print(f"\nLines of several commits: {', '.join(map(str, commits))}.")


def of(row: dict[str, Any], key: str) -> float:
    """A figure of a line, not a number where it has none."""
    return float(row.get(key, np.nan))


def told_mean(values: list[float], sign: str = "") -> str:
    """A mean and its standard error, a dash where there is none."""
    mean, error = np.mean(values or [np.nan]), error_of(values)
    beside = "" if np.isnan(error) else f" ± {error:.3f}"
    return "-" if np.isnan(mean) else f"{mean:{sign}.3f}{beside}"


def error_of(values: list[float]) -> float:
    """Standard error of a mean; not known of one value."""
    return float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else np.nan


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalogue", type=Path, nargs="?", help="folder with annotations.csv")
    parser.add_argument("--simulate", type=int, default=0, help="rows of a simulated sky instead")
    parser.add_argument("--features", nargs="*", default=[], help="columns, none by default")
    parser.add_argument("--folds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--strategies", nargs="*", default=list(STRATEGIES), choices=registered_strategies()
    )
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=[*WAYS, *MORE_WAYS])
    parser.add_argument(
        "--half",
        nargs="*",
        default=[],
        choices=list(variants(list(STRATEGIES), list(WAYS))),
        help="lines for half the budget, too",
    )
    parser.add_argument("--budget", type=int, default=160, help="of each search, in epochs")
    parser.add_argument("--finish-epochs", type=int, default=20)
    parser.add_argument("--num-seen", type=int, default=2, help="of five parts, by a search")
    parser.add_argument("--resnet-epochs", type=int, default=40, help="0 leaves it out")
    parser.add_argument("--crop", type=int, default=0, help="pixels of the middle; 0 takes all")
    parser.add_argument("--repeats", type=int, default=3, help="trainings of what was found")
    parser.add_argument("--no-ladder", dest="ladder", action="store_false", help="leave it out")
    parser.add_argument("--quick", action="store_true", help="one fold, few epochs, fewer ways")
    parser.add_argument("--json", type=Path, help="file to keep the figures in")
    requested = parser.parse_args()
    if requested.quick:
        requested.folds, requested.ways = requested.folds[:1], ["", "halving"]
        requested.budget, requested.finish_epochs, requested.resnet_epochs = 80, 10, 4
    with tempfile.TemporaryDirectory() as index:
        folder = requested.catalogue
        if requested.simulate or folder is None:
            folder = Path(index) / "sky"
            num_rows = requested.simulate or (1500 if requested.quick else 4000)
            simulate_catalogue(folder, num_rows=num_rows, num_test_rows=0, progress=False)
        text = ("features", "num_seen", "budget", "finish_epochs", "crop", "repeats")
        settings: dict[str, Any] = {name: getattr(requested, name) for name in text}
        settings |= {"catalogue": sha256_file(folder / "annotations.csv"), "space": SPACE}
        result = already_done(requested.json, settings | {"train_ratio": TRAIN_RATIO})
        rows, machines, own = result["rows"], result["machines"], machine()
        machines += [] if own in machines else [own]
        if requested.crop:
            folder = cropped(folder, requested.crop, Path(index) / "cropped")
        for fold in requested.folds:
            for row in lines_of_fold(folder, fold, requested, rows):
                rows.append({**row, "commit": commit(), "machine": machines.index(own)})
                print(json.dumps(row), flush=True)
                if requested.json:
                    write_json(requested.json, result)
    show(rows)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(str(error)) from error
