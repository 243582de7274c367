"""Classes that a mirror flip exchanges are found, and nothing that comes last makes a network worse."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from space_warps.data.audit import audit_catalogue
from space_warps.data.augment import Augment
from space_warps.data.catalogue import ReadOptions
from space_warps.data.loaders import create_train_val_dataloaders
from space_warps.search.candidate_training import TrainedCandidate
from space_warps.search.config import FinalConfig, SearchConfig
from space_warps.search.runner import LocalRunner
from space_warps.search.search import search


@pytest.fixture(scope="module")
def spirals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A catalogue of clockwise and anticlockwise spirals."""
    folder = tmp_path_factory.mktemp("spirals")
    (folder / "images").mkdir()
    rng, lines = np.random.default_rng(1), ["id,ra,dec,class"]
    y, x = np.mgrid[:32, :32] - 15.5
    radius, angle = np.hypot(x, y) + 1e-6, np.arctan2(y, x)
    for n in range(160):
        sign = 1 if n % 2 else -1
        winding = sign * 1.8 * np.log(radius + 1) + rng.uniform(0, np.pi)
        light = np.exp(-radius / 8) * (0.6 + 0.4 * np.cos(2 * (angle - winding)))
        light += 0.03 * rng.standard_normal(light.shape)
        pixels = np.clip(255 * light, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"s{n}.png")
        lines.append(f"s{n},{2 * n},{n % 60},{'clockwise' if sign > 0 else 'anticlockwise'}")
    (folder / "catalogue.csv").write_text("\n".join(lines) + "\n")
    return folder / "catalogue.csv", folder / "images"


def test_mirrored_classes(spirals: tuple[Path, Path]) -> None:
    """Audit, augmentation and averaging use rotations only; a given value is not tested."""
    audit = audit_catalogue(*spirals, ReadOptions(features=()), print_result=False)
    assert audit.symmetry.symmetries == "rotations"
    assert "exchanges anticlockwise and clockwise" in str(audit)
    for given, expected in (("auto", "rotations"), ("d4", "d4"), ("none", "none")):
        loaders = create_train_val_dataloaders(
            *spirals, Augment(symmetries=given), features=(), train_ratio=0.7
        )
        transform: Any = loaders[0].dataset.transform  # type: ignore[attr-defined]
        assert transform.symmetries == expected
        runner = LocalRunner(*loaders, device="cpu")
        assert runner.base_model.architecture.symmetries == expected


class WorseAtTheEnd(LocalRunner):
    """Final trainings end with a higher log-loss."""

    def train(self, *args: Any, **options: Any) -> Iterator[TrainedCandidate]:
        for trained in super().train(*args, **options):
            assert trained.result is not None
            if trained.result.candidate.is_final:
                worse = replace(trained.result, val_loss=9.0, val_acc=0.0)
                trained = replace(trained, result=worse)
            yield trained


def test_worse_final_training(spirals: tuple[Path, Path]) -> None:
    """The network before the final training is kept, and the history says so."""
    loaders = create_train_val_dataloaders(*spirals, Augment(), features=(), train_ratio=0.7)
    config = SearchConfig(
        max_layers=1, k_candidates=[8], epochs_per_eval=4, final=FinalConfig(epochs=1)
    )
    model, history = search(config, WorseAtTheEnd(*loaders, device="cpu"))
    final = history.final_training
    assert final is not None and final.selected is None
    assert "the network before it is kept" in final.reason
    assert len(model.blocks) == 1 and not model.architecture.tta
