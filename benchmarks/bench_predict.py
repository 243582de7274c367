"""How long does predicting a catalogue take, compared with only decoding its images, and with a plain loop?

A catalogue of 75x75 JPEG cutouts is made from those of `data/sample`, each with its own id. The network
has blocks of 16 and 32 channels, the first with a stride of 3, as small networks of a search have; `--tta` averages over
eight orientations, which costs eight times the computation.

- decode: `predict_to_file` against decoding the same files to one array with all cores.
- plain loop: against a `Dataset` that opens a file per item, a `DataLoader` of 64 rows and a loop.

`--memory` measures instead the largest resident set (`VmHWM`) of a process that predicts 10,000 and
`--rows` rows.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from side_by_side import Row, parse, show, timed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from space_warps.data.dataset import Space_Galaxi, measure_input_statistics
from space_warps.data.image_lookup import PartFinder
from space_warps.data.simulate import sample_catalogue
from space_warps.deploy.inference import InferenceModel
from space_warps.deploy.predict import CatalogueReader, predict_to_file
from space_warps.models.blocks import BlockSpec
from space_warps.models.model import Architecture, ProgressiveModel
from space_warps.models.saved_model import SavedModel, save_model


def write_catalogue(folder: Path, num_rows: int) -> None:
    """A table and a file per row, copied from the sample."""
    sky = sample_catalogue()
    table = pd.read_csv(sky.csv_path, dtype=str)
    contents = [(sky.img_dir_path / f"{name}.jpg").read_bytes() for name in table["id"]]
    (folder / "images").mkdir()
    for row in range(num_rows):
        (folder / f"images/{10**28 + row}.jpg").write_bytes(contents[row % len(contents)])
    rows = table.iloc[np.arange(num_rows) % len(table)].drop(columns="class")
    rows = rows.assign(id=[str(10**28 + row) for row in range(num_rows)])
    rows.to_csv(folder / "rows.csv", index=False)


def write_model(folder: Path, tta: bool) -> None:
    """A network with random weights."""
    sky = sample_catalogue()
    data = Space_Galaxi(sky.test_csv_path, sky.img_dir_path)
    blocks = (BlockSpec(k=16, downsample=3), BlockSpec(k=32))
    architecture = Architecture(
        data.image_shape,
        data.classes,
        ("z", "z_err"),
        measure_input_statistics(data),
        blocks,
        tta=tta,
    )
    torch.manual_seed(0)
    save_model(SavedModel.from_model(ProgressiveModel(architecture)), folder)


class PlainImages(Dataset[tuple[Tensor, Tensor]]):
    """What a script does: open, convert, return."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.table = folder, pd.read_csv(folder / "rows.csv", dtype={"id": str})

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        cells = self.table.iloc[row]
        image = np.asarray(Image.open(self.folder / f"images/{cells['id']}.jpg"), np.float32) / 255
        features = torch.tensor([cells["z"], cells["z_err"]], dtype=torch.float32)
        return torch.from_numpy(image)[None], features


def plain_loop(folder: Path) -> None:
    """Predict with a DataLoader and write a CSV."""
    saved_model = InferenceModel.load(folder).saved_model
    network, data = saved_model.build().eval(), PlainImages(folder)
    with torch.inference_mode():
        parts = [network(*batch).softmax(1) for batch in DataLoader(data, 64)]
    names = [f"p_{name}" for name in network.architecture.classes]
    table = pd.DataFrame(torch.cat(parts).numpy(), columns=names)
    table.assign(id=data.table["id"]).to_csv(folder / "plain.csv", index=False)


def decode(folder: Path) -> None:
    """Decode all files to arrays, part by part, with all cores."""
    model = InferenceModel.load(folder)
    names = pd.read_csv(folder / "rows.csv", dtype=str)["id"].tolist()
    finder = PartFinder(folder / "images", len(names), model.options.images)
    for start in range(0, len(names), 4096):
        model.read_images(finder.find(names[start : start + 4096], start, {}))


def predict(folder: Path) -> None:
    """The command, without reading the arguments."""
    reader = CatalogueReader(InferenceModel.load(folder), folder / "rows.csv", folder / "images")
    with contextlib.suppress(FileNotFoundError):
        (folder / "ours.csv").unlink()
    predict_to_file(reader, folder / "ours.csv")


def peak_mb(folder: Path) -> float:
    """Largest resident set of a process that predicts a catalogue."""
    code = (
        "import sys, re; from pathlib import Path; from bench_predict import predict;"
        "predict(Path(sys.argv[1]));"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    own = {
        **os.environ,
        "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=own
    )
    return int(done.stdout.split()[-1]) / 1024


def main() -> None:
    """Measure in alternation and print."""
    args = parse(__doc__.splitlines()[0], rounds=3, rows=20_000, tta=False, memory=False)
    with tempfile.TemporaryDirectory() as name:
        folders = {
            n: Path(name) / str(n) for n in ((10_000, args.rows) if args.memory else (args.rows,))
        }
        for num_rows, folder in folders.items():
            folder.mkdir()
            write_catalogue(folder, num_rows)
            write_model(folder, args.tta)
        if args.memory:
            for num_rows, folder in folders.items():
                print(f"{num_rows:9,} rows: {peak_mb(folder):7.0f} MB", flush=True)
            return
        times: dict[str, list[float]] = {"ours": [], "decode": [], "plain": []}
        for _ in range(args.rounds):
            for key, work in (("decode", decode), ("ours", predict), ("plain", plain_loop)):
                times[key].append(timed(lambda: work(folder)))  # noqa: B023
        middle = {key: statistics.median(values) for key, values in times.items()}
        rows = [
            Row("predict against decoding only", middle["ours"], middle["decode"]),
            Row("predict against a plain loop", middle["ours"], middle["plain"]),
        ]
        show(rows, args.json, f"{args.rows} rows, tta {args.tta}")


if __name__ == "__main__":
    main()
