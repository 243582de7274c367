"""Is the simulated sky as hard to classify as a real one, and for the same reasons?

    python benchmarks/simulated_against_real.py REAL [--simulated data/sample] [--json FILE]

REAL is a folder with annotations.csv and images/, in the layout of data/sample. On both skies, gradient
boosting (scikit-learn) is trained on statistics of each image's profile and on the redshift columns, in
five-fold cross-validation grouped by object; rows show one object if their image files have the same
content. Prints the mean accuracy over the repeats with its standard deviation, and quantiles of the
statistics.
"""

import argparse
import hashlib
import itertools
import json
import platform
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from space_warps.data.values import find_sentinels

RINGS = [0, 1.5, 2.5, 3.5, 4.5, 6, 8, 11, 15, 20, 28, 37]  # pixels
SHOWN = ["log_peak", "concentration", "size", "ellipticity", "neighbour"]
REPEATS = 3


def read(folder: Path) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Table, images (rows, height, width) on a linear scale from 0 to 1, object of each row."""
    table = pd.read_csv(folder / "annotations.csv", dtype={"id": "string", "subclass": "string"})
    files = [(folder / "images" / f"{name}.jpg").read_bytes() for name in table.id]
    images = np.stack([np.asarray(Image.open(folder / "images" / f"{n}.jpg")) for n in table.id])
    linear = np.sinh(images / 255 * np.arcsinh(10)) / 10  # inverse of the stretch
    digests = [hashlib.sha256(content).hexdigest() for content in files]
    return table, linear, np.unique(digests, return_inverse=True)[1]


def moments(light: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Size, ellipticity and offset of the light within a Gaussian window of 4 pixels."""
    weight = np.clip(light, 0, None) * np.exp(-(x**2 + y**2) / 32)
    total = weight.sum((1, 2))

    def mean(value: np.ndarray) -> np.ndarray:
        return (weight * value).sum((1, 2)) / total

    mx, my = mean(x), mean(y)
    xx, yy, xy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    ellipticity = np.hypot(xx - yy, 2 * xy) / (xx + yy)
    return {"size": np.sqrt(xx + yy), "ellipticity": ellipticity, "offset": np.hypot(mx, my)}


def profile_statistics(images: np.ndarray) -> pd.DataFrame:
    """Statistics of the radial profile of each image."""
    background = np.median(images, (1, 2))
    light = images - background[:, None, None]
    noise = 1.4826 * np.median(abs(light), (1, 2)) + 1e-3
    y, x = np.indices(images.shape[1:]) - (images.shape[1] - 1) / 2
    radius = np.hypot(x, y)
    pairs = list(itertools.pairwise(RINGS))
    rings = [light[:, (radius >= low) & (radius < high)] for low, high in pairs]
    profile = np.stack([ring.mean(1) for ring in rings], 1)
    scale = np.maximum(profile[:, 0], noise)

    def inside(limit: float) -> np.ndarray:
        return light[:, radius < limit].sum(1)

    peak = light[:, radius < 3].max(1) / noise
    smooth = gaussian_filter(light, (0, 1.5, 1.5))
    return pd.DataFrame(
        {
            "background": background,
            "noise": noise,
            "log_peak": np.log10(np.maximum(peak, 0.1)),
            "concentration": inside(3) / np.maximum(inside(8), noise),
            "outskirts": inside(5) / np.maximum(inside(15), noise),
            "neighbour": smooth[:, radius > 10].max(1) / scale,
            "roughness": np.mean([r.std(1) / noise for r in rings[4:8]], axis=0),
            **{f"ring {i}": profile[:, i] / scale for i in range(len(pairs))},
            **moments(light, x, y),
        }
    )


def accuracy(
    features: pd.DataFrame, classes: np.ndarray, groups: np.ndarray
) -> tuple[float, float]:
    """Mean and standard deviation of the cross-validated accuracy."""
    scores = []
    for seed in range(REPEATS):
        model = HistGradientBoostingClassifier(
            max_iter=150, learning_rate=0.06, max_leaf_nodes=15, min_samples_leaf=15,
            l2_regularization=1, random_state=seed,
        )  # fmt: skip
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        predicted = cross_val_predict(model, features, classes, groups=groups, cv=folds)
        scores.append(float((predicted == classes).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def measure(folder: Path) -> dict[str, dict]:
    """All results of one sky."""
    table, images, groups = read(folder)
    classes = table["class"].to_numpy(dtype=str)
    statistics = profile_statistics(images)
    redshift = table[["z", "z_err"]]
    no_value, no_error = find_sentinels(table.z, table.z_err)
    masked = pd.DataFrame({"z": table.z.mask(no_value), "z_err": table.z_err.mask(no_error)})
    alone = np.arange(len(table))
    tasks = {
        "profile statistics": (statistics, groups),
        "profile statistics, rows split at random": (statistics, alone),
        "z": (redshift[["z"]], groups),
        "z and z_err": (redshift, groups),
        "z and z_err, sentinels masked": (masked, groups),
        "profile statistics, z, z_err, masked": (pd.concat([statistics, masked], axis=1), groups),
    }
    counts = pd.Series(groups).value_counts()
    labels = pd.Series(classes).groupby(groups).nunique()
    firsts = ~pd.Series(groups).duplicated().to_numpy()
    quantiles = statistics[firsts].groupby(classes[firsts])[SHOWN].quantile([0.16, 0.5, 0.84])
    zeros = ((table.z == 0) & (table.z_err == 0)).groupby(classes).mean()
    return {
        "counts": {
            "rows": len(table),
            "objects": len(counts),
            "objects with several rows": float((counts > 1).mean()),
            "objects with contradicting classes": float((labels > 1).mean()),
            **{f"rows of class {k}": float((classes == k).mean()) for k in np.unique(classes)},
            **{f"z = z_err = 0 among {k}": float(v) for k, v in zeros.items()},
        },
        "accuracy": {name: accuracy(x, classes, g) for name, (x, g) in tasks.items()},
        "quantiles": {
            f"{statistic} of {label}": [
                float(quantiles.loc[(label, q), statistic]) for q in (0.16, 0.5, 0.84)
            ]
            for statistic in SHOWN
            for label in np.unique(classes)
        },
    }


def show(value: object) -> str:
    """Format a number, an accuracy with its deviation, or three quantiles."""
    if isinstance(value, tuple):
        return "{:.3f} ± {:.3f}".format(*value)
    if isinstance(value, list):
        return " ".join(f"{v:.2f}" for v in value)
    return f"{value}" if isinstance(value, int) else f"{value:.3f}"


def main() -> None:
    """Measure both skies and print the results side by side."""
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("real", type=Path, help="folder with annotations.csv and images/")
    parser.add_argument("--simulated", type=Path, default=root / "data" / "sample")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    skies = {"real": measure(args.real), "simulated": measure(args.simulated)}
    print(f"{'':45} {'real':>20} {'simulated':>20}")
    for part, numbers in skies["real"].items():
        print(f"-- {part}")
        for name, value in numbers.items():
            other = skies["simulated"][part].get(name, "-")
            print(f"{name:45} {show(value):>20} {show(other):>20}")
    if args.json:
        git = ["git", "-C", str(root), "rev-parse", "HEAD"]
        about = {
            "commit": subprocess.run(
                git, capture_output=True, text=True, check=False
            ).stdout.strip(),
            "machine": platform.platform(),
            "versions": {"python": platform.python_version(), "scikit-learn": sklearn.__version__},
            "seeds": list(range(REPEATS)),
        }
        args.json.write_text(json.dumps({**about, **skies}, indent=2) + "\n")


if __name__ == "__main__":
    main()
