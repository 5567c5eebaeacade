"""A still of a line figure, which the page shows until plotly has loaded, or instead of it.

It is made from the figure itself, at the places of its wide layout, so that nothing jumps when
plotly takes over. The template writes it as SVG.
"""

import html
import math
from dataclasses import dataclass

import numpy as np

from dar_probe.reports.draw.plotly.layout import Spec
from dar_probe.reports.draw.plotly.texts import numbered, unpacked
from dar_probe.reports.figures.description import Array
from dar_probe.reports.style import palette

WIDTH = 1100  # of the page's text on a wide screen, pixels
STROKES = {"solid": "", "dash": "7 4", "dashdot": "7 3 2 3", "dot": "2 3"}


@dataclass(frozen=True, kw_only=True)
class Path:
    """A line with its points, or the outline of a band; coordinates in pixels."""

    points: list[tuple[float, float]]
    colour: str
    dash: str = ""
    filled: bool = False


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel: its corner and size, its texts, and (position, text) of its ticks."""

    left: float
    top: float
    width: float
    height: float
    title: str
    across: str
    up: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    paths: list[Path]


@dataclass(frozen=True, kw_only=True)
class Still:
    """The whole still; ``legend`` has (colour, dash, name)."""

    width: int
    height: int
    panels: list[Panel]
    legend: list[tuple[str, str, str]]


class _Scale:
    """From an axis' values to pixels."""

    def __init__(self, axis: Spec, values: Array, start: float, length: float) -> None:
        self.log = axis.get("type") == "log"
        self.start, self.length = start, length
        finite = values[np.isfinite(values)]
        if "range" in axis:
            self.low, self.high = (float(end) for end in axis["range"])
        elif finite.size:
            # Of one value the axis shows a part that its size does not swallow.
            pad = 0.06 * float(np.ptp(finite)) or max(0.5, 0.06 * float(np.abs(finite).max()))
            self.low, self.high = float(finite.min()) - pad, float(finite.max()) + pad
        else:
            self.low, self.high = 0.0, 1.0
        if "tickvals" not in axis:
            marks = _round_ticks(self.low, self.high)
            self.ticks = [(self(mark), palette.tick(mark)) for mark in marks]
        else:
            places = axis["tickvals"]
            texts = axis.get("ticktext") or [palette.tick(float(mark)) for mark in places]
            pairs = zip(places, texts, strict=True)
            self.ticks = [(self(float(mark)), html.unescape(text)) for mark, text in pairs]

    def __call__(self, value: float) -> float:
        at = math.log10(value) if self.log else value
        return round(self.start + self.length * (at - self.low) / (self.high - self.low), 1)


def still(figure: Spec) -> Still:
    """Return the still of a figure whose traces are all lines, as it stands in a wide page.

    Args:
        figure: what ``plotly.draw`` gave.
    """
    layout = figure["layout"]
    margin, height = layout["margin"], int(layout["height"])
    inner = (WIDTH - margin["l"] - margin["r"], height - margin["t"] - margin["b"])
    panels = []
    for at, note in enumerate(layout["annotations"]):
        x_axis, y_axis = (layout[numbered(f"{letter}axis", at)] for letter in "xy")
        own = [
            trace
            for trace in figure["data"]
            if trace.get("visible") is not False and trace["yaxis"] == numbered("y", at)
        ]
        left, right = (margin["l"] + inner[0] * end for end in x_axis["domain"])
        bottom, top = (margin["t"] + inner[1] * (1 - end) for end in y_axis["domain"])
        values = [np.concatenate([np.zeros(0), *(unpacked(t[key]) for t in own)]) for key in "xy"]
        x = _Scale(x_axis, values[0], left, right - left)
        y = _Scale(y_axis, values[1], bottom, top - bottom)
        panels.append(
            Panel(
                left=round(left, 1),
                top=round(top, 1),
                width=round(right - left, 1),
                height=round(bottom - top, 1),
                title=html.unescape(note["text"]),
                across=html.unescape(x_axis["title"]["text"]),
                up=html.unescape(y_axis["title"]["text"]),
                x_ticks=x.ticks,
                y_ticks=y.ticks,
                paths=[path for trace in own for path in _paths(trace, x, y)],
            )
        )
    legend = [
        (trace["line"]["color"], STROKES[trace["line"]["dash"]], html.unescape(trace["name"]))
        for trace in figure["data"]
        if trace.get("showlegend")
    ]
    return Still(width=WIDTH, height=height, panels=panels, legend=legend)


def _paths(trace: Spec, x: _Scale, y: _Scale) -> list[Path]:
    """Return the pieces of a trace between what was not measurable."""
    across, up = unpacked(trace["x"]), unpacked(trace["y"])
    known = np.flatnonzero(np.isfinite(up) & ((up > 0) | (not y.log)))
    pieces = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
    filled = "fill" in trace
    colour = trace["fillcolor"] if filled else trace["line"]["color"]
    return [
        Path(
            points=[(x(float(across[at])), y(float(up[at]))) for at in piece],
            colour=colour,
            dash="" if filled else STROKES[trace["line"].get("dash", "solid")],
            filled=filled,
        )
        for piece in pieces
        if piece.size
    ]


def _round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most ``most`` + 1 round numbers within [low, high]."""
    rough = (high - low) / most
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(decade * factor for factor in (1, 2, 5, 10) if decade * factor >= rough)
    first = math.ceil(low / step)
    return [round(at * step, 12) for at in range(first, math.floor(high / step) + 1)]
