"""Diagrams of the package, drawn from its imports; for notebooks of nbs/.

In a notebook of a folder in nbs/, run in JupyterLab or by docs/execute.py:

    #| hide
    import sys

    sys.path.append("../../docs")
    from drawings import draw_package, draw_room

The diagram follows in a cell with `#| echo: false` and `#| fig-alt: ...`. The background is white,
so that it is readable on dark pages too.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import structure
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve

# Okabe and Ito's colours, which most people with colour blindness tell apart.
COLOURS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#B8860B", "#56B4E9")
INK, GREY = "#222222", "#777777"
WIDTH = 8.4  # Of a figure, in inches, as on other pages
PER_ROW = 3  # Boxes beside each other
HEAD = "-|>,head_length=4,head_width=2"  # Of an arrow
LINE = 0.15  # Height of a line of small text, in inches


def direct_imports(modules: Sequence[str], imports: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Imports among modules, without those that other imports imply (transitive reduction).

    `modules` are in reading order: each imports only from earlier ones.
    """
    ancestors: dict[str, set[str]] = {}
    direct = {}
    for module in modules:
        others = [other for other in modules if other in imports[module] and other in ancestors]
        implied = set().union(*(ancestors[other] for other in others)) if others else set()
        direct[module] = [other for other in others if other not in implied]
        ancestors[module] = {*others, *implied}
    return direct


def rows_of(modules: Sequence[str], direct: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Modules in rows, each below all that it imports, at most `PER_ROW` beside each other."""
    rows: list[list[str]] = []
    row_of: dict[str, int] = {}
    for module in modules:
        row = max((row_of[other] + 1 for other in direct[module]), default=0)
        while row < len(rows) and len(rows[row]) == PER_ROW:
            row += 1
        if row == len(rows):
            rows.append([])
        rows[row].append(module)
        row_of[module] = row
    return rows


class _Layout:
    """Positions of boxes. An arrow over several rows takes a narrow slot in each row between."""

    def __init__(self, rows: list[list[str]], direct: Mapping[str, Sequence[str]]) -> None:
        self.routes: dict[tuple[str, str], list[str]] = {}  # Importing, imported -> slots between
        self.rows = [list(row) for row in rows]
        row_of = {module: number for number, row in enumerate(rows) for module in row}
        for module, others in direct.items():
            for other in others:
                between = range(row_of[other] + 1, row_of[module])
                slots = [f"{other}>{module}@{row}" for row in between]
                self.routes[module, other] = slots
                for row, slot in zip(between, slots, strict=True):
                    self.rows[row].append(slot)
        self.slots = {slot for route in self.routes.values() for slot in route}
        self.width = (WIDTH - 0.2) / max(sum(self._weight(n) for n in row) for row in self.rows)
        self.width = min(self.width, 2.9)
        self.x: dict[str, float] = {}
        above, below = self._neighbours()
        self._place()
        for _ in range(8):  # sort each row by the mean position of its neighbours, from both ends
            for neighbours, rows_in_turn in ((above, self.rows), (below, self.rows[::-1])):
                for row in rows_in_turn:
                    row.sort(key=lambda node: self._mean(neighbours[node], node))
                    self._place()

    def _weight(self, node: str) -> float:
        return 0.14 if node in self.slots else 1.0

    def _neighbours(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        nodes = [node for row in self.rows for node in row]
        above: dict[str, list[str]] = {node: [] for node in nodes}
        below: dict[str, list[str]] = {node: [] for node in nodes}
        for (module, other), slots in self.routes.items():
            chain = [other, *slots, module]
            for upper, lower in pairwise(chain):
                above[lower].append(upper)
                below[upper].append(lower)
        return above, below

    def _mean(self, neighbours: list[str], node: str) -> float:
        positions = [self.x[other] for other in neighbours] or [self.x[node]]
        return sum(positions) / len(positions)

    def _place(self) -> None:
        for row in self.rows:
            x = WIDTH / 2 - self.width * sum(self._weight(node) for node in row) / 2
            for node in row:
                self.x[node] = x + self.width * self._weight(node) / 2
                x += self.width * self._weight(node)


def draw_room(
    room: str,  # Sub-package, e.g. `data`
    flow: Mapping[str, tuple[str, str]] | None = None,  # Module, e.g. `images` -> what goes in, out
    root: Path = structure.ROOT,  # Repository
) -> None:
    """Draw the modules of a room as boxes, with arrows to those that import them.

    A module is below all modules that it imports. Arrows that other arrows imply are omitted. A
    module that is not in `flow` shows the summary of its page.
    """
    all_pages = structure.read_pages(root)
    pages = {name: page for name, page in all_pages.items() if page.room == room}
    if not pages:
        raise ValueError(f"no notebook exports a module of {room!r}")
    texts = {name: page.summary for name, page in pages.items()}
    for name, (given, returned) in (flow or {}).items():
        if f"{room}.{name}" not in pages:
            raise ValueError(f"{room}.{name} is no module; there are {', '.join(pages)}")
        texts[f"{room}.{name}"] = f"{given} \N{RIGHTWARDS ARROW} {returned}"
    imports = structure.internal_imports(root)
    direct = direct_imports(list(pages), imports)
    _draw_boxes(
        _Layout(rows_of(list(pages), direct), direct),
        texts,
        _surroundings(room, all_pages, imports),
    )


def _surroundings(
    room: str, pages: Mapping[str, structure.Page], imports: Mapping[str, set[str]]
) -> str:
    """Which other rooms a room imports from, and which import it."""
    rooms = structure.rooms_of(pages)
    pairs = structure.room_imports(rooms, imports)
    used = [other for other in dict.fromkeys(rooms.values()) if (room, other) in pairs]
    users = [other for other in dict.fromkeys(rooms.values()) if (other, room) in pairs]
    parts = [f"imports from {', '.join(used)}"] if used else []
    parts += [f"imported by {', '.join(users)}"] if users else []
    return "; ".join(parts)


def _draw_boxes(layout: _Layout, texts: Mapping[str, str], below: str) -> None:
    """Draw boxes row by row, and arrows between them."""
    box_width = layout.width - 0.25
    wrapped = {
        name: textwrap.wrap(text.replace("`", ""), int(box_width * 16))
        for name, text in texts.items()
    }
    heights = {node: 0.36 + LINE * len(lines) for node, lines in wrapped.items()}
    row_heights = [max(heights.get(node, 0) for node in row) for row in layout.rows]
    gap = 0.34
    height = sum(row_heights) + gap * (len(row_heights) - 1) + 0.2 + (0.3 if below else 0)
    ax = _canvas(height)
    top: dict[str, float] = {}
    bottom: dict[str, float] = {}
    y = height - 0.1
    for row, row_height in zip(layout.rows, row_heights, strict=True):
        for node in row:
            top[node], bottom[node] = y, y - heights.get(node, row_height)
            if node in wrapped:
                box = (layout.x[node], y, box_width, heights[node])
                _draw_box(ax, box, node.rpartition(".")[2], wrapped[node])
        y -= row_height + gap
    for (module, other), slots in layout.routes.items():
        points = [(layout.x[other], bottom[other])]
        for slot in slots:
            points += [(layout.x[slot], top[slot]), (layout.x[slot], bottom[slot])]
        _draw_arrow(ax, [*points, (layout.x[module], top[module])])
    if below:
        ax.text(WIDTH / 2, 0.06, below, ha="center", va="bottom", fontsize=8, color=GREY)


def _canvas(height: float) -> Axes:
    """Axes in inches that fill a white figure."""
    figure = plt.figure(figsize=(WIDTH, height), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(0, height))
    ax.axis("off")
    return ax


def _draw_box(
    ax: Axes, box: tuple[float, float, float, float], name: str, lines: Iterable[str]
) -> None:
    """A box with its text; `box` is the middle of its top, its width and its height."""
    x, y, width, height = box
    style = "round,pad=0,rounding_size=0.06"
    corner = (x - width / 2, y - height)
    ax.add_patch(FancyBboxPatch(corner, width, height, style, fc="#eef5fa", ec=COLOURS[0]))
    centred = {"ha": "center", "va": "top", "color": INK}
    ax.text(x, y - 0.09, name, fontsize=9, weight="bold", **centred)
    ax.text(x, y - 0.29, "\n".join(lines), fontsize=7.5, linespacing=1.25, **centred)


def _draw_arrow(ax: Axes, points: Sequence[tuple[float, float]]) -> None:
    """A smooth arrow downwards through the points."""
    vertices, codes = [points[0]], [Curve.MOVETO]
    for (x, y), (to_x, to_y) in pairwise(points):
        middle = (y + to_y) / 2
        vertices += [(x, middle), (to_x, middle), (to_x, to_y)]
        codes += [Curve.CURVE4] * 3
    path = Curve(vertices, codes)
    ax.add_patch(FancyArrowPatch(path=path, arrowstyle=HEAD, color=GREY, lw=1.1, shrinkB=0))


def draw_package(
    root: Path = structure.ROOT,  # Repository
) -> None:
    """Draw the rooms of the package from top to bottom, with an arc for each pair with imports.

    An arc leads from a room to one that it imports from; its width grows with the imports.
    """
    room_of = structure.rooms_of(structure.read_pages(root))
    rooms: dict[str, list[str]] = {}
    for module, room in room_of.items():
        rooms.setdefault(room, []).append(module)
    pairs = structure.room_imports(room_of, structure.internal_imports(root))
    left, box_width = 0.1, 5.2
    lines = {
        room: textwrap.wrap(
            ", ".join(module.rpartition(".")[2] for module in modules if module != room), 80
        )
        for room, modules in rooms.items()
    }
    heights = {room: 0.34 + LINE * len(lines[room]) for room in rooms}
    height = sum(heights.values()) + 0.12 * len(rooms) + 0.1
    ax = _canvas(height)
    colours = {room: COLOURS[number % len(COLOURS)] for number, room in enumerate(rooms)}
    top, y = {}, height - 0.1
    for room in rooms:
        box = (left, y, box_width, heights[room])
        _draw_room_box(ax, box, room, lines[room], colours[room])
        top[room] = y
        y -= heights[room] + 0.12
    order = list(rooms)
    for (room, other), count in pairs.items():
        users = [item for item in order if (item, other) in pairs]
        used = [item for item in reversed(order) if (room, item) in pairs]
        start_y = top[room] - heights[room] * 0.5 * (used.index(other) + 1) / (len(used) + 1)
        share = 0.5 + 0.5 * (len(users) - users.index(room)) / (len(users) + 1)
        end_y = top[other] - heights[other] * share
        reach = 0.3 + 3.2 * abs(start_y - end_y) / height
        side = left + box_width
        points = [(side, start_y), (side + reach, start_y), (side + reach, end_y), (side, end_y)]
        path = Curve(points, [Curve.MOVETO, *[Curve.CURVE4] * 3])
        look = {"color": colours[room], "lw": 0.6 + 0.45 * count**0.5, "alpha": 0.8}
        ax.add_patch(FancyArrowPatch(path=path, arrowstyle=HEAD, shrinkB=0, **look))


def _draw_room_box(
    ax: Axes, box: tuple[float, float, float, float], room: str, lines: Iterable[str], colour: str
) -> None:
    """A room with its modules; `box` is its upper left corner, its width and its height."""
    x, y, width, height = box
    style = "round,pad=0,rounding_size=0.06"
    patch = FancyBboxPatch((x, y - height), width, height, style, fc="white", ec=colour, lw=1.2)
    ax.add_patch(patch)
    look = {"ha": "left", "va": "top", "color": INK}
    ax.text(x + 0.12, y - 0.1, room, fontsize=10, weight="bold", **look)
    ax.text(x + 0.12, y - 0.3, "\n".join(lines), fontsize=7.5, linespacing=1.25, **look)
