"""One variable over depth and noise level, for print."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from dar_probe.reports.draw import matplotlib
from dar_probe.reports.style import palette, text_metrics
from dar_probe.results import metrics


def heatmap(ds: xr.Dataset, name: str, *, width: matplotlib.Width = "two") -> Figure:
    """Draw one variable over depth and noise level, pooled over samples.

    The colour scale is logarithmic where all values are positive and span more than 20x.

    Args:
        ds: an analysis.
        name: a variable over blocks, sublayers, readers or sources.
        width: "one" column (3.25 in) or "two" (6.75 in).

    Raises:
        UsageError: a variable that is unknown or has not exactly one depth dim, another width.
    """
    inches = matplotlib.inches(width)
    dim = palette.depth_dim(name)
    values = metrics.over_noise(ds, name).values
    names = palette.depth_names(ds, dim)
    if name.startswith("cosine"):  # block 0 has no neighbour below it
        values, names = values[1:], names[1:]
    with matplotlib.paper():
        figure = matplotlib.figure(inches, 2.5 if width == "one" else 3.2)
        axis = figure.subplots()
        norm = matplotlib.scale(values)
        colours = matplotlib.colour_map(norm, "mako_r")
        matplotlib.draw_map(axis, values, norm, colours)
        matplotlib.level_ticks(axis, ds)
        rows = palette.thinned(len(names), 12 if width == "one" else 16)
        matplotlib.ticks(axis, "y", rows, names, room=max(inches / 4, 1.05))
        axis.set_xlabel(palette.NOISE)
        axis.set_ylabel(f"{dim} (deeper upwards)")
        label = text_metrics.wrapped(palette.axis_label(name), 2.3, text_metrics.LABEL_SIZE)
        matplotlib.colour_bar(figure, [axis], norm, colours, label)
        text_metrics.note(figure, matplotlib.map_notes(values, norm))
    return figure


def lacks(ds: xr.Dataset, name: str) -> str:
    """Say why there is nothing to draw; empty where there is something.

    Raises:
        UsageError: as ``heatmap``.
    """
    palette.depth_dim(name)
    return "" if np.isfinite(ds[name].values).any() else f"{name!r} was measured nowhere"
