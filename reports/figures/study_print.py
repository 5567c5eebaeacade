"""The figures of a study for print."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from dar_probe.reports.draw import matplotlib
from dar_probe.reports.figures.study_curves import Drawing, Panel
from dar_probe.reports.style import palette, text_metrics

GROUND = "#ececec"


def figure(drawing: Drawing, *, width: matplotlib.Width = "two") -> Figure:
    """Draw the panels side by side ("two", 6.75 in) or one above the other ("one", 3.25 in)."""
    inches, count = matplotlib.inches(width), len(drawing.panels)
    lines: dict[str, Line2D] = {}
    with matplotlib.paper():
        stacked = width == "one"
        made = matplotlib.figure(inches, 1.7 * count if stacked else 2.0)
        axes = made.subplots(*((count, 1) if stacked else (1, count)), squeeze=False).ravel()
        for letter, axis, panel in zip("abcd", axes, drawing.panels, strict=False):
            lines |= _draw(axis, panel)
            axis.set_title(f"({letter}) {panel.title}")
        bands = any(
            bool(np.isfinite(curve.low).any()) for panel in drawing.panels for curve in panel.curves
        )
        text_metrics.legend(made, list(lines.values()), list(lines), bands=bands, band=drawing.band)
    return made


def _draw(axis: Axes, panel: Panel) -> dict[str, Line2D]:
    found = {}
    seen: list[matplotlib.Array] = [np.zeros(1)] if panel.zero else []
    if panel.ticks:
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(panel.ticks), [str(size) for size in panel.ticks])
        axis.xaxis.set_minor_locator(NullLocator())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if panel.marked:
        axis.axvspan(*panel.marked, color=GROUND, linewidth=0)
    if panel.zero:
        axis.axhline(0, color=palette.BLUE, linewidth=0.9)
    for curve in panel.curves:
        profile = (curve.x, curve.value, curve.low, curve.high)
        found[curve.label] = matplotlib.draw_line(
            axis, profile, curve.colour, *palette.look(curve.look)
        )
        seen += profile[1:]
    axis.set(xlabel=panel.across, ylabel=panel.up)
    matplotlib.value_axis(axis, np.concatenate(seen) if seen else np.zeros(0), panel.may_log)
    return found
