"""Memory does not grow with the number of draws or images: both are processed a chunk at a time."""

import tracemalloc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny, write_tiny
from torch.utils.data import DataLoader

from space_warps.data import image_store, pixel_summary
from space_warps.data.audit import audit_catalogue
from space_warps.data.catalogue import ReadOptions, read_catalogue
from space_warps.data.dataset import Space_Galaxi, measure_input_statistics
from space_warps.data.image_sources import StackImages
from space_warps.data.image_store import MemmapImages
from space_warps.evaluation.baselines import compare_classical
from space_warps.evaluation.evaluate import evaluate_rows, overlaps_training
from space_warps.evaluation.metrics import Predictions, bootstrap_intervals
from space_warps.models.blocks import BlockSpec
from space_warps.models.model import Architecture, ProgressiveModel
from space_warps.models.saved_model import SavedModel
from space_warps.training.loop import evaluate


def test_bootstrap_holds_a_chunk_of_draws() -> None:
    """200,000 rows drawn 100 times are 160 MB of float64; the peak stays below half of that."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200_000)
    scores = rng.normal(size=(200_000, 3)).astype(np.float32)
    predictions = Predictions(scores, labels, np.arange(200_000), ("a", "b", "c"))
    tracemalloc.start()
    try:
        intervals = bootstrap_intervals(predictions, num_draws=100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    low, high = intervals["accuracy"]
    assert low < predictions.is_right.mean() < high
    assert peak < 80e6


def resident_file_bytes() -> int:
    """Memory of this process that shows parts of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssFile"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
def test_a_stack_of_images_gives_back_its_pages(tmp_path: Path) -> None:
    """256 MB are read through a mapping that keeps at most about 64 MB of them."""
    shape = 1000, 512, 512
    np.lib.format.open_memmap(tmp_path / "stack.npy", mode="w+", dtype="uint8", shape=shape)
    stack = StackImages(tmp_path / "stack.npy", "", np.arange(1000))
    before = resident_file_bytes()
    assert len({stack.digest(row) for row in range(1000)}) == 1
    assert resident_file_bytes() - before < 150e6


@pytest.fixture
def mapped(tmp_path: Path) -> tuple[Tiny, dict[str, Any]]:
    """140 memory-mapped images, and the options that map them."""
    options = {"max_resident_bytes": 0, "cache_dir": tmp_path / "cache"}
    return write_tiny(tmp_path / "tiny", num_rows=140), options


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of images that each read of a mapped file copies; chunks have at most 32."""
    sizes: list[int] = []
    read = MemmapImages.__getitem__

    def counted(self: MemmapImages, rows: Any) -> torch.Tensor:
        sizes.append(len(rows))
        return read(self, rows)

    monkeypatch.setattr(MemmapImages, "__getitem__", counted)
    monkeypatch.setattr(image_store, "CHUNK_ROWS", 32)
    return sizes


def test_audit_reads_images_in_chunks(
    mapped: tuple[Tiny, dict[str, Any]], reads: list[int]
) -> None:
    tiny, options = mapped
    tiny.change(0, "ra", "east")  # so that the usable rows are not all rows
    result = audit_catalogue(*tiny, ReadOptions(**options), print_result=False)
    assert max(reads) <= 32
    assert sum(reads) == 139  # each once, for statistics, symmetry and cutouts
    assert replace(result, csv_path="") == replace(
        audit_catalogue(*tiny, print_result=False), csv_path=""
    )


def test_evaluation_reads_images_in_chunks(
    mapped: tuple[Tiny, dict[str, Any]], reads: list[int]
) -> None:
    tiny, options = mapped
    data = Space_Galaxi(*tiny, **options)
    trained = Architecture(
        data.image_shape, data.classes, ("z", "z_err"), measure_input_statistics(data)
    ).with_block(BlockSpec(k=4))
    reads.clear()
    model = SavedModel.from_model(ProgressiveModel(trained))
    metrics = evaluate_rows(model, data, device="cpu")
    assert max(reads) <= 64  # of the network's batches; all others are chunks
    assert sum(size > 32 for size in reads) == 140 // 64
    assert metrics == evaluate_rows(model, Space_Galaxi(*tiny), device="cpu")


def test_baselines_read_images_in_chunks(
    mapped: tuple[Tiny, dict[str, Any]], reads: list[int]
) -> None:
    tiny, options = mapped
    data = Space_Galaxi(*tiny, **options)
    train, test = data.subset(np.arange(110)), data.subset(np.arange(110, 140))
    results = list(compare_classical(train, test))
    assert max(reads) <= 32
    whole = Space_Galaxi(*tiny)
    train, test = whole.subset(np.arange(110)), whole.subset(np.arange(110, 140))
    for ours, reference in zip(results, compare_classical(train, test), strict=True):
        assert replace(ours, seconds=0) == replace(reference, seconds=0)


def test_overlap_with_training_reads_no_image(tiny: Tiny) -> None:
    """The digests of the files were computed when the catalogue was read."""
    catalogue = read_catalogue(*tiny)
    for path in tiny.img_dir_path.iterdir():
        path.unlink()
    assert overlaps_training([catalogue], catalogue).all()


def test_evaluation_keeps_no_tensor_of_a_batch(tiny: Tiny) -> None:
    """Small tensors kept between large batches split the heap: 3 MB are lost with every batch."""
    kept: list[weakref.ref[torch.Tensor]] = []
    num_alive: list[int] = []

    class Watched(torch.nn.Module):
        def forward(self, images: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
            num_alive.append(sum(each() is not None for each in kept))
            scores = images.mean(dim=(1, 2, 3))[:, None] * torch.arange(3.0)
            kept.append(weakref.ref(scores))
            return scores

    data = Space_Galaxi(*tiny)
    result = evaluate(Watched(), DataLoader(data, 8))
    assert len(num_alive) == 8
    assert max(num_alive) <= 1
    whole = Watched()(data.batch(torch.arange(60))[0], data.features)
    assert torch.equal(result.logits, whole)
    assert torch.equal(result.labels, data.labels)


def test_audit_of_many_rows_samples_objects(tmp_path: Path, monkeypatch: Any) -> None:
    """Baselines use a sample of the objects, so that memory and time do not grow with the rows."""
    monkeypatch.setattr(pixel_summary, "_MAX_BOOSTED", 40)
    tiny = write_tiny(tmp_path / "tiny", num_rows=140)
    result = audit_catalogue(*tiny, print_result=False)
    assert result.num_usable == 140
    assert 20 < len(result.examples.labels) < 60
    assert result.image_baseline is not None
