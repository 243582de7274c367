"""Which score finds images unlike anything a network was trained on?

`bench_outliers.py CATALOGUE OTHER` grows a small network on CATALOGUE (a folder with `annotations.csv` and
`images/`), with a fifth of the objects set aside as test rows, and one more for each class on the rows
without this class. Its test rows are ordinary images. Compared with them, by the area under the ROC curve
(AUROC) with a bootstrap interval over images:

- sky: noise with the median and scatter of each test image, without an object;
- noise: uniform noise in all 256 shades;
- trail: test images with a bright line across;
- half: test images whose right half was not read out;
- negative: test images with inverted shades;
- other survey: grey images of OTHER, resized, where it is given;
- class: images of the class that the network was grown without.

The scores: `mahalanobis` from the nearest class, on the part of the embedding that comes from the image
(`all`: on the whole embedding), `energy` (minus the log-sum-exp of the logits), `entropy` of the
probabilities, and `neighbour`, the distance from the tenth nearest of the training rows, with embeddings
of unit length. The threshold is fitted on the validation rows; `flagged` is the share above it.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from scipy.special import logsumexp
from scipy.stats import entropy
from side_by_side import commit, machine
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from space_warps.cli.config import read_run_config
from space_warps.cli.datasets import read_split
from space_warps.cli.main import main as space_warps
from space_warps.data.catalogue import ReadOptions
from space_warps.data.dataset import Space_Galaxi
from space_warps.deploy.inference import InferenceModel, Outputs
from space_warps.deploy.outliers import OutlierDetector

Array = npt.NDArray[Any]


def grow(csv_path: Path, images: Path, run: Path) -> None:
    """A search of about a minute."""
    keys = ["search.max_layers=2", "search.k_candidates=[16]", "search.epochs_per_eval=3"]
    keys += ["search.final.epochs=15", "data.test_share=0.2", f"run.dir={run}"]
    paths = [f"data.csv_path={csv_path}", f"data.img_dir_path={images}"]
    assert space_warps(["search", *paths, *keys]) == 0


def changed(pixels: Array) -> dict[str, Array]:
    """Images that are no ordinary ones, made of ordinary ones: uint8 [rows, 1, height, width]."""
    rng = np.random.default_rng(0)
    level = np.median(pixels, axis=(2, 3), keepdims=True)
    scatter = 1.4826 * np.median(np.abs(pixels - level), axis=(2, 3), keepdims=True)
    sky = level + np.maximum(scatter, 1) * rng.normal(size=pixels.shape)
    height, width = pixels.shape[2:]
    y, x = np.mgrid[:height, :width]
    trail, half = pixels.copy(), pixels.copy()
    for image in trail:
        slope, offset = rng.uniform(-1, 1), rng.uniform(0.3, 0.7) * height
        image[:, np.abs(y - offset - slope * (x - width / 2)) < 1.5] = 230
    half[..., width // 2 :] = 0
    return {
        "sky": sky.clip(0, 255).astype(np.uint8),
        "noise": rng.integers(0, 256, pixels.shape, dtype=np.uint8),
        "trail": trail,
        "half": half,
        "negative": 255 - pixels,
    }


def other_survey(folder: Path, shape: tuple[int, ...], num_rows: int) -> Array:
    """Grey images of another survey, the central part resized."""
    paths = sorted((folder / "images").glob("*.jpg"))[:num_rows]
    size = shape[2], shape[1]
    pictures = [np.asarray(Image.open(path).convert("L").resize(size)) for path in paths]
    return np.stack(pictures)[:, None]


class Scores:
    """All scores of images, larger for outliers, with the state that each needs."""

    def __init__(self, model: InferenceModel, train: Space_Galaxi, validation: Space_Galaxi):
        self.model, self.width = model, model.architecture.head_width
        self.num_image = self.width - model.architecture.num_projected
        parts = [self.run_dataset(dataset) for dataset in (train, validation)]
        self.features = validation.features.numpy()
        labels, sha256 = train.labels.numpy(), model.sha256
        self.detectors = {
            name: OutlierDetector.fit(*self._fitting(parts, labels, width), sha256)
            for name, width in (("mahalanobis", self.num_image), ("all", self.width))
        }
        self.neighbours = NearestNeighbors(n_neighbors=10).fit(self._unit(parts[0]))
        self.thresholds = {
            name: np.quantile(values, 0.99, method="higher")
            for name, values in self.of(parts[1]).items()
        }

    @staticmethod
    def _fitting(parts: list[Outputs], labels: Array, width: int) -> tuple[Array, Array, Array]:
        return parts[0].embedding[:, :width], labels, parts[1].embedding[:, :width]

    def run_dataset(self, dataset: Space_Galaxi) -> Outputs:
        return self.model.run(dataset.pixels[dataset.rows].numpy(), dataset.features.numpy())

    def run(self, pixels: Array) -> Outputs:
        """With the features of validation rows: only the images are unusual."""
        return self.model.run(
            pixels, np.resize(self.features, (len(pixels), self.features.shape[1]))
        )

    def _unit(self, outputs: Outputs) -> Array:
        images = outputs.embedding[:, : self.num_image]
        return np.asarray(images / np.linalg.norm(images, axis=1, keepdims=True))

    def of(self, outputs: Outputs) -> dict[str, Array]:
        scores = {name: d.score(outputs.embedding) for name, d in self.detectors.items()}
        scores["energy"] = -logsumexp(outputs.logits, axis=1)
        scores["entropy"] = entropy(outputs.probabilities, axis=1)
        scores["neighbour"] = self.neighbours.kneighbors(self._unit(outputs))[0][:, -1]
        return scores


def auroc(ordinary: Array, unusual: Array) -> tuple[float, float, float]:
    """Area under the ROC curve, with its 95% bootstrap interval."""
    rng = np.random.default_rng(0)

    def area(first: Array, second: Array) -> float:
        labels = np.repeat([0, 1], [len(first), len(second)])
        return float(roc_auc_score(labels, np.concatenate([first, second])))

    draws = [area(*(rng.choice(s, len(s)) for s in (ordinary, unusual))) for _ in range(500)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return area(ordinary, unusual), float(low), float(high)


def load(run: Path) -> tuple[Scores, Space_Galaxi]:
    """Scores of the network of a run, and its test rows."""
    config = read_run_config(run)
    images = str(config.data.img_dir_path)
    train, validation = (loader.dataset for loader in read_split(config)[0])
    model = InferenceModel.load(run, device="cpu")
    options = ReadOptions(classes=model.architecture.classes)
    test = Space_Galaxi.read(run / "test.csv", images, options)
    return Scores(model, train, validation), test  # type: ignore[arg-type]


def compare(name: str, scores: Scores, ordinary: Outputs, unusual: Outputs) -> list[dict[str, Any]]:
    """A row per score."""
    first, second, rows = scores.of(ordinary), scores.of(unusual), []
    for score in first:
        area, low, high = auroc(first[score], second[score])
        flagged = float((second[score] > scores.thresholds[score]).mean())
        false = float((first[score] > scores.thresholds[score]).mean())
        rows.append({"images": name, "score": score, "auroc": area, "low": low, "high": high})
        rows[-1] |= {"flagged": flagged, "flagged_ordinary": false, "num": len(second[score])}
        print(
            f"{name:20} {score:12} {area:.3f} ({low:.3f} to {high:.3f})  flagged {flagged:.2f}, "
            f"of ordinary ones {false:.3f}",
            flush=True,
        )
    return rows


def main() -> None:
    """Grow, score, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=Path, default=Path(tempfile.mkdtemp()))
    args = parser.parse_args()
    csv_path, images = args.catalogue / "annotations.csv", args.catalogue / "images"
    if not (args.runs / "all").exists():
        grow(csv_path, images, args.runs / "all")
    scores, test = load(args.runs / "all")
    ordinary, pixels = scores.run_dataset(test), test.pixels[test.rows].numpy()
    rows = []
    unusual = changed(pixels)
    if args.other is not None:
        unusual["other survey"] = other_survey(args.other, pixels.shape[1:], len(pixels))
    for name, arrays in unusual.items():
        rows += compare(name, scores, ordinary, scores.run(arrays))
    table = pd.read_csv(csv_path, dtype=str)
    for name in sorted(set(table["class"])):
        run = args.runs / f"without_{name}"
        without = args.runs / f"without_{name}.csv"
        if not run.exists():
            table[table["class"] != name].to_csv(without, index=False)
            grow(without, images, run)
        held, own_test = load(run)
        options = ReadOptions(classes=tuple(sorted(set(table["class"]))))
        whole = Space_Galaxi.read(csv_path, images, options)
        members = whole.subset(whole.labels.numpy() == whole.classes.index(name))
        rows += compare(
            f"class {name}", held, held.run_dataset(own_test), held.run_dataset(members)
        )
    if args.json:
        record = {"commit": commit(), "machine": machine(), "scores": rows}
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
