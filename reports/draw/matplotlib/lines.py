"""Curves, points and straight lines of printed panels."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from dar_probe.reports.figures.description import Array, Curve, Panel, Points, Rule
from dar_probe.reports.style import palette

GROUND, INK = "#ececec", "#555555"
MOST_MARKERS = 40


Key = tuple[str, str]  # label and colour of what is in the legend


def draw_all(axis: Axes, panel: Panel) -> dict[Key, Line2D]:
    """Draw what a panel has besides a map; return its lines and points that have labels."""
    found: dict[Key, Line2D] = {}
    if panel.shaded:
        axis.axvspan(*panel.shaded, color=GROUND, linewidth=0)
    for rule in panel.rules:
        found.setdefault((rule.label, rule.colour), _rule(axis, panel, rule))
    for curve in panel.curves:
        found.setdefault((curve.label, curve.colour), _curve(axis, curve))
    for points in panel.points:
        found.setdefault((points.label, points.colour), _points(axis, points))
    return {key: line for key, line in found.items() if key[0]}


def _curve(axis: Axes, curve: Curve) -> Line2D:
    dashes, marker = palette.look(curve.look)
    if curve.marked:
        profile = (curve.x, curve.value, curve.low, curve.high)
        return draw_line(axis, profile, curve.colour, dashes, marker)
    (line,) = axis.plot(curve.x, curve.value, color=curve.colour, linestyle=dashes, linewidth=0.9)
    if len(curve.x) == 1:
        line.set(marker="_", markersize=6)
    return line


def _points(axis: Axes, points: Points) -> Line2D:
    crowded = points.low is None and points.marker != "x"
    if points.low is not None and points.high is not None:
        axis.hlines(points.y, points.low, points.high, color=points.colour, linewidth=1.4)
    (line,) = axis.plot(
        points.x,
        points.y,
        linestyle="",
        marker=points.marker,
        markersize=3 if crowded else 4.4,
        color=points.colour,
        alpha=0.75 if crowded else 1.0,
        markeredgewidth=0 if points.marker != "x" else 1,
    )
    return line


def _rule(axis: Axes, panel: Panel, rule: Rule) -> Line2D:
    look: Any = {"color": rule.colour or INK, "linestyle": rule.dashes, "linewidth": 0.9}
    if rule.y is not None:
        return axis.axhline(rule.y, **look)
    if rule.x is not None:
        return axis.axvline(rule.x, **look)
    ends = panel.x.limits or (0.0, 1.0)
    (line,) = axis.plot(ends, ends, zorder=0, **look)
    return line


def draw_line(
    axis: Axes,
    profile: tuple[Array, Array, Array, Array],
    colour: str,
    dashes: str,
    marker: str = "o",
) -> Line2D:
    """Draw (position, value, low, high); the band is left out where the interval is NaN.

    A line of one point has a whisker in place of a band.
    """
    position, value, low, high = profile
    every = -(-len(position) // MOST_MARKERS)
    (line,) = axis.plot(
        position, value, marker=marker, markevery=every, color=colour, linestyle=dashes
    )
    known = np.isfinite(low) & np.isfinite(high)
    if known.any() and len(position) > 1:
        axis.fill_between(position, low, high, where=known, color=colour, alpha=0.22, linewidth=0)
    elif known.any():
        axis.vlines(position, low, high, color=colour, linewidth=1)
    return line
