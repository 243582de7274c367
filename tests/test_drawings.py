"""Diagrams of the package show its modules and their imports."""

from itertools import pairwise
from pathlib import Path

import drawings
import matplotlib.pyplot as plt
import pytest
import structure
from matplotlib.patches import FancyArrowPatch
from test_layers import TREE, write_tree


def test_implied_imports_are_omitted() -> None:
    imports = {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": {"a", "elsewhere"}}
    assert drawings.direct_imports(list("abcd"), imports) == {
        "a": [],
        "b": ["a"],
        "c": ["b"],
        "d": ["a"],
    }


def test_a_module_is_below_its_imports() -> None:
    imports = structure.internal_imports()
    modules = list(structure.read_pages())
    direct = drawings.direct_imports(modules, imports)
    rows = drawings.rows_of(modules, direct)
    row_of = {module: number for number, row in enumerate(rows) for module in row}
    assert sorted(row_of) == sorted(modules)
    assert all(row_of[other] < row_of[name] for name in modules for other in imports[name])
    assert all(len(row) <= drawings.PER_ROW for row in rows)


def texts() -> set[str]:
    """All texts in the current figure."""
    return {text.get_text() for ax in plt.gcf().axes for text in ax.texts}


def arrows() -> int:
    """Number of arrows in the current figure."""
    patches = [patch for ax in plt.gcf().axes for patch in ax.patches]
    return sum(isinstance(patch, FancyArrowPatch) for patch in patches)


def test_a_room_shows_its_modules_and_what_goes_in_and_out(tmp_path: Path) -> None:
    write_tree(tmp_path, TREE)
    drawings.draw_room("sky", {"photos": ("paths", "pixels")}, tmp_path)
    assert {"lists", "Summary.", "photos", "paths \N{RIGHTWARDS ARROW} pixels"} <= texts()
    assert "imports from core; imported by nets" in texts()
    assert arrows() == 1
    plt.close("all")


def test_an_unknown_room_or_module_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, TREE)
    with pytest.raises(ValueError, match="no notebook exports a module of 'moon'"):
        drawings.draw_room("moon", root=tmp_path)
    with pytest.raises(ValueError, match=r"sky\.maps is no module; there are sky\.lists, sky\.ph"):
        drawings.draw_room("sky", {"maps": ("", "")}, tmp_path)


def test_a_long_arrow_does_not_cross_boxes(tmp_path: Path) -> None:
    chain = {f"01_sky/0{n}_part{n}": f"from .part{n - 1} import x\n" for n in range(2, 6)}
    aside = {"01_sky/06_aside": "import json\n", "01_sky/07_end": "from .part5 import x\n"}
    tree = {"01_sky/01_part1": "", **chain, **aside}
    tree["01_sky/07_end"] += "from .aside import y\n"
    write_tree(tmp_path, tree)
    drawings.draw_room("sky", root=tmp_path)
    boxes = [p for p in plt.gca().patches if not isinstance(p, FancyArrowPatch)]
    lines = [p.get_path() for p in plt.gca().patches if isinstance(p, FancyArrowPatch)]
    assert len(lines) == 6
    for box in boxes:
        shape = box.get_extents().transformed(plt.gca().transData.inverted()).padded(-0.02)
        for line in lines:
            points = line.interpolated(1).to_polygons(closed_only=False)[0]
            crossed = [shape.contains(*p) for a, b in pairwise(points) for p in (a, (a + b) / 2, b)]
            assert not any(crossed)
    plt.close("all")


def test_the_package_shows_its_rooms(tmp_path: Path) -> None:
    write_tree(tmp_path, TREE)
    drawings.draw_package(tmp_path)
    assert {"core", "sky", "nets"} <= texts()
    assert arrows() == 2  # from sky to core, and from nets to sky
    plt.close("all")
