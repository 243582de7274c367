"""Images as people have them: read with the right values, or refused in one line with what they are."""

import gzip
import os
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits
from PIL import Image

from space_warps.data.audit import audit_catalogue
from space_warps.data.catalogue import ReadOptions
from space_warps.data.dataset import measure_input_statistics
from space_warps.data.image_arrays import ImageOptions
from space_warps.data.image_lookup import find_images
from space_warps.data.image_store import load_images
from space_warps.data.images import read_image
from space_warps.data.loaders import create_train_val_dataloaders
from space_warps.evaluation.evaluate import read_labelled
from space_warps.models.model import Architecture

NUM_ROWS = 60
PLAIN = ReadOptions(features=())


def write_catalogue(
    folder: Path, draw: Callable[[int, np.random.Generator], Any], name: str = "cat.csv"
) -> tuple[Path, Path]:
    """Rows of two classes in turn; `draw` gives the arrays or HDUs of a row."""
    rng = np.random.default_rng(0)
    images = folder / name.removesuffix(".csv")
    images.mkdir(parents=True)
    lines = ["id,ra,dec,class"]
    for row in range(NUM_ROWS):
        drawn = draw(row, rng)
        if not isinstance(drawn, fits.HDUList):
            drawn = fits.HDUList([fits.PrimaryHDU(np.asarray(drawn, np.float32))])
        drawn.writeto(images / f"g{row}.fits")
        lines.append(f"g{row},{row * 0.7},{row * 0.3},{('A', 'B')[row % 2]}")
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name, images


def disk(rng: np.random.Generator, width: float, flux: float = 1.0, size: int = 24) -> Any:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    noise = 0.03 * rng.standard_normal((size, size))
    return flux * (np.exp(-(x**2 + y**2) / (2 * width**2)) + noise)


def boosting(paths: tuple[Path, Path], **options: Any) -> float:
    """Accuracy from images alone, on new objects."""
    read = ReadOptions(features=(), images=ImageOptions(**options))
    result = audit_catalogue(*paths, read, print_result=False)
    assert result.num_usable == NUM_ROWS, result.faults
    assert result.image_baseline is not None
    return result.image_baseline.by_object


def width(row: int) -> float:
    return 2.0 + 3.0 * (row % 2)


def with_strip(value: float) -> Callable[[int, np.random.Generator], Any]:
    def draw(row: int, rng: np.random.Generator) -> Any:
        image = disk(rng, width(row), 0.3)
        image[: 2 + row % 3] = value
        return image

    return draw


def with_hot_pixel(row: int, rng: np.random.Generator) -> Any:
    image = disk(rng, width(row))
    image[3, row % 24] = 1e6
    return image


def difference_image(row: int, rng: np.random.Generator) -> Any:
    planes = [disk(rng, 3.0, 1000), disk(rng, 3.0, 1000), disk(rng, width(row), 2)]
    return np.stack(planes)


@pytest.mark.parametrize("stretch", ["auto", "image"])
@pytest.mark.parametrize(
    "draw",
    [
        *(with_strip(value) for value in (-99, -999, 99, 1e30, np.nan, np.inf)),
        with_hot_pixel,
        difference_image,
        lambda row, rng: 1e-17 * disk(rng, width(row)),
        lambda row, rng: np.stack([disk(rng, width(row))] * 5),
        lambda row, rng: np.stack([disk(rng, width(row))] * 4, axis=2),
        lambda row, rng: disk(rng, width(row))[None, None],
    ],
)
def test_the_class_shows_in_the_values(tmp_path: Path, draw: Any, stretch: str) -> None:
    assert boosting(write_catalogue(tmp_path, draw), stretch=stretch) > 0.9


def test_brightness_counts_with_limits_of_the_catalogue(tmp_path: Path) -> None:
    paths = write_catalogue(
        tmp_path, lambda row, rng: disk(rng, 3.0, rng.uniform(1, 2) * (100, 1000)[row % 2])
    )
    assert boosting(paths) > 0.9
    assert boosting(paths, stretch="image") < 0.75  # each image on its own: chance


def test_limits_are_measured_on_training_rows_and_kept_by_the_model(tmp_path: Path) -> None:
    paths = write_catalogue(tmp_path, lambda row, rng: disk(rng, 3.0, 100 + row))
    loaders = create_train_val_dataloaders(*paths, features=(), train_ratio=0.7)
    train, val = (loader.dataset for loader in loaders)
    statistics = measure_input_statistics(train)
    assert train.scaling == val.scaling == train.measure_scaling() == statistics.scaling
    assert train.scaling != val.measure_scaling()
    architecture = Architecture(train.image_shape, train.classes, (), statistics)
    brighter = write_catalogue(tmp_path, lambda row, rng: disk(rng, 3.0, 400), "new.csv")
    new = read_labelled(architecture, *brighter, PLAIN)
    assert new.scaling == train.scaling
    images = new.batch(torch.arange(len(new)))[0]
    assert float(images.max()) == pytest.approx(1)
    assert float(images.mean()) > float(train.batch(torch.arange(len(train)))[0].mean())


def test_pixel_scale_is_kept_and_new_images_are_resampled(tmp_path: Path) -> None:
    def at(scale: float) -> Callable[[int, np.random.Generator], Any]:
        header = fits.Header({"CDELT1": -scale / 3600, "CDELT2": scale / 3600})
        return lambda row, rng: fits.HDUList(
            [fits.PrimaryHDU(disk(rng, 0.8 / scale).astype(np.float32), header)]
        )

    paths = write_catalogue(tmp_path, at(0.4))
    train = create_train_val_dataloaders(*paths, features=())[0].dataset
    statistics = measure_input_statistics(train)
    assert statistics.scaling.pixel_scale == pytest.approx(0.4)
    architecture = Architecture(train.image_shape, train.classes, (), statistics)
    new = read_labelled(architecture, *write_catalogue(tmp_path, at(0.2), "new.csv"), PLAIN)
    ours, theirs = (data.batch(torch.arange(40))[0].mean(0)[0] for data in (train, new))
    assert float((ours - theirs).abs().max()) < 0.15  # of a peak of 1: as wide as before
    assert theirs[12, 12] > 0.9


def test_blank_images_are_faults(tmp_path: Path) -> None:
    def draw(row: int, rng: np.random.Generator) -> Any:
        return disk(rng, 3) if row >= 20 else np.full((24, 24), np.nan if row < 10 else 7.0)

    result = audit_catalogue(*write_catalogue(tmp_path, draw), PLAIN, print_result=False)
    messages = result.faults["blank images"]
    assert (result.num_usable, len(messages)) == (NUM_ROWS - 20, 20)
    assert "no pixel was measured" in messages[0]
    assert "every pixel is 7" in messages[10]


def test_bands_in_extensions_are_a_question(tmp_path: Path) -> None:
    def draw(row: int, rng: np.random.Generator) -> Any:
        planes = zip("GRZ", (3.0, 3.0, width(row)), strict=True)
        hdus = [fits.ImageHDU(disk(rng, wide).astype(np.float32), name=n) for n, wide in planes]
        return fits.HDUList([fits.PrimaryHDU(), *hdus])

    paths = write_catalogue(tmp_path, draw)
    result = audit_catalogue(*paths, PLAIN, print_result=False)
    assert result.num_usable == 0
    assert "data.bands=[G,R,Z]" in result.faults["unusable images"][0]
    assert boosting(paths, bands=("g", "r", "z")) > 0.9
    assert boosting(paths, hdu="Z") > 0.9


@pytest.mark.parametrize("suffix", [".fits", ".fit", ".fts", ".FITS", ".fits.gz", ".fits.fz"])
def test_endings_of_fits(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    file = BytesIO()
    if suffix.endswith("fz"):
        unit = fits.CompImageHDU(values, quantize_level=0, compression_type="GZIP_1")
        fits.HDUList([fits.PrimaryHDU(), unit]).writeto(file)
    else:
        fits.PrimaryHDU(values).writeto(file)
    content = file.getvalue()
    (tmp_path / f"a{suffix}").write_bytes(
        gzip.compress(content) if suffix.endswith("gz") else content
    )
    assert np.array_equal(read_image(find_images(["a"], tmp_path, {}), 0)[0][0], values)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def bomb_fits(path: Path) -> None:
    header = fits.Header([("SIMPLE", True), ("BITPIX", -64), ("NAXIS", 2)])
    header["NAXIS1"] = header["NAXIS2"] = 100_000
    path.write_bytes(header.tostring().encode())


def bomb_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(bytes(200_000_000), 1))


def bomb_tile(path: Path) -> None:
    fits.CompImageHDU(np.zeros((32, 32), np.int16), compression_type="GZIP_1").writeto(path)
    content = path.read_bytes()
    for key in (b"ZTILE1  ", b"ZTILE2  "):
        start = content.find(key)
        card = (key + b"= " + b"60000".rjust(20)).ljust(80)
        content = content[:start] + card + content[start + 80 :]
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_fifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "a link out of"),
        (lambda path: path.symlink_to("/etc/passwd"), "a link out of"),
        (lambda path: path.symlink_to("/nowhere"), "a link out of"),
        (lambda path: path.symlink_to(path.name), "is a link"),
        (lambda path: path.mkdir(), "not a regular file"),
        (bomb_fits, "declares 100000x100000 pixels"),
        (bomb_gzip, "expands to more than"),
        (bomb_tile, "a tile of"),
        (lambda path: path.write_bytes(b"<svg/>"), "is an SVG drawing"),
        (lambda path: path.write_bytes(b"\x80" * 50), "neither JPEG"),
    ],
)
def test_what_is_no_image_is_a_message(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "a.fits")
    bad: dict[int, str] = {}
    source = find_images(["a"], tmp_path, bad)
    source_digest = source.digest(0) if not bad else ""
    _, unusable = load_images(source)
    assert message in (bad.get(0) or unusable[0])
    assert isinstance(source_digest, str)


def test_hdf5_stack_of_galaxy10(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    stack = np.random.default_rng(0).integers(0, 255, (5, 20, 20, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "Galaxy10.h5", "w") as file:
        file["images"], file["ans"] = stack, np.arange(5, dtype=np.uint8)
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/images")
    source = find_images(list("abcde"), tmp_path / "Galaxy10.h5", {})
    assert np.array_equal(read_image(source, 3)[0], stack[3].transpose(2, 0, 1))
    pixels, bad = load_images(source)
    assert (tuple(pixels.shape), bad) == ((5, 3, 20, 20), {})


def test_a_zip_bomb_is_a_message(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(200_000_000))
    assert "expands to more" in load_images(find_images(["a"], tmp_path / "a.zip", {}))[1][0]


def test_oblong_images_are_cropped_not_squashed(tmp_path: Path) -> None:
    y, x = np.mgrid[-40:40, -20:20]
    Image.fromarray((np.hypot(x, y) < 12).astype(np.uint8) * 255).save(tmp_path / "a.png")
    pixels, _ = load_images(find_images(["a"], tmp_path, {}), ReadOptions(image_size=20))
    bright = pixels[torch.tensor([0])][0, 0] > 127
    assert bright.any(0).sum() == bright.any(1).sum() == 12
