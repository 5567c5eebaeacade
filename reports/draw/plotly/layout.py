"""Plotly's layout of a figure: its ground, axes, colour bars, and one arrangement per width.

Everything is plain data, as the page's JSON has it: plotly's own Python objects check every value
anew, which takes longer than all the rest.
"""

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dar_probe.reports.draw.plotly.texts import (
    CLEAR,
    FAINT,
    GROUNDS,
    INK,
    entry,
    escaped,
    numbered,
    text,
)
from dar_probe.reports.figures.arrangement import Screen
from dar_probe.reports.figures.description import Array, Axis, Panel, Scale, drawn
from dar_probe.reports.style import palette

BETWEEN = 92  # pixels between two rows of panels: labels below, title above
# Letters of a title on the narrowest page, how far left of its panel it begins, pixels of a line.
NARROW_TITLE, NARROW_SHIFT, TITLE_LINE = 42, -50, 16
# Pixels of a plotly legend: a row, a line's mark with its gaps, a letter, and the narrowest page.
LEGEND_ROW, LEGEND_MARK, LEGEND_LETTER, NARROW = 28, 50, 7, 320

Spec = dict[str, Any]


def ground(*, legend: bool) -> Spec:
    """Return a layout without panels that looks right on a light and on a dark page."""
    return {
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "margin": {"l": 62, "r": 12, "t": 60 if legend else 30, "b": 52},
        "legend": {"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0},
        "showlegend": legend,
        "hoverlabel": {"align": "left"},
        "modebar": {"bgcolor": CLEAR, "color": INK, "activecolor": INK},
        "dragmode": False,
        "annotations": [],
        "meta": {},
        "autosize": True,
    }


def title(layout: Spec, panel: int, words: str) -> None:
    """Write a panel's title above its left edge; ``words`` are escaped already."""
    layout["annotations"].append(
        {
            "text": words,
            "xref": f"{numbered('x', panel)} domain",
            "yref": f"{numbered('y', panel)} domain",
            "x": 0,
            "y": 1,
            "xanchor": "left",
            "yanchor": "bottom",
            "align": "left",
            "yshift": 4,
            "showarrow": False,
            "font": {"size": 12},
        }
    )


def axis(letter: str, at: int, panel: Panel, words: str, *, most: int | None) -> Spec:
    """Return the settings of the "x" or "y" axis of one panel.

    Args:
        letter: "x" or "y".
        at: the panel's number.
        panel: what it shows.
        words: the title, escaped; empty for none.
        most: how many labels an axis of names has at most; None leaves that to plotly.
    """
    wanted: Axis = panel.x if letter == "x" else panel.y
    named = bool(wanted.names) and not panel.curves
    settings: Spec = {
        "anchor": numbered("y" if letter == "x" else "x", at),
        "gridcolor": FAINT,
        "zeroline": False,
        "linecolor": INK,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": FAINT,
        "fixedrange": True,
    }
    if words:
        settings["title"] = {"text": words, "standoff": 6 if letter == "x" or named else 4}
    if named:
        settings |= _of_names(wanted, grid=not panel.cells, most=most)
    elif wanted.fitted:
        values = drawn(panel, "x" if letter == "x" else "y")
        settings |= value_axis(values, wanted.may_log, rules=_has_lines(panel, letter))
    elif wanted.ticks is None:
        settings["nticks"] = 5
    else:
        settings["tickvals"] = [float(place) for place in wanted.ticks]
        labels = wanted.labels or [
            wanted.names[int(place)] for place in wanted.ticks if wanted.names
        ]
        if labels and not wanted.octaves:
            settings["ticktext"] = [text(label) for label in labels]
    if wanted.octaves:
        settings["type"] = "log"
    if wanted.limits and not named:
        settings["range"] = list(wanted.limits)
    return settings


def _of_names(wanted: Axis, *, grid: bool, most: int | None) -> Spec:
    """Return an axis of named cells or rows."""
    count = len(wanted.names)
    few = {} if most is None else {"nticks": most, "tickangle": 0}
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": names_of(wanted),
        "range": list(wanted.limits or (-0.5, count - 0.5)),  # without numbers it would have none
        "showgrid": grid,
        "automargin": True,
        "tickfont": {"size": 11},
        **few,
    }


def names_of(wanted: Axis) -> list[str]:
    """Return the names of an axis as plotly texts, numbered where two of them are equal."""
    return palette.unique([text(name) for name in wanted.names])


def value_axis(values: Array, may_log: bool, *, rules: bool = False) -> Spec:
    """Return the settings of a number axis: log where it may and spans more than 5x.

    Plotly chooses the range of a linear one by its traces, unless there are ``rules``, which are
    none.
    """
    finite = values[np.isfinite(values)]
    if finite.size and may_log and palette.spans(finite, 5):
        low, high = float(finite.min()) / 1.15, float(finite.max()) * 1.15
        marks = palette.log_ticks(low, high)
        return {
            "type": "log",
            "range": [math.log10(low), math.log10(high)],
            "tickvals": marks,
            "ticktext": [palette.tick(mark) for mark in marks],
        }
    if not rules:
        return {"nticks": 6}
    if not finite.size:
        return {"range": [-1, 1], "showticklabels": False}
    low, high = float(finite.min()), float(finite.max())
    pad = 0.08 * (high - low) or 1.0
    return {"range": [low - pad, high + pad], "nticks": 6, "exponentformat": "e"}


def _has_lines(panel: Panel, letter: str) -> bool:
    found = [rule for rule in panel.rules if not rule.label]
    return any((rule.y if letter == "y" else rule.x) is not None for rule in found)


def is_log(scale: Scale) -> bool:
    """Whether the cells of a colour scale hold logarithms."""
    return not scale.share and palette.spans(scale.values, 20)


def colour_axis(scale: Scale, label: str) -> Spec:
    """Return plotly's colour scale: shares from 0, diverging where signs differ.

    Of a logarithmic one the cells hold log10 of the values, and the bar shows the values.
    """
    values = np.append(scale.values, 0.0) if scale.share else scale.values
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    bar: Spec = {"title": {"text": label, "side": "right"}, "nticks": 6}
    if low < 0 < high:
        low, high = -max(-low, high), max(-low, high)
    if is_log(scale):
        marks = palette.log_ticks(low, high)
        bar |= {
            "tickvals": [math.log10(mark) for mark in marks],
            "ticktext": [palette.tick(mark) for mark in marks],
        }
        low, high = math.log10(low), math.log10(high)
    if high <= low:
        low, high = low - (0.5 * abs(low) or 0.5), high + (0.5 * abs(high) or 0.5)
    colours = _steps(scale, palette.COLOUR_MAPS)
    bar |= {"thickness": 11, "outlinewidth": 0, "xanchor": "left", "ticks": "outside"}
    bar |= {"ticklen": 3, "tickfont": {"size": 11}, "ypad": 0}
    return {"cmin": low, "cmax": high, "colorscale": colours, "colorbar": bar}


def schemes(scales: Sequence[Scale]) -> Spec:
    """Return plotly's relayout of maps for a "light" and for a "dark" page."""
    patches: Spec = {}
    maps = {"light": palette.COLOUR_MAPS, "dark": palette.DARK_MAPS}
    for scheme, ground in GROUNDS.items():
        patches[scheme] = {"plot_bgcolor": ground}
        for at, scale in enumerate(scales):
            axis = numbered("coloraxis", at)
            patches[scheme][f"{axis}.colorscale"] = _steps(scale, maps[scheme])
    return patches


def _steps(scale: Scale, maps: Mapping[str, Sequence[str]]) -> list[list[Any]]:
    """Return plotly's notation of a colour map: even steps, or those of the square root."""
    signed = palette.both_signs(scale.values)
    colours = maps["vlag" if signed else scale.colours]
    power = 2 if scale.root and not signed else 1
    return [[(at / (len(colours) - 1)) ** power, colour] for at, colour in enumerate(colours)]


def place(layout: Spec, screen: Screen, bars: Sequence[Sequence[int]], panels: int) -> None:
    """Place the panels, and leave in ``meta`` what makes the figure wide or narrow.

    Args:
        layout: changed.
        screen: how the panels stand.
        bars: for each colour axis the panels that it belongs to.
        panels: how many there are.
    """
    top, bottom = (layout["margin"][side] for side in "tb")
    titles, more = _titles(layout)
    wide = _places(screen, panels, screen.columns, bars, hide_names=False)
    narrow = _places(
        screen, panels, 1, bars, hide_names=screen.names_across, between=BETWEEN + more
    )
    wide = {**wide, **titles["wide"], "height": wide["height"] + top + bottom}
    wide["margin.t"] = top
    narrow = {**narrow, **titles["narrow"], "height": narrow["height"] + top + more + bottom}
    narrow["margin.t"] = top + more
    layout["meta"] |= {"wide": wide, "narrow": narrow, "room": screen.room}
    for path, value in wide.items():
        if path.startswith("annotations"):
            continue  # they are wide already
        *keys, last = path.split(".")
        at = layout
        for key in keys:
            at = at.setdefault(key, {})
        at[last] = value


def make_legend_room(layout: Spec, names: Sequence[str]) -> None:
    """Move the panels down by as many rows as the legend has, on a wide and on a narrow page."""
    meta = layout["meta"]
    lines = [entry(name, 90).split("<br>") for name in names]
    letters = max(len(html.unescape(line)) for own in lines for line in own)
    row = LEGEND_ROW + TITLE_LINE * (max(map(len, lines)) - 1)
    for shape, width in (("wide", meta["room"]), ("narrow", NARROW)):
        within = width - layout["margin"]["l"] - layout["margin"]["r"]  # it begins at the panels
        beside = within // (LEGEND_MARK + LEGEND_LETTER * letters)
        rows = math.ceil(len(names) / max(1, beside))
        before = meta[shape]["margin.t"]
        top = max(before, row * rows + LEGEND_ROW)
        taller = meta[shape]["height"] + top - before
        meta[shape] = {**meta[shape], "margin.t": top, "height": taller}
    layout["height"] = meta["wide"]["height"]
    layout["margin"] = {**layout["margin"], "t": meta["wide"]["margin.t"]}


def _titles(layout: Spec) -> tuple[dict[str, Spec], int]:
    """Return how titles stand wide and narrow, and the pixels that lines of narrow ones take."""
    wide: Spec = {}
    narrow: Spec = {}
    most = 1
    for at, note in enumerate(layout["annotations"]):
        lines = textwrap.wrap(html.unescape(note["text"]), NARROW_TITLE) or [""]
        most = max(most, len(lines))
        wide |= {f"annotations[{at}].text": note["text"], f"annotations[{at}].xshift": 0}
        narrow[f"annotations[{at}].text"] = "<br>".join(map(escaped, lines))
        narrow[f"annotations[{at}].xshift"] = NARROW_SHIFT
    return {"wide": wide, "narrow": narrow}, (most - 1) * TITLE_LINE


def _places(
    screen: Screen,
    panels: int,
    columns: int,
    bars: Sequence[Sequence[int]],
    *,
    hide_names: bool,
    between: int = BETWEEN,
) -> Spec:
    """Return plotly's relayout of all panels on a grid, first row on top; margins come on top."""
    row, gap = screen.row, screen.gap
    rows = math.ceil(panels / columns)
    inner = rows * row + (rows - 1) * between
    width = (1 - (columns - 1) * gap) / columns
    spots = []
    for panel in range(panels):
        left = (panel % columns) * (width + gap)
        top = 1 - (panel // columns) * (row + between) / inner
        spots.append((left, left + width, top - row / inner, top))
    patch: Spec = {"height": inner}
    for panel, (left, right, bottom, top) in enumerate(spots):
        patch[f"{numbered('xaxis', panel)}.showticklabels"] = not hide_names
        if screen.names_shared:
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
