"""How good can a network get with more rows?

A simulated catalogue can be of any size. A fixed network is trained on images of more and more rows,
for the same number of optimizer steps, and evaluated on `data/sample`, which has the same populations
and another seed, and on a real catalogue if one is given. Prints accuracy, with its standard error
over objects, and log-loss for each seed.
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
NUM_IMAGES = 120_000  # Images of each training, counting repeats


def network(*widths: int) -> Choice:
    """The recipe with blocks of these widths, the first one with a kernel of 5."""
    first, *others = widths
    blocks = (BlockSpec(first, kernel_size=5, downsample=3), *(BlockSpec(k) for k in others))
    return replace(BASE, blocks=blocks, precision="bfloat16")


NETWORKS = {"16, 32, 64": network(16, 32, 64), "32, 64, 128": network(32, 64, 128)}


def train_and_evaluate(
    name: str, data: Space_Galaxi, num_rows: int, tests: dict[str, Space_Galaxi], seed: int
) -> dict[str, Any]:
    """Train on the first rows of a catalogue, and evaluate on the test catalogues."""
    epochs = max(1, round(NUM_IMAGES / num_rows))
    choice = NETWORKS[name]
    choice = replace(choice, train_config=replace(choice.train_config, epochs=epochs))
    train = data.subset(np.arange(num_rows), choice.augment)
    sampler = EpochSampler(num_rows, seed)
    loader = DataLoader(train, choice.batch_size, sampler=sampler, drop_last=True)
    began = time.monotonic()
    model = fit(choice, build(choice, train, seed), loader, seed)
    row: dict[str, Any] = {"network": name, "rows": num_rows, "seed": seed, "epochs": epochs}
    row["seconds"] = round(time.monotonic() - began, 1)
    for test_name, test in tests.items():
        result = evaluate(model, DataLoader(test, 256))
        is_right = (result.logits.argmax(dim=1) == result.labels).numpy()
        error = standard_error(is_right, test.catalogue.groups)
        metrics = {"accuracy": result.accuracy, "error": error, "log_loss": result.loss}
        row[test_name] = {key: round(value, 4) for key, value in metrics.items()}
    return row


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real", type=Path, nargs="?", help="folder with annotations.csv, images/")
    parser.add_argument("--rows", nargs="*", type=int, default=[1200, 6000, 24000])
    parser.add_argument("--networks", nargs="*", default=["16, 32, 64"], choices=list(NETWORKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    files = {"sample": (SAMPLE, "annotations.csv"), "sample's test set": (SAMPLE, "test.csv")}
    if args.real:
        files["real"] = (args.real, "annotations.csv")
    tests = {
        name: Space_Galaxi(folder / csv, folder / "images", features=())
        for name, (folder, csv) in files.items()
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = simulate_catalogue(
            Path(folder) / "simulated",
            num_rows=max(args.rows),
            num_test_rows=0,
            seed=7,
            progress=False,
        )
        data = Space_Galaxi(paths.csv_path, paths.img_dir_path, features=())
        for name, num_rows, seed in itertools.product(args.networks, args.rows, args.seeds):
            rows.append(train_and_evaluate(name, data, num_rows, tests, seed))
            print(json.dumps(rows[-1]), flush=True)
    if args.json:
        about = {"machine": machine(), "commit": commit()}
        args.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
