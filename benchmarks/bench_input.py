"""How long does reading images take, on all cores and at a second start?

The reference of decoding is a loop in one thread that opens each image with Pillow and converts it to
an array, its time divided by the number of cores: perfect parallelization. A second start maps the file
that the first one wrote. A batch is 32 rows in random order, gathered and augmented, and its reference
is to decode the same rows again.
"""

import functools
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from reference_loop import as_colour
from side_by_side import Row, compare, parse, show

from space_warps.data.augment import Augment
from space_warps.data.catalogue import ReadOptions
from space_warps.data.dataset import Space_Galaxi
from space_warps.data.image_lookup import find_images
from space_warps.data.image_sources import ImageSource
from space_warps.data.image_store import load_images

SAMPLE = Path(__file__).resolve().parent.parent / "data/sample"


def bare_loop(paths: Sequence[Path], mode: str) -> None:
    """Open each image and convert it to an array, in one thread."""
    for path in paths:
        with Image.open(path) as image:
            np.asarray(image.convert(mode))


def source_of(paths: Sequence[Path]) -> ImageSource:
    """The files as the images of a catalogue."""
    return find_images([path.stem for path in paths], paths[0].parent, {})


def decoding(name: str, paths: Sequence[Path], mode: str, rounds: int) -> Row:
    """All cores against the time of one divided by their number."""
    ours = functools.partial(load_images, source_of(paths), ReadOptions(max_resident_bytes=2**40))
    row = compare(name, ours, functools.partial(bare_loop, paths, mode), rounds)
    return Row(name, row.ours_s, row.reference_s / (os.cpu_count() or 1))


def second_start(name: str, paths: Sequence[Path], cache: Path, rounds: int) -> Row:
    """With the file of the first start against without it."""
    options = ReadOptions(max_resident_bytes=0, cache_dir=cache)
    load = functools.partial(load_images, source_of(paths), options)

    def first() -> None:
        shutil.rmtree(cache)
        load()

    load()
    return compare(name, load, first, rounds)


def batches(name: str, data: Space_Galaxi, num_batches: int, rounds: int) -> Row:
    """Rows gathered from memory and augmented, against rows that are decoded each time."""
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(len(data), (num_batches, 32), generator=generator)

    def decoded() -> None:
        for batch in indices:
            paths = [data.catalogue.paths[index] for index in batch.tolist()]
            arrays = [np.asarray(Image.open(path)) for path in paths]
            images = torch.from_numpy(np.stack(arrays)).view(32, *data.image_shape)
            assert data.transform is not None
            data.transform(images.float() / 255, seed=0, epoch=0, rows=batch)  # type: ignore

    def gathered() -> None:
        for batch in indices:
            data.batch(batch)

    return compare(name, gathered, decoded, rounds)


def main() -> None:
    """Measure and print."""
    options = parse(__doc__, copies=8, colour_rows=1000)
    grey = sorted((SAMPLE / "images").iterdir())
    with tempfile.TemporaryDirectory() as temporary:
        rows = [decoding("decode, 75x75 grey", grey * options.copies, "L", options.rounds)]
        folder = as_colour(SAMPLE, Path(temporary) / "224", options.colour_rows, 224) / "images"
        large, few = sorted(folder.iterdir()) * 10, max(2, options.rounds // 2)
        rows.append(decoding("decode, 224x224 colour", large, "RGB", few))
        name, cache = "second start, 75x75 grey", Path(temporary) / "cache"
        rows.append(second_start(name, grey * options.copies, cache, options.rounds))
        data = Space_Galaxi(SAMPLE / "annotations.csv", SAMPLE / "images", Augment())
        rows.append(batches("100 batches of 32", data, 100, options.rounds))
    show(rows, options.json)
    print(
        f"\n{os.cpu_count()} cores; the reference of decoding is its time on one core, divided by their number"
    )


if __name__ == "__main__":
    main()
