"""Catalogues that the tests share."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from space_warps.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("SPACE_GALAXI_DIR", ROOT.parent / "shared" / "space_galaxi"))
CLASSES = ("GALAXY", "QSO", "STAR")


class Catalogue(NamedTuple):
    """Where a catalogue lies."""

    csv_path: Path
    img_dir_path: Path


class Tiny(NamedTuple):
    """A catalogue of 60 small images, one object each, that a test can break."""

    csv_path: Path
    img_dir_path: Path

    def lines(self) -> list[str]:
        """The CSV, header first."""
        return self.csv_path.read_text(encoding="utf-8").splitlines()

    def write(self, lines: list[str]) -> None:
        """Replace the CSV."""
        self.csv_path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def change(self, row: int, column: str, value: str) -> None:
        """Replace one cell; rows count from 0."""
        lines = self.lines()
        cells = lines[row + 1].split(",")
        cells[lines[0].split(",").index(column)] = value
        lines[row + 1] = ",".join(cells)
        self.write(lines)

    def image(self, row: int) -> Path:
        """The image of a row; rows count from 0."""
        return self.img_dir_path / f"{self.lines()[row + 1].split(',')[0]}.png"

    def words(self) -> list[str]:
        """The keys that name it on the command line."""
        return [f"data.csv_path={self.csv_path}", f"data.img_dir_path={self.img_dir_path}"]


def grow(tiny: Tiny, run: Path, *words: str) -> dict[str, Any]:
    """Run the search command and read the summary."""
    assert main(["search", *tiny.words(), f"run.dir={run}", *words]) == 0
    summary: dict[str, Any] = json.loads((run / "progressive_summary.json").read_text())
    return summary


def write_tiny(folder: Path, num_rows: int = 60, size: int = 12, colour: bool = False) -> Tiny:
    """Three classes that differ in the width of a spot: easy to tell apart."""
    images = folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] - size / 2
    lines = ["id,ra,dec,class,subclass,z,z_err"]
    for row in range(num_rows):
        label = row % 3
        spot = 200 * np.exp(-(x**2 + y**2) / (2 + 6 * label)) + rng.normal(20, 6, (size, size))
        shades = np.clip(spot, 0, 255).astype(np.uint8)
        name = f"{10**28 + row}"
        picture = np.stack([shades, shades // 2, shades // 3], axis=2) if colour else shades
        Image.fromarray(picture).save(images / f"{name}.png")
        z = (0.3, 1.5, 0.0001)[label] + 0.01 * rng.normal()
        lines.append(f"{name},{row * 2.5},{row * 0.5 - 30},{CLASSES[label]},,{z:.6f},0.0002")
    tiny = Tiny(folder / "annotations.csv", images)
    tiny.write(lines)
    return tiny


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """A catalogue of 60 gray 12x12 images, in a folder of its own."""
    return write_tiny(tmp_path / "tiny")


@pytest.fixture
def make_tiny(tmp_path: Path) -> Callable[..., Tiny]:
    """Makes catalogues with other numbers of rows, sizes and colours."""
    count = iter(range(1000))
    return lambda **options: write_tiny(tmp_path / f"tiny{next(count)}", **options)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread to compute with, as each of the workers of a search has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sample() -> Catalogue:
    """The simulated sample of the repository."""
    return Catalogue(ROOT / "data/sample/annotations.csv", ROOT / "data/sample/images")


@pytest.fixture(scope="session")
def real() -> Catalogue:
    """The real catalogue, where there is one."""
    if not (REAL / "annotations.csv").is_file():
        pytest.skip("no real catalogue beside this checkout; SPACE_GALAXI_DIR can name one")
    return Catalogue(REAL / "annotations.csv", REAL / "images")


# A browser, for tests of pages and widgets: Debian's chromium, driven by playwright.
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where chromium is; a machine without one skips what needs it."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium on this machine; CI has to install it")
        pytest.skip("no chromium on this machine; apt-get install chromium brings one")
    return CHROMIUM


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Any]:
    """A browser without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        shown = driver.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield shown
        shown.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The site comes last: it shows the pages that the tests have executed."""
    items.sort(key=lambda item: item.path.name == "test_docs.py")
