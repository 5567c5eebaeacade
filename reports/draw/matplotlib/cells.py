"""Maps of printed figures: colours, cells, dots, and colour bars."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import (
    CenteredNorm,
    Colormap,
    LinearSegmentedColormap,
    LogNorm,
    Normalize,
    PowerNorm,
)
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator

from dar_probe.reports.draw.matplotlib.axes import Plain
from dar_probe.reports.draw.matplotlib.lettering import wrapped
from dar_probe.reports.figures.description import Array, Marks, Scale
from dar_probe.reports.style import palette

MANY = 2000  # marks, which are pixels from here on
DOT_SIZE, DOT_EDGE = 2.2, 0.5  # points: a row of 28 blocks is 3.5 high
BAR_ROOM = 2.3  # inches of a label beside a bar


def norm_of(wanted: Scale) -> Normalize:
    """Return how numbers become colours."""
    linear = scale(wanted.values, from_zero=wanted.share)
    if wanted.root and linear.vmin == 0:
        return PowerNorm(0.5, 0, linear.vmax)
    return linear


def scale(values: Array, *, from_zero: bool = False) -> Normalize:
    """Return the norm that fits: centred where signs differ, log where it spans more than 20x.

    With ``from_zero`` (shares) it is never logarithmic and starts at 0.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Normalize(0, 1)
    low, high = float(finite.min()), float(finite.max())
    if low < 0 < high:
        return CenteredNorm(0, halfrange=max(-low, high))
    if not from_zero and palette.spans(finite, 20):
        return LogNorm(low, high)
    if from_zero and low >= 0:
        low = 0.0
    if high <= low:
        low, high = low - (0.5 * abs(low) or 0.5), high + (0.5 * abs(high) or 0.5)
    return Normalize(low, high)


def colour_map(norm: Normalize, wanted: str) -> Colormap:
    """Return the wanted map, or the diverging one where values take both signs."""
    name = "vlag" if isinstance(norm, CenteredNorm) else wanted
    return LinearSegmentedColormap.from_list(name, palette.COLOUR_MAPS[name])


def draw_map(axis: Axes, values: Array, norm: Normalize, colours: Colormap) -> None:
    """Draw (depth, level) cells, shallow at the bottom; NaN cells show the hatched ground.

    Negative cells get a dash where there are both signs, as grey tells the two ends not apart.
    """
    depth, columns = values.shape
    axis.grid(False)
    if np.isnan(values).any():
        ground = Rectangle((-0.5, -0.5), columns, depth, facecolor=palette.MISSING, linewidth=0)
        ground.set(hatch="////", edgecolor="#b9b9b9")
        axis.add_patch(ground)
    axis.pcolormesh(
        np.arange(columns + 1) - 0.5,
        np.arange(depth + 1) - 0.5,
        np.ma.masked_invalid(values),
        norm=norm,
        cmap=colours,
        rasterized=True,
    )
    axis.set_xlim(-0.5, columns - 0.5)
    axis.set_ylim(-0.5, depth - 0.5)
    if isinstance(norm, CenteredNorm):
        _draw_dashes(axis, values, norm, colours)
    axis.spines[:].set_visible(False)


def draw_dots(axis: Axes, marked: Marks) -> None:
    """Put a round dot into the marked cells of a map (depth, level), as on the page."""
    row, column = np.nonzero(marked)
    axis.scatter(
        column,
        row,
        s=DOT_SIZE**2,
        c=palette.DOT_FACE,
        edgecolors=palette.DOT_EDGE,
        linewidths=DOT_EDGE,
        rasterized=len(row) > MANY,
    )


def _draw_dashes(axis: Axes, values: Array, norm: Normalize, colours: Colormap) -> None:
    """Put a dash into the negative cells, light on dark and dark on light."""
    row, column = np.nonzero(values < 0)
    red, green, blue, _ = np.moveaxis(colours(norm(values[row, column])), -1, 0)
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
    ink = np.where(light, "#303030", "#f4f4f4")
    axis.scatter(column, row, c=ink, marker="_", s=5, linewidths=0.5, rasterized=len(row) > MANY)


def colour_bar(
    drawn: Figure,
    axes: list[Axes],
    norm: Normalize,
    colours: Colormap,
    label: str,
    *,
    below: bool = False,
) -> None:
    """Add one labelled colour bar for ``axes``, to the right or below, with plain decimals."""
    place: dict[str, Any] = {"location": "bottom", "aspect": 26} if below else {"aspect": 22}
    bar = drawn.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.02, **place)
    bar.set_label(label if below else wrapped(label, BAR_ROOM, "label"))
    bar.outline.set_visible(False)
    bar.ax.grid(False)
    axis = bar.ax.xaxis if below else bar.ax.yaxis
    if isinstance(norm, LogNorm):
        low, high = bar.ax.get_xlim() if below else bar.ax.get_ylim()
        marks = palette.log_ticks(low, high)
        axis.set_ticks(marks, labels=palette.tick_labels(marks))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(4 if below else 5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(Plain())
