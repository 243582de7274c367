"""Kinds of image files that people have: the right values, or one line that says what the file is."""

import gzip
import struct
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from astropy.io import fits
from PIL import Image

from space_warps.data.audit import audit_catalogue
from space_warps.data.catalogue import ReadOptions
from space_warps.data.image_arrays import ImageOptions, UnusableImage
from space_warps.data.image_formats import decode_image
from space_warps.data.image_lookup import find_images
from space_warps.data.images import read_image, stretch

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 24), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 4096, (20, 24), dtype=np.uint16)  # 12 bits in 16
FLUX = RNG.normal(100, 10, (20, 24)).astype(np.float32)


def picture(values: Any, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    file = BytesIO()
    image = Image.fromarray(values) if isinstance(values, np.ndarray) else values
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def oriented(number: int, kind: str) -> bytes:
    image = Image.fromarray(GREY)
    exif = image.getexif()
    exif[274] = number
    return picture(image, kind, exif=exif)


def png(values: Any, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A 16-bit PNG; Pillow writes none in colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    size = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + line.astype(">u2").tobytes() for line in values))
    parts = ((b"IHDR", size), *chunks, (b"IDAT", lines), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(values: Any, **options: Any) -> bytes:
    file = BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def hdus(*units: Any) -> bytes:
    file = BytesIO()
    fits.HDUList(list(units)).writeto(file)
    return file.getvalue()


def scaled_integers() -> bytes:
    unit = fits.PrimaryHDU(np.where(FLUX > 105, -32768, FLUX).astype(np.int16))
    unit.header["BLANK"] = -32768
    content = hdus(unit)
    header = fits.Header.fromstring(content[:2880].decode())
    header["BSCALE"], header["BZERO"] = 0.5, 10.0
    return header.tostring().encode() + content[2880:]


def compressed(**options: Any) -> bytes:
    unit = fits.CompImageHDU(FLUX, quantize_level=0, compression_type="GZIP_1", **options)
    return hdus(fits.PrimaryHDU(), unit)


ALPHA = np.where(np.arange(24) < 8, 0, 255).astype(np.uint8) * np.ones((20, 1), np.uint8)
SHOWN = np.s_[:, :, 8:]
TURNED = {
    2: GREY[:, ::-1],
    3: GREY[::-1, ::-1],
    4: GREY[::-1],
    5: GREY.T,
    6: np.rot90(GREY, -1),
    7: np.rot90(GREY, 2).T,
    8: np.rot90(GREY),
}
PALETTE = Image.fromarray(GREY // 16 * 16).quantize(16)
CMYK = Image.fromarray(COLOUR).convert("CMYK")
RGB16 = np.dstack([DEEP, DEEP + 1, DEEP + 2])
BANDS = np.stack([FLUX, FLUX + 1, FLUX + 2, FLUX + 3])
DATA = fits.ImageHDU(FLUX, name="SCI")
ERROR, QUALITY = fits.ImageHDU(FLUX / 9, name="ERR"), fits.ImageHDU(GREY, name="DQ")

CASES: dict[str, tuple[bytes, Any]] = {
    "12 bits in a 16-bit PNG": (picture(DEEP), DEEP[None]),
    "16-bit colour PNG": (png(RGB16, 2), RGB16.transpose(2, 0, 1)),
    "16-bit grey PNG with a transparent value": (
        png(DEEP, 0, (b"tRNS", struct.pack(">H", int(DEEP[0, 0])))),
        np.where(DEEP[0, 0] == DEEP, int(np.median(DEEP[DEEP[0, 0] != DEEP])), DEEP)[None],
    ),
    "palette PNG": (picture(PALETTE), np.asarray(PALETTE.convert("RGB")).transpose(2, 0, 1)),
    "1-bit PNG": (picture(GREY > 99), 255 * (GREY > 99)[None]),
    "CMYK JPEG": (
        picture(CMYK, "JPEG", quality=95),
        np.asarray(Image.open(BytesIO(picture(CMYK, "JPEG", quality=95))).convert("RGB")).transpose(
            2, 0, 1
        ),
    ),
    **{f"orientation {n}": (oriented(n, "PNG"), turned[None]) for n, turned in TURNED.items()},
    "TIFF, 16-bit colour": (tiff(RGB16, photometric="rgb"), RGB16.transpose(2, 0, 1)),
    "TIFF, planes apart": (
        tiff(RGB16.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
        RGB16.transpose(2, 0, 1),
    ),
    "TIFF, LZW": (
        tiff(RGB16, photometric="rgb", compression="lzw", predictor=2),
        RGB16.transpose(2, 0, 1),
    ),
    "TIFF, Deflate in tiles": (
        tiff(np.moveaxis(BANDS[:3], 0, 2), photometric="rgb", compression="zlib", tile=(16, 16)),
        BANDS[:3],
    ),
    "TIFF, float, four bands": (
        tiff(np.moveaxis(BANDS, 0, 2), photometric="minisblack"),
        BANDS,
    ),
    "TIFF, float pages": (tiff(BANDS, photometric="minisblack"), BANDS),
    "TIFF, int32": (tiff(FLUX.astype(np.int32)), FLUX.astype(np.int32)[None]),
    "TIFF, float64": (tiff(FLUX.astype(np.float64)), FLUX[None]),
    "TIFF, 8-bit colour": (tiff(COLOUR, photometric="rgb"), COLOUR.transpose(2, 0, 1)),
    "BigTIFF": (tiff(DEEP, bigtiff=True), DEEP[None]),
    "FITS of scaled integers with BLANK": (
        scaled_integers(),
        np.where(FLUX > 105, np.nan, FLUX.astype(np.int16) * 0.5 + 10)[None],
    ),
    "FITS, SCI with ERR and DQ": (hdus(fits.PrimaryHDU(), DATA, ERROR, QUALITY), FLUX[None]),
    "FITS, compressed": (compressed(), FLUX[None]),
    "FITS, NAXIS3=1": (hdus(fits.PrimaryHDU(FLUX[None])), FLUX[None]),
    "FITS, bands last": (hdus(fits.PrimaryHDU(np.moveaxis(BANDS, 0, 2))), BANDS),
    "FITS, float64 in small units": (
        hdus(fits.PrimaryHDU(1e-17 * FLUX.astype(np.float64))),
        np.float32(1e-17 * FLUX.astype(np.float64))[None],
    ),
    "FITS, infinity": (
        hdus(fits.PrimaryHDU(np.where(FLUX > 120, np.inf, FLUX))),
        np.where(FLUX > 120, np.nan, FLUX)[None],
    ),
    "FITS, gzip": (gzip.compress(hdus(fits.PrimaryHDU(FLUX))), FLUX[None]),
}


@pytest.mark.parametrize("name", CASES)
def test_values(name: str) -> None:
    content, expected = CASES[name]
    values = decode_image(content, "a")[0]
    np.testing.assert_array_equal(values, np.asarray(expected).astype(values.dtype))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_hidden_colours_are_not_used(mode: str) -> None:
    shades = GREY[..., None] if mode == "LA" else COLOUR
    values = decode_image(picture(np.dstack([shades, ALPHA])), "a")[0]
    assert np.array_equal(values[SHOWN], shades.transpose(2, 0, 1)[SHOWN])
    assert np.ptp(values[:, :, :8], axis=(1, 2)).max() == 0


def frames(kind: str) -> bytes:
    other = Image.fromarray(255 - GREY)
    return picture(GREY, kind, save_all=True, append_images=[other])


REFUSED: dict[str, tuple[bytes, str]] = {
    "animated GIF": (frames("GIF"), "a GIF image"),
    "animated WebP": (frames("WEBP"), "a WebP image"),
    "animated PNG": (frames("PNG"), "is animated"),
    "BMP": (picture(GREY, "BMP"), "a BMP image"),
    "colour pages": (
        tiff(np.stack([RGB16, RGB16]), photometric="rgb"),
        "2 pages that are not bands of one image",
    ),
    "two images": (hdus(fits.PrimaryHDU(GREY), fits.ImageHDU(GREY)), "data.hdu="),
    "damaged TIFF": (tiff(RGB16, photometric="rgb")[:300], "truncated, damaged or unreadable"),
    "header alone": (hdus(fits.PrimaryHDU()), "holds no image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    content, message = REFUSED[name]
    with pytest.raises(UnusableImage) as caught:
        decode_image(content, "a.fits")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, -1e30, -99, -999, -9999, 0, -32768])
def test_a_border_leaves_the_grey_levels(value: float) -> None:
    """Pads and sentinels take no grey levels from the object."""
    y, x = np.mgrid[:20, :24]
    image = (FLUX + 50 * np.exp(-np.hypot(y - 10, x - 12) / 4)).astype(np.float32)
    image[:3] = image[:, -2:] = value
    values = decode_image(hdus(fits.PrimaryHDU(image)), "a")[0]
    inner = stretch(values)[0, 3:, :-2]
    assert len(np.unique(inner)) > 60


NAMES = ["a.b.c", "with space", "plus+minus-", "ünïcødé", "100%", "J12:34+56", "#1"]


@pytest.mark.parametrize("suffix", [".fits", ".FITS", ".PNG", ".Jpg", ".tif", ".fits.gz"])
def test_names(tmp_path: Path, suffix: str) -> None:
    kind = {".PNG": "PNG", ".Jpg": "JPEG", ".tif": "TIFF"}.get(suffix)
    for name in NAMES:
        content = picture(GREY, kind) if kind else hdus(fits.PrimaryHDU(FLUX))
        content = gzip.compress(content) if suffix.endswith("gz") else content
        (tmp_path / f"{name}{suffix}").write_bytes(content)
    bad: dict[int, str] = {}
    source = find_images(NAMES, tmp_path, bad)
    assert bad == {}
    assert {read_image(source, row)[0].shape for row in range(len(NAMES))} == {(1, 20, 24)}


def test_zip_with_folders_and_links_inside(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in NAMES:
            archive.writestr(f"set/{name[0]}/{name}.png", picture(GREY))
        archive.writestr("__MACOSX/set/._a.b.c.png", b"x")
    bad: dict[int, str] = {}
    source = find_images(NAMES, tmp_path / "a.zip", bad)
    assert bad == {}
    assert np.array_equal(read_image(source, 3)[0], GREY[None])
    folder = tmp_path / "images"
    (folder / "real").mkdir(parents=True)
    (folder / "real/one.png").write_bytes(picture(GREY))
    (folder / "two.png").symlink_to("real/one.png")
    assert np.array_equal(read_image(find_images(["two"], folder, bad), 0)[0], GREY[None])
    assert bad == {}


def catalogue(folder: Path, draw: Callable[[int], bytes], num_rows: int = 60) -> Any:
    images = folder / "images"
    images.mkdir(parents=True)
    lines = ["id,ra,dec,class"]
    for row in range(num_rows):
        (images / f"g{row}").with_suffix(".fits").write_bytes(draw(row))
        lines.append(f"g{row},{3 * row},{row % 50},{'AB'[row % 2]}")
    (folder / "cat.csv").write_text("\n".join(lines) + "\n")
    return folder / "cat.csv", images


def galaxy(row: int, size: int = 24, bands: int = 1) -> Any:
    rng = np.random.default_rng(row)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    light = np.exp(-(x**2 + y**2) / (2 * (2 + 3 * (row % 2)) ** 2))
    noise = 0.03 * rng.standard_normal((bands, size, size))
    return (light + noise).astype(np.float32)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (hdus(fits.PrimaryHDU(galaxy(0, 30))), "30x30 pixels, most are 24x24; image_size=24"),
        (hdus(fits.PrimaryHDU(galaxy(0, bands=3))), "has 3 bands and most have 1"),
        (hdus(fits.PrimaryHDU(galaxy(0)))[:3000], "cannot be read as FITS"),
        (hdus(fits.PrimaryHDU(np.full((24, 24), 7.0))), "blank: every pixel is 7"),
        (picture(np.pad(GREY, ((2, 2), (0, 0)))), "8-bit shades"),
    ],
)
def test_one_odd_image_among_many(tmp_path: Path, odd: bytes, message: str) -> None:
    paths = catalogue(tmp_path, lambda row: odd if row == 7 else hdus(fits.PrimaryHDU(galaxy(row))))
    result = audit_catalogue(*paths, ReadOptions(features=()), print_result=False)
    assert result.num_usable == 59
    assert result.image_baseline is not None and result.image_baseline.by_object > 0.9
    (fault,) = (text for messages in result.faults.values() for text in messages)
    assert message in fault and "line 9" in fault


def test_brightness_is_kept_beside_a_stretch_of_each_image(tmp_path: Path) -> None:
    """Two classes that differ in flux alone, by a factor of ten."""
    paths = catalogue(
        tmp_path,
        lambda row: hdus(fits.PrimaryHDU(1e-17 * (1, 10)[row % 2] * galaxy(2 * row))),
    )
    alone = ReadOptions(features=(), images=ImageOptions(stretch="image"))
    beside = ReadOptions(features=(), images=ImageOptions(stretch="image", brightness=True))
    without, with_flux = (audit_catalogue(*paths, o, print_result=False) for o in (alone, beside))
    assert without.feature_baseline is None
    assert without.image_baseline is not None and without.image_baseline.by_object < 0.8
    assert with_flux.feature_baseline is not None and with_flux.feature_baseline.by_object > 0.95
    assert list(with_flux.masked) == ["flux_1", "peak_1"]
