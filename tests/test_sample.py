"""The sample that comes with the repository."""

import hashlib

import pytest
from conftest import ROOT, Catalogue

from space_warps.data.catalogue import read_catalogue

SAMPLE = ROOT / "data/sample"


def read_checksums() -> dict[str, str]:
    """File -> sha256, from SHA256SUMS."""
    lines = (SAMPLE / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def test_every_file_is_listed_with_its_hash() -> None:
    files = {str(p.relative_to(SAMPLE)) for p in SAMPLE.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert files == set(read_checksums())
    for name, digest in read_checksums().items():
        assert hashlib.sha256((SAMPLE / name).read_bytes()).hexdigest() == digest, name


def test_sample_is_small() -> None:
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < 6_000_000


@pytest.mark.parametrize(("name", "num_rows"), [("annotations.csv", 1200), ("test.csv", 300)])
def test_sample_has_no_bad_row(name: str, num_rows: int) -> None:
    catalogue = read_catalogue(SAMPLE / name, SAMPLE / "images")
    assert len(catalogue) == num_rows
    assert catalogue.classes == ("GALAXY", "QSO", "STAR")


def test_no_object_is_in_both_files(sample: Catalogue) -> None:
    contents = [
        {path.read_bytes() for path in read_catalogue(SAMPLE / name, SAMPLE / "images").paths}
        for name in ("annotations.csv", "test.csv")
    ]
    assert not contents[0] & contents[1]
