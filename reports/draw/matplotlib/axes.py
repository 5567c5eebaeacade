"""Axes of printed panels: ranges that fit what is drawn, and labels that fit the page."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import Formatter, MaxNLocator, NullLocator

from dar_probe.reports.draw.matplotlib.lettering import broken, fitted
from dar_probe.reports.figures.description import Array, Axis, Panel, drawn
from dar_probe.reports.style import palette


class Plain(Formatter):
    """Plain decimals, or powers of ten on all ticks of the axis."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Label one tick by itself."""
        return palette.tick(x, 6)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Label all ticks of an axis."""
        return palette.tick_labels(values)


def set_up(axis: Axes, panel: Panel, which: Literal["x", "y"]) -> None:
    """Give one axis of a panel its range, ticks and labels; titles are the figure's matter."""
    wanted: Axis = getattr(panel, which)
    side = axis.xaxis if which == "x" else axis.yaxis
    if wanted.octaves:
        axis.set(**{f"{which}scale": "log"})
        side.set_minor_locator(NullLocator())
    if wanted.fitted:
        value_axis(axis, drawn(panel, which), wanted.may_log, which)
    elif wanted.ticks is None:
        side.set_major_locator(MaxNLocator(5, integer=True))
    else:
        labels = list(wanted.labels)
        if wanted.names and not labels:
            labels = [wanted.names[int(at)] for at in wanted.ticks]
        ticks(axis, which, wanted.ticks, labels, room=wanted.room, wrapped=wanted.wrapped)
    if wanted.limits:
        axis.set(**{f"{which}lim": wanted.limits})


def value_axis(axis: Axes, values: Array, may_log: bool, which: Literal["x", "y"] = "y") -> None:
    """Choose a scale from everything drawn: log where it may and spans more than 5x."""
    side = axis.xaxis if which == "x" else axis.yaxis
    finite = values[np.isfinite(values)]
    if not finite.size:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", va="center")
        side.set_ticks([])
        return
    low, high = float(finite.min()), float(finite.max())
    if may_log and palette.spans(finite, 5):
        axis.set(**{f"{which}scale": "log", f"{which}lim": (low / 1.15, high * 1.15)})
        marks = palette.log_ticks(low / 1.15, high * 1.15)
        side.set_ticks(marks, palette.tick_labels(marks))
        side.set_minor_locator(NullLocator())
    else:
        pad = max(0.08 * (high - low), 0.005 * abs(high), 1e-12)
        axis.set(**{f"{which}lim": (low - pad, high + pad)})
        side.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        side.set_major_formatter(Plain())


def ticks(
    axis: Axes,
    which: Literal["x", "y"],
    places: Sequence[float],
    labels: Sequence[str],
    *,
    room: float,
    wrapped: bool,
) -> None:
    """Put ticks at ``places``, each label within ``room`` inches or on lines that are."""
    set_ticks = axis.set_xticks if which == "x" else axis.set_yticks
    if not labels:
        set_ticks(list(places))
        return
    fit: Any = broken if wrapped else fitted
    texts = [fit(label, room) for label in labels]
    set_ticks(list(places), texts, parse_math=False)
