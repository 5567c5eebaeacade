"""Curves, points, straight lines and maps as plotly's traces and shapes."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from dar_probe.files.text import decimal
from dar_probe.reports.draw.plotly.layout import Spec, is_log, names_of
from dar_probe.reports.draw.plotly.texts import INK, axes, entry, escaped, numbered, packed, text
from dar_probe.reports.figures.description import (
    Array,
    Cells,
    Curve,
    Distribution,
    Field,
    Marks,
    Panel,
    Points,
    Rule,
    Scale,
)
from dar_probe.reports.style import palette

DASHES = {"solid": "solid", "dashed": "dash", "dashdot": "dashdot", "dotted": "dot"}
SYMBOLS = {
    "o": "circle",
    "^": "triangle-up",
    "s": "square",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "x": "x-thin-open",
}
DOT = "consistent sign"  # what the pointer says of a cell with a dot
DOT_SIZE, DOT_EDGE = 4, 0.75  # pixels, in cells of any shape


def band(at: int, curve: Curve, ends: tuple[Array, Array], **look: Any) -> Iterator[Spec]:
    """Yield what fills between two ends, with a gap where no interval is known."""
    low, high = ends
    known = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
    for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
        if run.size:
            yield {
                "type": "scatter",
                "x": packed(np.concatenate([curve.x[run], curve.x[run][::-1]])),
                "y": packed(np.concatenate([high[run], low[run][::-1]]).astype(np.float64)),
                "fill": "toself",
                "fillcolor": curve.colour,
                "opacity": 0.25,
                "line": {"width": 0},
                "mode": "lines",
                "hoverinfo": "skip",
                "showlegend": False,
                "legendgroup": _group(curve),
                **axes(at),
                **look,
            }


def curve(at: int, panel: Panel, wanted: Curve, *, first: bool) -> Iterator[Spec]:
    """Yield the traces of a line: its band, and itself.

    Args:
        at: the panel's number.
        panel: the panel.
        wanted: the line.
        first: whether it is the first of its label.
    """
    alone = len(wanted.x) == 1
    if not alone:
        yield from band(at, wanted, (wanted.low, wanted.high))
    dashes, _ = palette.look(wanted.look)
    mode = "lines+markers" if wanted.marked else "lines"
    trace: Spec = {
        "type": "scatter",
        "x": packed(wanted.x),
        "y": packed(wanted.value.astype(np.float64)),
        "customdata": intervals(wanted.low, wanted.high),
        "hovertemplate": _hover(panel, wanted),
        "mode": "markers" if alone else mode,
        "line": {"color": wanted.colour, "dash": DASHES[dashes]},
        "marker": {"size": 8 if alone else 5, "color": wanted.colour},
        "showlegend": first and bool(wanted.label),
        "legendgroup": _group(wanted),
        **axes(at),
    }
    if wanted.label:
        trace["name"] = entry(wanted.label)
    if wanted.names:
        trace["text"] = [text(name) for name in wanted.names]
    if alone and np.isfinite(wanted.low).all() and np.isfinite(wanted.high).all():
        up, down = wanted.high - wanted.value, wanted.value - wanted.low
        trace["error_y"] = {
            "array": packed(up.astype(np.float64)),
            "arrayminus": packed(down.astype(np.float64)),
            "thickness": 1.5,
            "width": 3,
        }
    yield trace


def points(at: int, panel: Panel, wanted: Points, *, first: bool) -> Spec:
    """Return the trace of markers without a line."""
    rows = names_of(panel.y)
    many = wanted.low is None
    colour, symbol = wanted.colour, SYMBOLS[wanted.marker]
    trace: Spec = {
        "type": "scatter",
        "x": packed(wanted.x.astype(np.float64)),
        "y": [rows[int(row)] for row in wanted.y] if rows else packed(wanted.y),
        "text": [text(name) for name in wanted.names],
        "customdata": [escaped(words) for words in wanted.details],
        "hovertemplate": "%{text}<br>%{customdata}<extra></extra>",
        "mode": "markers",
        "marker": {
            "color": colour, "symbol": symbol, "size": 6 if many else 7,
            "opacity": 0.8 if many else 1,
        },
        "showlegend": first and bool(wanted.label) and bool(len(wanted.x)),
        **axes(at),
    }  # fmt: skip
    if wanted.label:
        trace |= {"name": entry(wanted.label, 90), "legendgroup": text(wanted.label, 90)}
    if not wanted.details:
        trace |= {"hoverinfo": "skip"}
        del trace["hovertemplate"]
    if wanted.low is not None and wanted.high is not None:
        up, down = (np.nan_to_num(wanted.high - wanted.x), np.nan_to_num(wanted.x - wanted.low))
        trace["error_x"] = {
            "array": packed(up.astype(np.float64)),
            "arrayminus": packed(down.astype(np.float64)),
            "width": 0,
            "thickness": 1.6,
        }
    return trace


def distribution(at: int, panel: Panel, wanted: Distribution) -> Spec:
    """Return the outline of a distribution with its quartiles and its mean."""
    names = names_of(panel.x)
    return {
        "type": "violin",
        "x0": names[int(wanted.x)] if names else wanted.x,
        "y": packed(wanted.values.astype(np.float64)),
        "name": text(wanted.name),
        "line": {"color": wanted.colour, "width": 1},
        "box": {"visible": True},
        "points": False,
        "spanmode": "hard",
        "scalemode": "width",
        "showlegend": False,
        **axes(at),
    }


def rule(at: int, panel: Panel, wanted: Rule) -> tuple[str, Spec]:
    """Return ("data", trace) of a straight line with a label, else ("shapes", shape)."""
    colour = wanted.colour or INK
    if wanted.label and wanted.y is not None:
        ends = [float(np.min(one.x)) for one in panel.curves if len(one.x)]
        stops = [float(np.max(one.x)) for one in panel.curves if len(one.x)]
        return "data", {
            "type": "scatter",
            "x": [min(ends, default=0.0), max(stops, default=1.0)],
            "y": [wanted.y, wanted.y],
            "name": text(wanted.label),
            "hovertemplate": f"{text(wanted.label)} %{{y:.4~g}}<extra></extra>",
            "mode": "lines",
            "line": {"color": colour, "dash": DASHES[wanted.dashes], "width": 1.3},
            "showlegend": False,
            **axes(at),
        }
    x, y = numbered("x", at), numbered("y", at)
    shape: Spec = {"type": "line", "x0": 0, "x1": 1, "y0": 0, "y1": 1, "xref": x, "yref": y}
    if wanted.y is not None:
        shape |= {"xref": f"{x} domain", "y0": wanted.y, "y1": wanted.y}
    elif wanted.x is not None:
        shape |= {"yref": f"{y} domain", "x0": wanted.x, "x1": wanted.x}
    elif panel.x.limits:
        low, high = panel.x.limits
        shape |= {"x0": low, "x1": high, "y0": low, "y1": high}
    shape["line"] = {"color": colour, "width": 1, "dash": DASHES[wanted.dashes]}
    return "shapes", {**shape, "layer": "below"}


def cells(at: int, panel: Panel, wanted: Cells, scale: Scale, *, level: str) -> Spec:
    """Return the trace of a map.

    Args:
        at: the panel's number.
        panel: the panel.
        wanted: the map.
        scale: its colours.
        level: the noise level that it is of, where others can be shown in its place.
    """
    log = is_log(scale)
    values = wanted.values
    if log:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log10(values)
    trace: Spec = {
        "type": "heatmap",
        "z": packed(values.astype(np.float32)),
        "x": names_of(panel.x),
        "y": names_of(panel.y),
        "coloraxis": numbered("coloraxis", wanted.scale),
        "hoverongaps": False,
        **axes(at),
    }
    told = log or wanted.low is not None
    if told:
        trace["customdata"] = _told(wanted)
    if level:
        trace["meta"] = text(level)
    dotted = has_dots(wanted)
    fields = {
        Field.ROW: "%{y}",
        Field.COLUMN: "%{x}",
        Field.VALUE: ("%{customdata}" if told else "%{z:.3f}") + (" %{text}" if dotted else ""),
        Field.LEVEL: "%{meta}",
    }
    lines = [
        "".join(fields[part] if isinstance(part, Field) else escaped(part) for part in line)
        for line in wanted.hover
    ]
    trace["hovertemplate"] = "<br>".join(lines) + "<extra></extra>"
    if dotted and wanted.marked is not None:
        trace["text"] = np.where(wanted.marked, DOT, "").tolist()
    return trace


def has_dots(wanted: Cells) -> bool:
    """Whether cells of a map are marked, or will be on another level or reader."""
    return wanted.marked is not None and bool(wanted.marked.any() or wanted.dotted)


def dots(at: int, panel: Panel, marked: Marks) -> Spec:
    """Return the trace of round dots over a map; white with a dark edge shows on every colour."""
    up, across = np.nonzero(marked)
    rows, columns = names_of(panel.y), names_of(panel.x)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [columns[place] for place in across],
        "y": [rows[place] for place in up],
        "marker": {
            "symbol": "circle", "size": DOT_SIZE, "opacity": 1, "color": palette.DOT_FACE,
            "line": {"color": palette.DOT_EDGE, "width": DOT_EDGE},
        },
        "hoverinfo": "skip",
        "showlegend": False,
        "name": "dots",
        **axes(at),
    }  # fmt: skip


def intervals(low: Array, high: Array) -> list[str]:
    """Return "[low, high]" for every position, empty where there is no interval."""
    return [
        f"[{decimal(a, 4)}, {decimal(b, 4)}]" if np.isfinite(a) and np.isfinite(b) else ""
        for a, b in zip(low.tolist(), high.tolist(), strict=True)
    ]


def _told(wanted: Cells) -> list[list[str]]:
    """Return what the pointer says of every cell: its value, and its interval if it has one."""
    numbers = [[decimal(value, 4) for value in row] for row in wanted.values.tolist()]
    if wanted.low is None or wanted.high is None:
        return numbers
    bounds = map(intervals, wanted.low, wanted.high)
    return [
        [f"{number} {interval}" for number, interval in zip(row, own, strict=True)]
        for row, own in zip(numbers, bounds, strict=True)
    ]


def _group(wanted: Curve) -> str:
    return f"{text(wanted.label)} {wanted.colour}" if wanted.label else ""


def _hover(panel: Panel, wanted: Curve) -> str:
    number = "%{y:+.4~g}" if panel.y.signed else "%{y:.4~g}"
    if wanted.names:
        return f"%{{text}}<br>{escaped(panel.y.title)} %{{y:.3f}} %{{customdata}}<extra></extra>"
    return f"{number} %{{customdata}}" + ("" if wanted.label else "<extra></extra>")
