"""How fast is an exported network, compared with PyTorch, with one thread and with all?

The network has three blocks (16, 32 and 64 channels, the first downsampling by 3) and random weights,
reads the cutouts of `data/sample` and averages over all eight orientations. Ours is onnxruntime with the
exported graph, the reference is `InferenceModel`: the same network in PyTorch, with the same steps
around it. Both get arrays and give probabilities; nothing is decoded. A line is the time of 256 rows,
in batches of 1, 2, 17 or 256.
"""

import functools
from pathlib import Path

import numpy as np
import torch
from side_by_side import compare, parse, show

from space_warps.data.dataset import Space_Galaxi, measure_input_statistics
from space_warps.deploy.export import OnnxModel, largest_difference, to_onnx
from space_warps.deploy.inference import InferenceModel
from space_warps.models.blocks import BlockSpec
from space_warps.models.model import Architecture, ProgressiveModel
from space_warps.models.saved_model import SavedModel

SAMPLE = Path(__file__).resolve().parent.parent / "data/sample"
NUM_ROWS = 256


def example(tta: bool = True) -> tuple[SavedModel, Space_Galaxi]:
    """A network of usual size with random weights, and rows that it reads."""
    data = Space_Galaxi(SAMPLE / "test.csv", SAMPLE / "images")
    torch.manual_seed(0)
    architecture = Architecture(
        data.image_shape,
        data.classes,
        ("z", "z_err"),
        measure_input_statistics(data),
        (BlockSpec(k=16, kernel_size=5, downsample=3), BlockSpec(k=32), BlockSpec(k=64)),
        tta=tta,
    )
    return SavedModel.from_model(ProgressiveModel(architecture)), data


def main() -> None:
    """Measure and print."""
    options = parse(__doc__)
    rows, notes = [], []
    for tta in (True, False):
        saved_model, data = example(tta)
        pixels, features = data.pixels[:NUM_ROWS].numpy(), data.features[:NUM_ROWS].numpy()
        content = to_onnx(saved_model)
        difference = largest_difference(
            OnnxModel(content).predict_proba, saved_model, pixels, features
        )
        notes.append(f"{difference:.1e} with{'' if tta else 'out'} averaging")
        for threads in dict.fromkeys((1, torch.get_num_threads())):
            torch.set_num_threads(threads)
            for size in (1, 2, 17, 256):
                starts = range(0, NUM_ROWS, size)
                batches = [(pixels[s : s + size], features[s : s + size]) for s in starts]
                models = OnnxModel(content, num_threads=threads), InferenceModel(saved_model)
                ours, reference = (functools.partial(run, model, batches) for model in models)
                name = f"{'8 orientations' if tta else '1 orientation'}, {threads} threads, batch {size}"
                rows.append(compare(name, ours, reference, options.rounds))
    show(rows, options.json, f"Largest difference in probability: {', '.join(notes)}.")


def run(model: InferenceModel | OnnxModel, batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Predict all batches."""
    for pixels, features in batches:
        model.predict_proba(pixels, features)


if __name__ == "__main__":
    main()
