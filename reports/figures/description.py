"""What a figure shows, as data: panels of curves, points and maps. ``reports.draw`` draws them.

A figure is built here without any drawing library. Names are those of the data, cleaned but not
shortened or escaped: each drawer knows what its own font and format can show.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import numpy as np
import numpy.typing as npt

from dar_probe.reports.figures.arrangement import Paper, Screen
from dar_probe.reports.style import palette

Array = npt.NDArray[np.floating]
Marks = npt.NDArray[np.bool_]

BAND = "95 % interval over samples"


class Field(Enum):
    """A part of what the pointer shows that differs from cell to cell."""

    ROW = "row"
    COLUMN = "column"
    VALUE = "value"
    LEVEL = "level"


Hover = tuple[tuple[str | Field, ...], ...]  # lines of parts


@dataclass(frozen=True, kw_only=True)
class Link:
    """What an axis runs over, so that the page marks one block or level in every panel.

    Attributes:
        dim: "block" or "noise_level".
        values: what each position is; None for an axis of block numbers.
    """

    dim: str
    values: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a panel.

    Attributes:
        title: what it shows, with units.
        fitted: whether its range follows from everything drawn.
        may_log: whether it is logarithmic where the drawn numbers span more than 5x.
        signed: whether its numbers are shown with their sign under the pointer.
        octaves: whether it is logarithmic with base 2; it then has ``ticks``.
        limits: its ends, larger one first for an axis that runs down or left.
        ticks: where labels stand; None leaves that to the drawer.
        labels: the texts at ``ticks``; left out, the numbers or the names there.
        names: of all cells or rows, which are at 0, 1, ...; a screen shows them.
        room: inches that a printed label may take.
        wrapped: whether a long printed label is broken into lines.
        link: what the page links it by.
    """

    title: str = ""
    fitted: bool = False
    may_log: bool = False
    signed: bool = False
    octaves: bool = False
    limits: tuple[float, float] | None = None
    ticks: Sequence[float] | None = None
    labels: Sequence[str] = ()
    names: Sequence[str] = ()
    room: float = 9.0
    wrapped: bool = False
    link: Link | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line with a band where an interval is known.

    Attributes:
        label: in the legend, once for all curves of this label; empty for none.
        colour: of line and band, "#rrggbb".
        look: a number that chooses dashes and marker, see ``palette.look``.
        x, value, low, high: (N,) arrays; NaN where nothing was measurable.
        names: of the N points, for the pointer.
        middle: (2, N), between which values most samples lie; a switch of the page shows it.
        marked: whether its points have markers.
    """

    label: str
    colour: str
    look: int
    x: Array
    value: Array
    low: Array
    high: Array
    names: Sequence[str] = ()
    middle: Array | None = None
    marked: bool = True


@dataclass(frozen=True, kw_only=True)
class Points:
    """Markers without a line.

    Attributes:
        label: in the legend; empty for none.
        colour: "#rrggbb".
        marker: one of matplotlib's "o", "^", "s", "D", "v", "x".
        x, y: (N,) arrays.
        low, high: (N,) ends of horizontal whiskers, or None.
        names: of the N points, for the pointer.
        details: what the pointer says of each after its name.
    """

    label: str
    colour: str
    marker: str
    x: Array
    y: Array
    low: Array | None = None
    high: Array | None = None
    names: Sequence[str] = ()
    details: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Many values at one place of the x axis, shown by how many lie where.

    Attributes:
        name: what the pointer calls it.
        colour: "#rrggbb".
        x: its place.
        values: (N,) array; NaN where nothing was measurable.
    """

    name: str
    colour: str
    x: float
    values: Array


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A straight line through a panel: level at ``y``, upright at ``x``, or the diagonal.

    A label puts it into the printed legend, and a screen shows it under the pointer. Without a
    colour it has that of the axes' texts.
    """

    y: float | None = None
    x: float | None = None
    colour: str = ""
    dashes: str = "solid"
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A map.

    Attributes:
        values: (rows, columns), the first row lowest; NaN where there is nothing.
        scale: which of the figure's colour scales it has.
        hover: the lines that the pointer shows.
        marked: (rows, columns), cells with a dot: their gate has a consistent sign.
        dotted: whether the page will mark other cells in its place.
        low, high: (rows, columns) intervals, which the pointer shows.
    """

    values: Array
    scale: int = 0
    hover: Hover
    marked: Marks | None = None
    dotted: bool = False
    low: Array | None = None
    high: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One colour scale and its bar.

    Attributes:
        label: what the colours stand for.
        colours: one of ``palette.COLOUR_MAPS``; where signs differ it is the diverging one.
        values: every number that it must cover.
        share: whether it starts at 0 and is never logarithmic.
        root: whether colours follow the square root, as many small shares need.
        below: whether the printed bar lies below its panels.
    """

    label: str
    colours: str
    values: Array
    share: bool = False
    root: bool = False
    below: bool = False


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel; the title's letter is the drawer's.

    ``title`` is printed whole, up to its last space; ``subject``, a name of anybody's that follows
    it, may be shortened. Where panels stand in a grid, a title of an axis is printed once.
    """

    title: str = ""
    subject: str = ""
    x: Axis
    y: Axis
    curves: Sequence[Curve] = ()
    points: Sequence[Points] = ()
    distributions: Sequence[Distribution] = ()
    rules: Sequence[Rule] = ()
    shaded: tuple[float, float] | None = None
    cells: Cells | None = None


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Every noise level of maps of which the panels show the first.

    Attributes:
        levels: their labels.
        values: the levels.
        maps: (quantity, (levels, rows, columns) values, marked cells of the same shape).
    """

    levels: Sequence[str]
    values: Sequence[float]
    maps: Sequence[tuple[str, Array, Marks]]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A whole figure.

    Attributes:
        panels: in reading order, or column by column with ``paper.downwards``.
        paper, screen: how they stand.
        says: one sentence on what it shows, which begins its caption.
        heading: what the figure is of, printed above it; empty for none.
        scales: the colour scales of its maps.
        notes: sentences printed below.
        band: what the bands of its curves are.
        lettered: whether titles begin with (a), (b), ...
        last: the number of the last block, where axes are linked.
        frames: the other noise levels of its maps.
        reader: the position of the reader that it shows, where the page lets one choose.
    """

    panels: Sequence[Panel]
    paper: Paper
    screen: Screen
    says: str = ""
    heading: str = ""
    scales: Sequence[Scale] = ()
    notes: Sequence[str] = ()
    band: str = BAND
    lettered: bool = True
    last: int | None = None
    frames: Frames | None = None
    reader: int | None = None

    @property
    def has_bands(self) -> bool:
        """Whether any curve has an interval."""
        curves = [curve for panel in self.panels for curve in panel.curves]
        return any(bool(np.isfinite(curve.low).any()) for curve in curves)


def drawn(panel: Panel, which: Literal["x", "y"] = "y") -> Array:
    """Return every number that an axis of a panel must show, rules only beside others."""
    found: list[Array] = []
    for curve in panel.curves:
        found += [curve.value, curve.low, curve.high] if which == "y" else [curve.x]
    for points in panel.points:
        found.append(points.y if which == "y" else points.x)
        if which == "x" and points.low is not None and points.high is not None:
            found += [points.low, points.high]
    for one in panel.distributions:
        found.append(one.values if which == "y" else np.array([one.x]))
    values = np.concatenate([np.zeros(0), *found])
    if np.isfinite(values).any():
        rules = [rule.y if which == "y" else rule.x for rule in panel.rules]
        values = np.append(values, [float(at) for at in rules if at is not None])
    return values


def map_notes(values: Array) -> list[str]:
    """Return what marks in the cells of a map mean, where there are any."""
    notes = [palette.GAP_NOTE] if np.isnan(values).any() else []
    return [*notes, palette.SIGN_NOTE] if palette.both_signs(values) else notes
