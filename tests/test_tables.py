"""Tables as other programs and archives write them: read right, or refused in one line."""

import gzip
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.io.votable import from_table, writeto
from astropy.table import MaskedColumn, Table
from conftest import ROOT, Tiny

from space_warps.cli.main import main
from space_warps.core import InputError
from space_warps.data.audit import CatalogueAudit, audit_catalogue
from space_warps.data.catalogue import ReadOptions, read_catalogue
from space_warps.data.dataset import Space_Galaxi
from space_warps.data.image_sources import ImagePaths
from space_warps.data.tables import TableOptions, read_table
from space_warps.data.values import read_features
from space_warps.evaluation.evaluate import overlaps_training

REAL_TABLES = Path(
    os.environ.get("SPACE_WARPS_TABLES_DIR", ROOT.parent / "shared" / "cases" / "tables")
)


SHORT = [
    "search.max_layers=1",
    "search.k_candidates=[4]",
    "search.epochs_per_eval=1",
    "search.final.epochs=1",
]


def audit(tiny: Tiny, path: Path | None = None, **table: Any) -> CatalogueAudit:
    options = ReadOptions(features=[], table=TableOptions(**table))
    return audit_catalogue(path or tiny.csv_path, tiny.img_dir_path, options, print_result=False)


CSV_DIALECTS = {
    "mark": (lambda text: "\ufeff" + text, "utf-8", ""),
    "semicolon": (lambda text: text.replace(",", ";"), "utf-8", "separated by ';'"),
    "tab": (lambda text: text.replace(",", "\t"), "utf-8", "separated by a tab"),
    "pipe": (lambda text: text.replace(",", "|"), "utf-8", "separated by '|'"),
    "utf16": (lambda text: text, "utf-16", "read as utf-16"),
    "comments": (lambda text: "# a query\n# 2024\n" + text, "utf-8", "2 comment lines"),
    "hash header": (lambda text: "#" + text, "utf-8", "comment line 1"),
    "skyserver": (lambda text: "#Table1\n" + text, "utf-8", "1 comment lines"),
    "upper": (lambda text: text.replace("id,ra,dec,class", "ID,RA,DEC,Class"), "utf-8", "read as"),
    "trailing": (lambda text: text.replace("\n", ",\n"), "utf-8", ""),
    "crlf": (lambda text: text.replace("\n", "\r\n"), "utf-8", ""),
    "comment at the end": (lambda text: text + "# 60 rows\n\n", "utf-8", ""),
    "carriage returns": (lambda text: text.replace("\n", "\r"), "utf-8", ""),
    "utf32": (lambda text: text, "utf-32", "read as utf-32"),
    "excel": (lambda text: "sep=;\n" + text.replace(",", ";"), "utf-8", "separated by ';'"),
    "decimal comma": (
        lambda text: "\ufeff" + text.replace(",", ";").replace(".", ","),
        "utf-8",
        "decimal comma",
    ),
    "quoted": (
        lambda text: re.sub("([^,\n]+)", r'"\1"', text).replace("STAR", "STAR, hot"),
        "utf-8",
        "",
    ),
    "spaces in names": (lambda text: text.replace("dec,class", " dec ,class "), "utf-8", ""),
    "repeated column": (lambda text: text.replace("z,z_err", "z,z"), "utf-8", ""),
    "blank lines": (lambda text: text.replace("\n", "\n  \n\n"), "utf-8", ""),
    "units": (lambda text: text.replace("\n", "\n# ,deg,deg,,,,\n", 1), "utf-8", ""),
    "unused column": (lambda text: text.replace("STAR,,", "STAR,Müller,"), "cp1252", ""),
}


@pytest.mark.parametrize("name", CSV_DIALECTS)
def test_csv_dialects(tiny: Tiny, name: str) -> None:
    change, encoding, note = CSV_DIALECTS[name]
    text = tiny.csv_path.read_text(encoding="utf-8")
    tiny.csv_path.write_bytes(change(text).encode(encoding))
    result = audit(tiny)
    assert result.num_usable == 60
    assert result.num_objects == 60
    assert [kind[:4] for kind in result.class_counts] == ["GALA", "QSO", "STAR"]
    assert note in " ".join(result.notes)


def test_spaces_between_cells(tiny: Tiny) -> None:
    rows = [line.split(",")[:4] for line in tiny.lines()]
    tiny.write(["   ".join(row) for row in rows])
    assert audit(tiny).num_usable == 60


def write_columns(tiny: Tiny, path: Path, kind: str) -> None:
    """The tiny catalogue in another format."""
    table = read_table(tiny.csv_path)
    columns = {"id": table["id"].tolist(), "class": table["class"].tolist()}
    columns |= {name: table[name].astype(float).tolist() for name in ("ra", "dec", "z", "z_err")}
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an extra")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table(columns), path)
    elif kind == "hdf5":
        h5py = pytest.importorskip("h5py", reason="h5py is an extra")
        with h5py.File(path, "w") as file:
            for name, column in columns.items():
                file[name] = column
            file["images"] = np.zeros((60, 12, 12))
    else:
        Table(columns).write(path, format=kind)


FORMATS = ["fits", "votable", "ascii.ecsv", "parquet", "hdf5"]


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(tiny: Tiny, kind: str) -> None:
    path = tiny.csv_path.with_name("other.dat")  # the content decides, not the name
    write_columns(tiny, path, kind)
    expected = read_catalogue(*tiny)
    catalogue = read_catalogue(path, tiny.img_dir_path)
    assert catalogue.table["id"].tolist() == expected.table["id"].tolist()
    assert (catalogue.labels == expected.labels).all()
    assert np.array_equal(catalogue.features, expected.features)
    assert np.array_equal(catalogue.ra, expected.ra)


@pytest.mark.parametrize("kind", FORMATS)
def test_integer_ids_and_missing_values_are_exact(tmp_path: Path, kind: str) -> None:
    ids = [587722952767439450, 9007199254740993]
    if kind in ("parquet", "hdf5"):
        module = pytest.importorskip({"parquet": "pyarrow.parquet", "hdf5": "h5py"}[kind])
    path = tmp_path / "table"
    if kind == "parquet":
        import pyarrow

        module.write_table(pyarrow.table({"id": ids, "z": [0.1, None]}), path)
    elif kind == "hdf5":
        with module.File(path, "w") as file:
            file["id"], file["z"] = ids, [0.1, np.nan]
    else:
        Table({"id": ids, "z": [0.1, np.nan]}).write(path, format=kind)
    table = read_table(path)
    assert table["id"].tolist() == [str(number) for number in ids]
    assert table["z"].tolist() == ["0.1", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1" + bytes(range(256)) * 4, "arquet|pyarrow"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5|h5py"),
        (b"PK\x03\x04" + bytes(100), "zip or Excel file"),
        (b"ARROW1" + bytes(100), "Feather file"),
        (b'{"id": 1}', "is JSON"),
        (b"PK,name\n1,a\n", "has no column"),
        (b"SIMPLE  =                    T", "cannot be read as|without a table"),
        (b"<html><body>504</body></html>", "is an HTML or XML page"),
        (b'<?xml version="1.0"?><VOTABLE><RESOURCE>', "cannot be read as votable"),
        (b"# %ECSV 1.0\n# ---\nid", "cannot be read as ascii.ecsv"),
        (b"\x1f\x8b\x08\x00damaged", "damaged archive"),
        (gzip.compress(b"id,class\n")[:12] + b"\xff" * 20, "damaged archive"),
        (b"\x00\x01\x02binary", "is not text"),
        (
            b"objid,TARGET_RA,TARGET_DEC,spectype\n1,2,3,A\n",
            "{id:objid,class:spectype,ra:TARGET_RA",
        ),
        (b"GalaxyID,Class1.1,Class1.2\n1,0.1,0.9\n", "{id:GalaxyID"),
        (b"id,ra,dec\n1,2,3\n", "neither be trained on nor evaluated"),
        (b"id,class,RA\n1,A,3\n", "has no column 'dec'"),
    ],
)
def test_a_table_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    args = [f"data.csv_path={path}", f"data.img_dir_path={tmp_path}", "data.features=[]"]
    assert main(["audit", *args]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert any(part in text for part in message.split("|")), text


def test_the_key_of_the_message_works(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tiny.csv_path.read_text().replace("id,ra,dec,class", "source id,_RAJ2000,_DEJ2000,otype")
    tiny.csv_path.write_text(text)
    args = ["audit", *tiny.words(), "data.features=[]", f"out={tmp_path}"]
    assert main(args) == 2
    key = capsys.readouterr().err.split("'data.columns=")[1].split("'")[0]
    assert main([*args, f"data.columns={key}"]) == 0
    assert "60 rows, 60 usable" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (["00012", "1e5", "587722952767439450"], ["00012", "1e5", "587722952767439450"]),
        (np.array([1, 2, 3], ">i8"), ["1", "2", "3"]),
        (np.array([b"a ", b"b", b"c"]), ["a", "b", "c"]),
        (MaskedColumn([1, 2, 3], mask=[False, True, False]), ["1", "", "3"]),
        (np.array([True, False, True]), ["True", "False", "True"]),
        (np.array([2**63 + 5, 1, 2], np.uint64), [str(2**63 + 5), "1", "2"]),
        (np.array([0.1, np.nan, 2], ">f4"), ["0.1", "", "2.0"]),
    ],
)
@pytest.mark.parametrize("kind", ["fits", "votable", "ascii.ecsv", "hdf5"])
def test_cells_are_exact(tmp_path: Path, kind: str, names: Any, texts: list[str]) -> None:
    if kind == "hdf5":
        pytest.importorskip("h5py", reason="h5py is an extra")
    if kind == "votable" and getattr(names, "dtype", None) == np.uint64:
        pytest.skip("a VOTable has no unsigned integers of 64 bits")
    keys = {"path": "sky", "serialize_meta": True} if kind == "hdf5" else {}
    table = Table({"id": names, "class": ["A", "B", "C"]})
    table.write(tmp_path / "table", format=kind, **keys)
    assert read_table(tmp_path / "table")["id"].tolist() == texts


def test_parquet_of_categories_and_missing_integers(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    columns = {"id": pd.array([1, None, 3], "Int64"), "class": pd.Categorical(["A", None, "A"])}
    pd.DataFrame(columns).to_parquet(tmp_path / "table")
    table = read_table(tmp_path / "table")
    assert table["id"].tolist() == ["1", "", "3"]
    assert table["class"].tolist() == ["A", "", "A"]


def test_hdf5_that_pandas_pickled_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is an extra")
    with h5py.File(tmp_path / "table", "w") as file:
        file.create_group("sky").attrs["pandas_type"] = "frame"
    with pytest.raises(InputError, match="pickled by pandas; save it as Parquet"):
        read_table(tmp_path / "table")


def test_a_votable_of_several_tables(tmp_path: Path) -> None:
    both = from_table(Table({"x": [1]}))
    both.resources.append(from_table(Table({"id": ["a"], "class": ["A"]})).resources[0])
    writeto(both, str(tmp_path / "table"))
    with pytest.raises(InputError, match=r"data\.table=0"):
        read_table(tmp_path / "table")
    assert read_table(tmp_path / "table", TableOptions(table=1))["id"].tolist() == ["a"]


def test_a_choice_of_fits_tables(tmp_path: Path) -> None:
    first, second = (Table({"id": [n], "class": ["A"]}) for n in (1, 2))
    path = tmp_path / "two.fits"
    units = [fits.BinTableHDU(table, name=name) for name, table in (("SKY", first), ("X", second))]
    fits.HDUList([fits.PrimaryHDU(), *units]).writeto(path)
    with pytest.raises(InputError, match=r"2 tables \(1 SKY, 2 X\).*data.table=1"):
        read_table(path)
    assert read_table(path, TableOptions(table=2))["id"].tolist() == ["2"]


# Real tables of surveys, where they lie beside the checkout


REAL = {
    "gammacat.fits.gz": ({"id": "source_id", "class": "classes"}, ["spec_pl_index", "sed_dnde[3]"]),
    "redmapper_sva1-expanded_public_v6.3_catalog.fits.gz": (
        {"id": "COADD_OBJECTS_ID", "class": "NAME", "ra": "RA", "dec": "DEC"},
        ["Z_LAMBDA", "PZ[3]"],
    ),
    "sdss12.vot": ({"id": "SDSS12", "ra": "RA_ICRS", "dec": "DE_ICRS"}, ["gmag", "zsp"]),
    "vot_with_cdata.vot": ({"id": "main_id", "class": "main_type"}, ["redshift"]),
    "vot_with_definitions.vot": (
        {"id": "MAIN_ID", "class": "OTYPE", "ra": "RA", "dec": "DEC"},
        ["B"],
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_tables(name: str) -> None:
    path = REAL_TABLES / name
    if not path.is_file():
        pytest.skip("no real tables beside this checkout")
    columns, features = REAL[name]
    required = ["id", "class", *features]
    table = read_table(path, TableOptions(columns), required, ["ra", "dec"])
    original = Table.read(path)
    assert len(table) == len(original)
    assert (table[[*required, "ra", "dec"]] != "").any().all()
    source = original[columns["id"]]
    expected = [str(value.decode() if isinstance(value, bytes) else value) for value in source]
    assert table["id"].tolist() == [text.strip() for text in expected]
    read_features(table, features, bad := {})
    assert not bad


# Missing values and labels


@pytest.mark.parametrize(
    ("word", "is_missing"),
    [
        *((word, True) for word in ("NaN", "null", "--", "N/A", "", "inf", "-999", "-99.0")),
        *((word, True) for word in ("99.0", "1e30", "-9999", "None")),
        *((word, False) for word in ("18.5", "0", "-1")),
    ],
)
def test_missing_features(tiny: Tiny, word: str, is_missing: bool) -> None:
    values = [f"{18 + row / 60:.3f}" for row in range(60)]
    for row in range(0, 60, 3):
        values[row] = word
    lines = [f"{line},{value}" for line, value in zip(tiny.lines(), ["mag", *values], strict=True)]
    tiny.write(lines)
    result = audit_catalogue(*tiny, ReadOptions(features=["mag"]), print_result=False)
    assert result.num_usable == 60
    assert sum(result.masked["mag"].values()) == 20 * is_missing


def test_a_number_with_an_underscore_is_no_number(tiny: Tiny) -> None:
    tiny.change(3, "z", "1_8.2")
    with pytest.raises(InputError, match=r"z is '1_8\.2', not a finite number"):
        read_catalogue(*tiny)


@pytest.mark.parametrize("word", ["nan", "None", "--", "null", "?", "N/A", ""])
def test_missing_labels_are_no_class(tiny: Tiny, word: str) -> None:
    for row in range(0, 60, 4):
        tiny.change(row, "class", word)
    result = audit(tiny)
    assert list(result.class_counts) == ["GALAXY", "QSO", "STAR"]
    assert result.num_usable == 45
    assert len(result.faults["labels and ids"]) == 15
    with pytest.raises(InputError, match="on_bad_row=skip"):
        read_catalogue(*tiny)


@pytest.mark.parametrize(
    "labels", [["Spiral", "spiral"], ["caf\u00e9", "cafe\u0301"], ["A B", "A  B"]]
)
def test_names_nearly_alike_are_reported(tiny: Tiny, labels: list[str]) -> None:
    for row in range(60):
        tiny.change(row, "class", labels[row % 2])
    assert "written nearly alike" in " ".join(audit(tiny).notes)


def test_labels_with_signs(tiny: Tiny) -> None:
    for row in range(60):
        tiny.change(row, "class", ["+-1", "$x_1$", "1"][row % 3])
    assert list(audit(tiny).class_counts) == ["$x_1$", "+-1", "1"]


def test_votes(tiny: Tiny) -> None:
    votes = [f"{row / 59:.6f}" for row in range(60)]
    header, *rows = tiny.lines()
    cells = zip(rows, votes, strict=True)
    tiny.write([header + ",p,q", *(f"{row},{v},{1 - float(v):.6f}" for row, v in cells)])
    with pytest.raises(InputError, match=r"class has 60 different numbers.*class_columns"):
        audit(tiny, columns={"class": "p"})
    result = audit(tiny, class_columns=["p", "q"], class_threshold=0.8)
    assert result.class_counts == {"p": 12, "q": 12}
    assert "36 rows of 60" in " ".join(result.notes)
    assert audit(tiny, class_columns=["p"], class_threshold=0.8).class_counts == {
        "not p": 12,
        "p": 12,
    }


def test_rare_classes(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row in (0, 3):
        tiny.change(row, "class", "RARE")
    args = ["search", *tiny.words(), f"run.dir={tmp_path / 'run'}", "data.features=[]"]
    assert main(args) == 2
    assert "class RARE has 2 objects" in (message := capsys.readouterr().err)
    assert "data.min_count" in message
    result = audit(tiny, min_count=3)
    assert list(result.class_counts) == ["GALAXY", "QSO", "STAR"]
    assert "class RARE is left out: 2 rows" in " ".join(result.notes)


# Positions and objects


def test_without_positions(tiny: Tiny) -> None:
    tiny.write(
        [
            ",".join([c for n, c in enumerate(line.split(",")) if n not in (1, 2)])
            for line in tiny.lines()
        ]
    )
    result = audit(tiny)
    assert (result.num_usable, result.num_objects) == (60, 60)
    assert "no columns ra and dec" in " ".join(result.notes)


POSITIONS = {
    "zeros": (lambda n: ("0", "0.0"), "is taken as no position", 60),
    "hours": (lambda n: (f"{n * 0.4 % 24:.4f}", f"{n - 30}"), "data.ra_unit=hour", 60),
    "sexagesimal": (lambda n: (f"{n % 24:02d}:{n:02d}:31.9", f"-{n:02d}:00:52"), "sexagesimal", 60),
    "one constant": (lambda n: ("150.1", "2.2"), "are taken as one object, though", 1),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_suspicious_positions_are_named(tiny: Tiny, name: str) -> None:
    position, note, num_objects = POSITIONS[name]
    for row in range(60):
        for column, value in zip(("ra", "dec"), position(row), strict=True):
            tiny.change(row, column, value)
    result = audit(tiny)
    assert note in " ".join(result.notes)
    assert (result.num_usable, result.num_objects) == (60, num_objects)


def test_groups_by_radius_and_column(tiny: Tiny) -> None:
    for row in range(60):
        tiny.change(row, "ra", f"{row / 3600:.6f}")
        tiny.change(row, "dec", "1")
        tiny.change(row, "subclass", f"night {row % 5}" if row else "")
    assert audit(tiny, group_radius=0.5).num_objects == 60
    assert audit(tiny, group_radius=2).num_objects == 1
    assert audit(tiny, group_radius=0, group_column="subclass").num_objects == 6
    with pytest.raises(InputError, match="has no column 'nigth'"):
        audit(tiny, group_column="nigth")


def test_the_ceiling_of_a_deep_field_is_no_fact(tiny: Tiny) -> None:
    rng = np.random.default_rng(0)
    for row in range(60):
        for column in ("ra", "dec"):
            tiny.change(row, column, f"{rng.uniform(1, 1.003):.7f}")
    text = str(audit(tiny))
    assert "within 2 arcsec (data.group_radius)" in text
    assert "choose a smaller radius" in text


SOURCES = {
    "semicolons": lambda text, path: path.write_text(text.replace(",", ";").replace(".", ",")),
    "cp1252": lambda text, path: path.write_bytes(
        text.replace("QSO", "Qu\u00e4sar").encode("cp1252")
    ),
    "fits": lambda text, path: as_astropy(text).write(path, format="fits", overwrite=True),
    "ecsv": lambda text, path: as_astropy(text).write(path, format="ascii.ecsv", overwrite=True),
}


def as_astropy(text: str) -> Table:
    return Table.read(text.splitlines(), format="ascii.csv", converters={"objid": [str]})


@pytest.mark.parametrize("kind", SOURCES)
def test_a_test_share_of_any_table(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    """The test rows are written in one form, and evaluated, whatever the first table was."""
    text = tiny.csv_path.read_text().replace("id,ra,dec,class", "objid,RA2,DEC2,kind")
    tiny.write(text.replace(",,", ",x,").splitlines())
    SOURCES[kind](tiny.csv_path.read_text(), tiny.csv_path)
    run = tmp_path / "run"
    keys = ["data.columns={id:objid,ra:RA2,dec:DEC2,class:kind}", "data.test_share=0.3"]
    keys += [f"data.encoding={kind}"] if kind == "cp1252" else []
    keys += ["data.separator=;"] if kind == "semicolons" else []
    assert main(["search", *tiny.words(), *keys, *SHORT, f"run.dir={run}"]) == 0
    first = json.loads((run / "evaluation.json").read_text())
    assert (first["num_rows"], first["num_overlapping"]) == (18, 0)
    assert main(["evaluate", f"run.dir={run}"]) == 0
    again = json.loads((run / "evaluation.json").read_text())
    assert again["per_class"] == first["per_class"]


def test_every_image_file_is_read_for_its_content_once(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    digest = ImagePaths.digest
    monkeypatch.setattr(
        ImagePaths, "digest", lambda self, row: read.append(row) or digest(self, row)
    )
    Space_Galaxi(*tiny, max_resident_bytes=0, cache_dir=tmp_path)
    assert sorted(read) == list(range(60))


def test_test_rows_that_overlap_by_radius_and_column(tiny: Tiny) -> None:
    for row in range(60):
        tiny.change(row, "ra", f"{row / 3600:.6f}")
        tiny.change(row, "dec", "1")
        tiny.change(row, "subclass", f"night {row // 20}")
    near = read_catalogue(*tiny, ReadOptions(table=TableOptions(group_radius=1.5)))
    halves = near.select(np.arange(0, 60, 2)), near.select(np.arange(1, 60, 2))
    assert overlaps_training([halves[0]], halves[1]).all()
    options = replace(near.options, table=TableOptions(group_radius=0.5))
    assert not overlaps_training([replace(halves[0], options=options)], halves[1]).any()
    nights = TableOptions(group_radius=0, group_column="subclass")
    catalogue = read_catalogue(*tiny, ReadOptions(table=nights))
    first, other = catalogue.select(np.arange(25)), catalogue.select(np.arange(30, 60))
    assert overlaps_training([first], other).tolist() == 10 * [True] + 20 * [False]


def write_votes(tiny: Tiny) -> list[str]:
    """Fractions of three classes beside the class."""
    header, *rows = tiny.lines()
    fractions = ["0.7,0.2,0.1", "0.3,0.6,0.1", "0.2,0.2,0.6"]
    lines = [f"{row},{fractions[n % 3]}" for n, row in enumerate(rows)]
    tiny.write([f"{header},p,q,r", *lines])
    return ["data.class_columns=[p,q,r]", "data.soft_labels=true"]


def test_a_search_on_soft_labels_and_balanced_classes(tiny: Tiny, tmp_path: Path) -> None:
    """The fractions determine the loss, their largest the metrics."""
    keys = [*write_votes(tiny), "data.features=[]", "data.class_sampling=balanced", *SHORT]
    run = tmp_path / "run"
    assert main(["search", *tiny.words(), *keys, "data.test_share=0.3", f"run.dir={run}"]) == 0
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert list(evaluation["per_class"]) == ["p", "q", "r"]
    assert evaluation["num_rows"] == 18
    hard = tmp_path / "hard"
    keys.remove("data.soft_labels=true")
    assert main(["search", *tiny.words(), *keys, "data.test_share=0.3", f"run.dir={hard}"]) == 0
    losses = [json.loads((f / "progressive_summary.json").read_text()) for f in (run, hard)]
    assert losses[0]["history_sha256"] != losses[1]["history_sha256"]


def test_soft_labels_of_bad_rows(tiny: Tiny) -> None:
    write_votes(tiny)
    for row, (column, value) in enumerate([("p", "-1"), ("q", ""), ("r", "nan"), ("p", "x")]):
        tiny.change(row, column, value)
    for column in "pqr":
        tiny.change(4, column, "0")
    tiny.change(5, "p", "1.2")
    votes = TableOptions(class_columns=list("pqr"), soft_labels=True)
    result = audit(tiny, class_columns=list("pqr"), soft_labels=True)
    assert result.num_usable == 55
    messages = " ".join(result.faults["labels and ids"])
    assert "the fraction p is missing, no number, or negative" in messages
    assert "all its fractions are 0" in messages
    catalogue = read_catalogue(*tiny, ReadOptions(table=votes, on_bad_row="skip"))
    assert catalogue.targets is not None
    assert np.allclose(catalogue.targets.sum(axis=1), 1)
    assert (catalogue.targets.argmax(axis=1) == catalogue.labels).all()
    assert "the fractions of 1 rows of 55 are divided by their sum" in " ".join(catalogue.notes)
    few = TableOptions(class_columns=list("pqr"), soft_labels=True, min_count=19)
    few_classes = read_catalogue(*tiny, ReadOptions(table=few, on_bad_row="skip"))
    assert few_classes.classes == ("p", "q") or len(few_classes.classes) < 3
    assert few_classes.targets is not None
    assert np.allclose(few_classes.targets.sum(axis=1), 1)


def test_an_evaluation_says_how_new_rows_differ(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = tmp_path / "run", tiny.csv_path.with_name("other.csv")
    quick = ["search.max_layers=1", "search.k_candidates=[4]", "search.epochs_per_eval=1"]
    keys = [f"run.dir={run}", "search.final.epochs=1", "data.features=[z]"]
    assert main(["search", *tiny.words(), *quick, *keys]) == 0
    for row in range(60):
        tiny.change(row, "z", f"{7 + row / 60:.3f}")
    tiny.csv_path.rename(other)
    capsys.readouterr()
    names = [f"data.csv_path={other}", f"data.img_dir_path={tiny.img_dir_path}"]
    assert main(["evaluate", f"run.dir={run}", *names]) == 0
    text = capsys.readouterr().out
    assert "unlike the training rows: z: 100% of the values are outside" in text
    assert text.index("unlike the training rows") < text.index("accuracy")
