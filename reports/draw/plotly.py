"""Plotly's part of a figure for the screen: panels, axes, colour bars, one layout per width."""

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from dar_probe.reports.style import palette

Array = npt.NDArray[np.floating]

INK = "#747b85"  # readable on white and on black; the page sets its own
DOT = "\u00b7"
FAINT = "rgba(128,128,128,0.25)"  # grid lines, and the ground under cells that do not exist
CLEAR = "rgba(0,0,0,0)"
BETWEEN = 92  # pixels between two rows of panels: labels below, title above
# Pixels of a plotly legend: a row, a line's mark with its gaps, a letter, and the narrowest page.
LEGEND_ROW, LEGEND_MARK, LEGEND_LETTER, NARROW = 28, 50, 7, 320


def figure() -> go.Figure:
    """Return an empty figure that looks right on a light and on a dark page."""
    empty = go.Figure()
    empty.update_layout(
        template=None,
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        margin={"l": 62, "r": 12, "t": 60, "b": 52},
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0},
        hoverlabel={"align": "left"},
        modebar={"bgcolor": CLEAR, "color": INK, "activecolor": INK},
        dragmode=False,
    )
    return empty


def text(name: str, limit: int = 60) -> str:
    """Return a name cleaned and escaped: plotly reads HTML and %{...} in every text."""
    return html.escape(palette.clean(name, limit), quote=False).replace("%", "&#37;")


def unique(names: Sequence[str]) -> list[str]:
    """Return the names as plotly texts, numbered where two of them are equal."""
    seen: dict[str, int] = {}
    result = []
    for name in map(text, names):
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result


def axes(panel: int) -> dict[str, str]:
    """Return what puts a trace into panel 0, 1, ..."""
    return {"xaxis": numbered("x", panel), "yaxis": numbered("y", panel)}


def numbered(word: str, at: int) -> str:
    """Return plotly's name of the at-th axis: "x", "x2", ..."""
    return word if at == 0 else f"{word}{at + 1}"


def axis(drawn: go.Figure, letter: str, panel: int, **settings: Any) -> None:
    """Set up the "x" or "y" axis of one panel."""
    base = {
        "anchor": numbered("y" if letter == "x" else "x", panel),
        "gridcolor": FAINT,
        "zeroline": False,
        "linecolor": INK,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": FAINT,
        "fixedrange": True,
    }
    drawn.update_layout({numbered(f"{letter}axis", panel): {**base, **settings}})


def title(drawn: go.Figure, panel: int, words: str) -> None:
    """Write a panel's title above its left edge; ``words`` are escaped already."""
    drawn.add_annotation(
        text=words,
        xref=f"{numbered('x', panel)} domain",
        yref=f"{numbered('y', panel)} domain",
        x=0,
        y=1,
        xanchor="left",
        yanchor="bottom",
        yshift=4,
        showarrow=False,
        font={"size": 12},
    )


def map_axes(
    drawn: go.Figure, panel: int, across: Sequence[str], up: Sequence[str], words: tuple[str, str]
) -> None:
    """Set up both axes of a map of named cells, titled ``words``; the hover shows the names."""
    drawn.update_layout(plot_bgcolor=FAINT)
    for letter, names, title_text in (("x", across, words[0]), ("y", up, words[1])):
        axis(
            drawn,
            letter,
            panel,
            type="category",
            categoryorder="array",
            categoryarray=list(names),
            range=[-0.5, len(names) - 0.5],  # a map without one number would have none
            showgrid=False,
            automargin=True,
            tickfont={"size": 11},
            title={"text": title_text, "standoff": 6},
        )


def band(
    drawn: go.Figure, position: Array, low: Array, high: Array, colour: str, **shared: Any
) -> None:
    """Fill between ``low`` and ``high``, with a gap where no interval is known."""
    known = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
    for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
        if not run.size:
            continue
        drawn.add_scatter(
            x=np.concatenate([position[run], position[run][::-1]]),
            y=np.concatenate([high[run], low[run][::-1]]),
            fill="toself",
            fillcolor=colour,
            opacity=0.25,
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            **shared,
        )


def dots(
    drawn: go.Figure, panel: int, marked: npt.NDArray[np.bool_], *, other: bool = False
) -> tuple[str, dict[str, Any]]:
    """Put a dot into the marked cells of a map, and return the end of a hover line, and trace data.

    The dots are one shape: plotly takes a second to write a thousand texts.

    Args:
        drawn: the figure; changed.
        panel: the map's.
        marked: its cells (up, across).
        other: whether cells are marked that are shown later, so that there must be a shape.
    """
    if not (marked.any() or other):
        return "", {}
    drawn.add_shape(
        type="path",
        path=dot_path(marked),
        xref=numbered("x", panel),
        yref=numbered("y", panel),
        fillcolor="#ffffff",
        line={"color": "#1b2430", "width": 0.6},
        name="dots",
    )
    return " %{text}", {"text": np.where(marked, DOT, "").tolist()}


def dot_path(marked: npt.NDArray[np.bool_]) -> str:
    """Return a small diamond at every marked cell, in units of cells."""
    up, across, size = *np.nonzero(marked), 0.1
    return (
        " ".join(
            f"M{x - size:.2f},{y}L{x},{y + size:.2f}L{x + size:.2f},{y}L{x},{y - size:.2f}Z"
            for y, x in zip(up, across, strict=True)
        )
        or "M-9,-9L-9,-9Z"
    )  # a shape without a path is none


def value_axis(values: Array, may_log: bool) -> dict[str, Any]:
    """Return the settings of a y axis: log where it may and spans more than 5x."""
    finite = values[np.isfinite(values)]
    if not finite.size or not (may_log and palette.spans(finite, 5)):
        return {"nticks": 6}
    low, high = float(finite.min()) / 1.15, float(finite.max()) * 1.15
    marks = palette.log_ticks(low, high)
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": marks,
        "ticktext": [palette.tick(mark) for mark in marks],
    }


def colour_axis(
    drawn: go.Figure, at: int, values: Array, wanted: str, words: str, *, log: bool = False
) -> None:
    """Add a colour scale for ``values``: shares from 0, diverging where signs differ.

    With ``log`` the cells hold log10 of the values, and the bar is labelled with the values.
    """
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    bar: dict[str, Any] = {"title": {"text": words, "side": "right"}, "nticks": 6}
    if low < 0 < high:
        low, high, wanted = -max(-low, high), max(-low, high), "vlag"
    if log:
        marks = palette.log_ticks(low, high)
        bar |= {
            "tickvals": [math.log10(mark) for mark in marks],
            "ticktext": [palette.tick(mark) for mark in marks],
        }
        low, high = math.log10(low), math.log10(high)
    if high <= low:
        low, high = low - (0.5 * abs(low) or 0.5), high + (0.5 * abs(high) or 0.5)
    steps = palette.COLOUR_MAPS[wanted]
    scale = [[i / (len(steps) - 1), colour] for i, colour in enumerate(steps)]
    bar |= {"thickness": 11, "outlinewidth": 0, "xanchor": "left", "ticks": "outside"}
    bar |= {"ticklen": 3, "tickfont": {"size": 11}, "ypad": 0}
    drawn.update_layout(
        {
            numbered("coloraxis", at): {
                "cmin": low,
                "cmax": high,
                "colorscale": scale,
                "colorbar": bar,
            }
        }
    )


def placed(
    drawn: go.Figure,
    panels: int,
    *,
    columns: int,
    row: int,
    room: int = 0,
    gap: float = 0.0,
    bars: Sequence[Sequence[int]] = (),
    names_across: bool = False,
    names_shared: bool = False,
) -> go.Figure:
    """Place the panels, and leave in ``layout.meta`` what makes the figure wide or narrow.

    Args:
        drawn: the figure; changed and returned.
        panels: how many there are.
        columns: panels side by side where there is room; a narrow figure has one column.
        row: height of a panel, pixels.
        room: the width in pixels below which a figure is narrow.
        gap: space between two columns, share of the width.
        bars: for each colour axis the panels that it belongs to.
        names_across: whether the x axis holds names, which a narrow figure leaves out.
        names_shared: whether panels side by side share the names on the y axis of the first.
    """
    wide = _places(drawn, panels, columns, row, gap, bars, False, names_shared)
    narrow = _places(drawn, panels, 1, row, gap, bars, names_across, names_shared)
    meta = {**(drawn.layout.meta or {}), "wide": wide, "narrow": narrow, "room": room}
    drawn.update_layout(meta=meta, autosize=True)
    for key, value in wide.items():
        drawn.layout[key] = value
    return drawn


def with_legend_room(drawn: go.Figure) -> go.Figure:
    """Move the panels down by as many rows as the legend has, on a wide and on a narrow page."""
    meta = dict(drawn.layout.meta)
    names = [trace.name for trace in drawn.data if trace.showlegend]
    entry = LEGEND_MARK + LEGEND_LETTER * max(map(len, names))
    for shape, width in (("wide", meta["room"]), ("narrow", NARROW)):
        rows = math.ceil(len(names) / max(1, width // entry))
        top = max(drawn.layout.margin.t, LEGEND_ROW * (rows + 1))
        taller = meta[shape]["height"] + top - drawn.layout.margin.t
        meta[shape] = {**meta[shape], "margin.t": top, "height": taller}
    drawn.update_layout(meta=meta, height=meta["wide"]["height"])
    drawn.update_layout(margin={"t": meta["wide"]["margin.t"]})
    return drawn


def _places(
    drawn: go.Figure,
    panels: int,
    columns: int,
    row: int,
    gap: float,
    bars: Sequence[Sequence[int]],
    hide_names: bool,
    names_shared: bool,
) -> dict[str, Any]:
    """Return plotly's relayout of all panels on a grid, first row on top."""
    rows = math.ceil(panels / columns)
    inner = rows * row + (rows - 1) * BETWEEN
    width = (1 - (columns - 1) * gap) / columns
    spots = []
    for panel in range(panels):
        left = (panel % columns) * (width + gap)
        top = 1 - (panel // columns) * (row + BETWEEN) / inner
        spots.append((left, left + width, top - row / inner, top))
    margin = drawn.layout.margin
    patch: dict[str, Any] = {"height": inner + margin.t + margin.b}
    for panel, (left, right, bottom, top) in enumerate(spots):
        patch[f"{numbered('xaxis', panel)}.showticklabels"] = not hide_names
        if names_shared:
            patch[f"{numbered('yaxis', panel)}.showticklabels"] = panel % columns == 0
        patch[f"{numbered('xaxis', panel)}.domain"] = [round(left, 4), round(min(right, 1), 4)]
        patch[f"{numbered('yaxis', panel)}.domain"] = [
            round(max(bottom, 0), 4),
            round(min(top, 1), 4),
        ]
    for at, members in enumerate(bars):
        bar = f"{numbered('coloraxis', at)}.colorbar"
        low, high = spots[members[0]][2:]  # beside the first row: titles lie between the rows
        patch[f"{bar}.x"] = round(max(spots[panel][1] for panel in members) + 0.01, 4)
        patch[f"{bar}.y"] = round((low + high) / 2, 4)
        patch[f"{bar}.len"] = round(high - low, 4)
    return patch
