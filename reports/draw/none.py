"""Draws nothing: says in calls what would be drawn, and checks that the description holds.

Tests use it where a hundred datasets are to be looked at and a picture of each takes too long.
"""

from typing import Any, NamedTuple

import numpy as np

from dar_probe.reports.figures.description import Axis, Cells, Figure, Panel


class Drawn(NamedTuple):
    """One thing that a drawer would draw.

    Attributes:
        what: "panel", "axis", "curve", "points", "distribution", "rule", "cells", "scale", "note"
            or "heading".
        panel: the panel's number; None for what belongs to the whole figure.
        words: its title, label or text.
        values: its numbers; empty where it has none.
    """

    what: str
    panel: int | None
    words: str
    values: np.ndarray


def draw(figure: Figure) -> list[Drawn]:
    """Return what would be drawn, in the order of the panels.

    Args:
        figure: what it shows.

    Raises:
        AssertionError: parts of the description do not fit each other.
    """
    calls: list[Drawn] = []
    assert figure.panels, "a figure has a panel"
    if figure.heading:
        calls.append(_call("heading", None, figure.heading))
    for at, panel in enumerate(figure.panels):
        calls += _of_panel(figure, at, panel)
    for scale in figure.scales:
        calls.append(_call("scale", None, scale.label, scale.values))
    calls += [_call("note", None, sentence) for sentence in figure.notes]
    return calls


def _of_panel(figure: Figure, at: int, panel: Panel) -> list[Drawn]:
    calls = [_call("panel", at, panel.title + panel.subject)]
    for axis in (panel.x, panel.y):
        _check_axis(axis)
        calls.append(_call("axis", at, axis.title))
    for curve in panel.curves:
        parts = (curve.x, curve.value, curve.low, curve.high)
        assert len({part.shape for part in parts}) == 1, "a curve's arrays are of one length"
        assert not curve.names or len(curve.names) == len(curve.x)
        assert curve.middle is None or curve.middle.shape == (2, len(curve.x))
        calls.append(_call("curve", at, curve.label, curve.value))
    for points in panel.points:
        assert points.x.shape == points.y.shape, "points have as many places across as up"
        assert len(points.names) in (0, len(points.x)) and len(points.details) in (
            0,
            len(points.x),
        )
        calls.append(_call("points", at, points.label, points.x))
    for one in panel.distributions:
        assert one.values.ndim == 1 and np.isfinite(one.x), "a distribution is a list at a place"
        calls.append(_call("distribution", at, one.name, one.values))
    calls += [_call("rule", at, rule.label) for rule in panel.rules]
    if panel.cells:
        _check_cells(figure, panel, panel.cells)
        calls.append(_call("cells", at, panel.title, panel.cells.values))
    return calls


def _check_axis(axis: Axis) -> None:
    if axis.ticks is not None:
        assert len(axis.labels) in (0, len(axis.ticks)), "every tick has a label"
        if axis.names:
            assert all(0 <= place < len(axis.names) for place in axis.ticks)
    if axis.limits:
        assert np.isfinite(axis.limits).all() and axis.limits[0] != axis.limits[1]
    if axis.link and axis.link.values is not None:
        assert len(axis.link.values) == len(axis.names), "every position is linked"


def _check_cells(figure: Figure, panel: Panel, cells: Cells) -> None:
    shape = (len(panel.y.names), len(panel.x.names))
    for part in (cells.values, cells.marked, cells.low, cells.high):
        assert part is None or part.shape == shape, "a map has a name for every row and column"
    scale = figure.scales[cells.scale].values
    known, covered = (values[np.isfinite(values)] for values in (cells.values, scale))
    assert not known.size or covered.size, "a scale covers its maps"


def _call(what: str, panel: int | None, words: str, values: Any = ()) -> Drawn:
    return Drawn(what, panel, words, np.asarray(values, dtype=float))
