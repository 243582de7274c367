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

from space_warps.blocks import BlockSpec
from space_warps.dataset import Space_Galaxi
from space_warps.loaders import EpochSampler
from space_warps.paired import error_of_mean
from space_warps.simulate import simulate
from space_warps.train import evaluate

SAMPLE = Path(__file__).parents[1] / "data" / "sample"
IMAGES_SEEN = 120_000  # By each training


def network(*widths: int) -> Choice:
    """The recipe with blocks of these widths, the first one with a kernel of 5."""
    first, *others = widths
    blocks = (BlockSpec(first, kernel_size=5, pool=3), *(BlockSpec(k) for k in others))
    return replace(BASE, blocks=blocks, precision="bfloat16")


NETWORKS = {"16, 32, 64": network(16, 32, 64), "32, 64, 128": network(32, 64, 128)}


def learn(
    name: str, sky: Space_Galaxi, num_rows: int, skies: dict[str, Space_Galaxi], seed: int
) -> dict[str, Any]:
    """Train on the first rows of a sky, and measure on the others."""
    epochs = max(1, round(IMAGES_SEEN / num_rows))
    choice = NETWORKS[name]
    choice = replace(choice, plan=replace(choice.plan, epochs=epochs))
    known = sky.subset(np.arange(num_rows), choice.augment)
    sampler = EpochSampler(num_rows, seed)
    loader = DataLoader(known, choice.batch_size, sampler=sampler, drop_last=True)
    began = time.monotonic()
    model = fit(choice, build(choice, known, seed), loader, seed)
    row: dict[str, Any] = {"network": name, "rows": num_rows, "seed": seed, "epochs": epochs}
    row["seconds"] = round(time.monotonic() - began, 1)
    for about, unseen in skies.items():
        said = evaluate(model, DataLoader(unseen, 256))
        is_right = (said.scores.argmax(dim=1) == said.labels).numpy()
        error = error_of_mean(is_right, unseen.catalogue.groups)
        figures = {"accuracy": said.accuracy, "error": error, "log_loss": said.loss}
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
    asked = parser.parse_args()
    files = {"sample": (SAMPLE, "annotations.csv"), "sample's test set": (SAMPLE, "test.csv")}
    if asked.real:
        files["real"] = (asked.real, "annotations.csv")
    skies = {
        name: Space_Galaxi(at / csv, at / "images", features=())
        for name, (at, csv) in files.items()
    }
    rows = []
    with tempfile.TemporaryDirectory() as place:
        made = simulate(
            Path(place) / "sky", num_rows=max(asked.rows), num_test_rows=0, seed=7, progress=False
        )
        sky = Space_Galaxi(made.csv_path, made.img_dir_path, features=())
        for name, num_rows, seed in itertools.product(asked.networks, asked.rows, asked.seeds):
            rows.append(learn(name, sky, num_rows, skies, seed))
            print(json.dumps(rows[-1]), flush=True)
    if asked.json:
        about = {"machine": machine(), "commit": commit()}
        asked.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
