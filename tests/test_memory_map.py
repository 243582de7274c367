"""Memory-mapped images give the same bits as images in memory, and do not fill it."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Tiny
from torch.utils.data import DataLoader

from space_warps.data import groups, image_store, images
from space_warps.data.augment import Augment
from space_warps.data.dataset import Space_Galaxi, measure_input_statistics
from space_warps.data.image_lookup import find_images
from space_warps.data.image_store import MemmapImages, load_images
from space_warps.data.loaders import create_train_val_dataloaders
from space_warps.models.saved_model import SavedModel, state_dict_to_bytes
from space_warps.search.config import FinalConfig, SearchConfig
from space_warps.search.runner import LocalRunner
from space_warps.search.search import search

QUICK = SearchConfig(
    max_layers=1, k_candidates=(4,), epochs_per_eval=1, final=FinalConfig(epochs=1)
)


@pytest.fixture
def mapped(tmp_path: Path) -> dict[str, Any]:
    """Options that memory-map the images, with a cache of their own."""
    return {"max_resident_bytes": 0, "cache_dir": tmp_path / "cache"}


def read(tiny: Tiny, **options: Any) -> tuple[DataLoader[Any], DataLoader[Any]]:
    return create_train_val_dataloaders(*tiny[:2], Augment(), train_ratio=0.7, **options)


def test_search_gives_the_same_bits(tiny: Tiny, mapped: dict[str, Any]) -> None:
    results = []
    for options in ({}, mapped, mapped):  # the third run uses the file of the second
        loaders = read(tiny, **options)
        assert isinstance(loaders[0].dataset.pixels, MemmapImages) is bool(options)
        hashes = [loader.dataset.sha256() for loader in loaders]
        model, history = search(QUICK, LocalRunner(*loaders, device="cpu"))
        weights = state_dict_to_bytes(SavedModel.from_model(model).state_dict)
        results.append(
            (hashes, measure_input_statistics(loaders[0].dataset), history.sha256, weights)
        )
    assert results[0] == results[1] == results[2]


def test_second_start_does_not_decode(
    tiny: Tiny, mapped: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.image(7).write_bytes(b"")
    first = Space_Galaxi(*tiny, on_bad_row="skip", **mapped)

    def refuse(*_: object) -> None:
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr(image_store, "decode_into", refuse)
    again = Space_Galaxi(*tiny, on_bad_row="skip", **mapped)
    assert again.sha256() == first.sha256()
    assert again.catalogue.skipped == first.catalogue.skipped
    tiny.image(8).write_bytes(tiny.image(9).read_bytes() + b" ")
    with pytest.raises(AssertionError, match="decoded again"):
        Space_Galaxi(*tiny, on_bad_row="skip", **mapped)


def test_deleted_file_is_written_again(tiny: Tiny, mapped: dict[str, Any]) -> None:
    first = Space_Galaxi(*tiny, **mapped).sha256()
    for data in Path(mapped["cache_dir"]).rglob("*.uint8"):
        data.unlink()
    assert Space_Galaxi(*tiny, **mapped).sha256() == first


def test_worker_processes_map_the_file(tiny: Tiny, mapped: dict[str, Any]) -> None:
    data = Space_Galaxi(*tiny, **mapped)
    loader = DataLoader(data, 8, num_workers=2, multiprocessing_context="spawn")
    result = torch.cat([batch[0] for batch in loader])
    assert torch.equal(result, data.batch(torch.arange(len(data)))[0])


def test_every_core_decodes(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many images are decoded at once as there are cores."""
    monkeypatch.setattr(groups, "BATCH_ROWS", 4)
    fit_shape = images.fit_shape
    source = find_images([tiny.image(row).stem for row in range(60)], tiny.img_dir_path, {})
    first = {
        images.read_image(source, row)[0].tobytes()  # of each thread's first batch
        for row in range(0, 4 * (os.cpu_count() or 1), 4)
    }
    barrier = threading.Barrier(len(first))

    def fit_together(values: Any, *more: Any) -> Any:
        if values.tobytes() in first:
            barrier.wait(timeout=60)  # fails if one thread does the work of two
        return fit_shape(values, *more)

    monkeypatch.setattr(images, "fit_shape", fit_together)
    result, bad = load_images(source)
    assert not bad
    assert np.array_equal(result[torch.tensor([3])][0], images.read_image(source, 3)[0])


def test_progress_is_shown(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    Space_Galaxi(*tiny, progress=True)
    message = capfd.readouterr().err
    assert "comparing files" in message
    assert "decoding" in message
    assert "0/60" in message


PEAK = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from space_warps.data.image_store import MemmapImages

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
path, rows, side = Path(sys.argv[1]), int(sys.argv[2]), 1024
shape = (rows, 1, side, side)
with path.open("wb") as file:
    file.truncate(rows * side**2)
pixels = MemmapImages(path, shape, writable=True)
for row in range(rows):
    pixels[row] = np.full((1, side, side), row % 251, dtype=np.uint8)
pixels.flush()
pixels = MemmapImages(path, shape)
for batch in torch.randperm(rows).split(16):
    assert torch.equal(pixels[batch][:, 0, 5, 5].to(torch.int64), batch % 251)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages are released on Linux")
def test_pages_that_were_read_are_released(tmp_path: Path) -> None:
    """A gibibyte is written and read in random order; less than a quarter stays resident."""
    args = [sys.executable, "-c", PEAK, str(tmp_path / "pixels.uint8"), "1024"]
    process = subprocess.run(args, capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(process.stdout) < 250 * 1024
