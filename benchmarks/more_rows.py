"""How good could a network get with more rows than there are?

The simulated sky can be made as large as one likes. A fixed network is trained on more and more of it,
images only, for as many steps each time, and tested on the sky of `data/sample`, which has the same
recipe and another seed, and, if it is given, on a real catalogue, of which nothing is learnt. Prints the
accuracy with its standard error, counting objects, and the log-loss, for each first seed.
"""

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from recipe import BASE, Choice, build, fit
from side_by_side import commit, machine
from torch.utils.data import DataLoader

from space_warps.data.dataset import Space_Galaxi
from space_warps.data.loaders import EpochSampler
from space_warps.data.simulate import simulate_catalogue
from space_warps.models.blocks import BlockSpec
from space_warps.search.significance import standard_error
from space_warps.training.loop import evaluate

SAMPLE = Path(__file__).parents[1] / "data" / "sample"
IMAGES_SEEN = 120_000  # By each training


def network(*widths: int) -> Choice:
    """The recipe with blocks of these widths, the first one with a kernel of 5."""
    first, *others = widths
    blocks = (BlockSpec(first, kernel_size=5, downsample=3), *(BlockSpec(k) for k in others))
    return replace(BASE, blocks=blocks, precision="bfloat16")


NETWORKS = {"16, 32, 64": network(16, 32, 64), "32, 64, 128": network(32, 64, 128)}


def learn(
    name: str, sky: Space_Galaxi, num_rows: int, skies: dict[str, Space_Galaxi], seed: int
) -> dict[str, Any]:
    """Train on the first rows of a sky, and measure on the others."""
    epochs = max(1, round(IMAGES_SEEN / num_rows))
    choice = NETWORKS[name]
    choice = replace(choice, train_config=replace(choice.plan, epochs=epochs))
    existing = sky.subset(np.arange(num_rows), choice.augment)
    sampler = EpochSampler(num_rows, seed)
    loader = DataLoader(existing, choice.batch_size, sampler=sampler, drop_last=True)
    began = time.monotonic()
    model = fit(choice, build(choice, existing, seed), loader, seed)
    row: dict[str, Any] = {"network": name, "rows": num_rows, "seed": seed, "epochs": epochs}
    row["seconds"] = round(time.monotonic() - began, 1)
    for about, unseen in skies.items():
        message = evaluate(model, DataLoader(unseen, 256))
        is_right = (message.scores.argmax(dim=1) == message.labels).numpy()
        error = standard_error(is_right, unseen.catalogue.groups)
        figures = {"accuracy": message.accuracy, "error": error, "log_loss": message.loss}
        row[about] = {key: round(value, 4) for key, value in figures.items()}
    return row


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real", type=Path, nargs="?", help="folder with annotations.csv, images/")
    parser.add_argument("--rows", nargs="*", type=int, default=[1200, 6000, 24000])
    parser.add_argument("--networks", nargs="*", default=["16, 32, 64"], choices=list(NETWORKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="file to keep the figures in")
    requested = parser.parse_args()
    files = {"sample": (SAMPLE, "annotations.csv"), "sample's test set": (SAMPLE, "test.csv")}
    if requested.real:
        files["real"] = (requested.real, "annotations.csv")
    skies = {
        name: Space_Galaxi(at / csv, at / "images", features=())
        for name, (at, csv) in files.items()
    }
    rows = []
    with tempfile.TemporaryDirectory() as index:
        made = simulate_catalogue(
            Path(index) / "sky",
            num_rows=max(requested.rows),
            num_test_rows=0,
            seed=7,
            progress=False,
        )
        sky = Space_Galaxi(made.csv_path, made.img_dir_path, features=())
        for name, num_rows, seed in itertools.product(
            requested.networks, requested.rows, requested.seeds
        ):
            rows.append(learn(name, sky, num_rows, skies, seed))
            print(json.dumps(rows[-1]), flush=True)
    if requested.json:
        about = {"machine": machine(), "commit": commit()}
        requested.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
