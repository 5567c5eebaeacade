"""One variable over depth and noise level, or over depth and training step."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from dar_probe.reports.figures.arrangement import Paper, Screen, Width, inches
from dar_probe.reports.figures.description import (
    Array,
    Axis,
    Cells,
    Field,
    Figure,
    Link,
    Panel,
    Scale,
    map_notes,
)
from dar_probe.reports.style import palette
from dar_probe.results import metrics
from dar_probe.results.schema import VARIABLES


def heatmap(ds: xr.Dataset, name: str, *, width: Width = "two", intervals: bool = False) -> Figure:
    """Describe one variable over depth and noise level, pooled over samples.

    The colour scale is logarithmic where all values are positive and span more than 20x.

    Args:
        ds: an analysis.
        name: a variable over blocks, sublayers, readers or sources.
        width: "one" column (3.25 in) or "two" (6.75 in).
        intervals: whether every cell knows its interval, which a page shows.

    Raises:
        UsageError: a variable that is unknown or has not exactly one depth dim, another width.
    """
    inches(width)
    palette.depth_dim(name)
    bounds = metrics.level_intervals(ds, name) if intervals else None
    values = metrics.over_noise(ds, name).values
    return depth_map(ds, name, values, noise_axis(ds), bounds=bounds, width=width)


def columns_of(profiles: Sequence[xr.Dataset]) -> tuple[Array, Array, Array]:
    """Return value, low and high (depth, column) of what ``metrics.profile`` gave."""
    value, low, high = (
        np.stack([profile[key].values for profile in profiles], axis=1)
        for key in ("value", "low", "high")
    )
    return value, low, high


def depth_map(
    ds: xr.Dataset,
    name: str,
    values: Array,
    across: Axis,
    *,
    bounds: tuple[Array, Array] | None = None,
    width: Width = "two",
) -> Figure:
    """Describe one variable over depth and something else.

    Args:
        ds: an analysis of the same depth, whose names the rows get.
        name: the variable.
        values: (depth, column).
        across: the columns.
        bounds: low and high, of the same shape.
        width: "one" column (3.25 in) or "two" (6.75 in).
    """
    dim = palette.depth_dim(name)
    first = 1 if name.startswith("cosine") else 0  # block 0 has no neighbour below it
    names = palette.depth_names(ds, dim)[first:]
    cells = values[first:]
    low, high = (end[first:] for end in bounds) if bounds else (None, None)
    blocks = tuple(float(block) for block in palette.depth_blocks(ds, dim)[first:])
    row = ("block ", Field.ROW) if dim == "block" else (Field.ROW,)
    words = across.title.split(" (")[0]
    panel = Panel(
        x=across,
        y=Axis(
            title=f"{dim} (deeper upwards)",
            names=names,
            ticks=palette.thinned(len(names), 12 if width == "one" else 16),
            room=max(inches(width) / 4, 1.05),
            link=Link(dim="block", values=blocks),
        ),
        cells=Cells(
            values=cells,
            low=low,
            high=high,
            hover=(row, (f"{words} ", Field.COLUMN), (Field.VALUE,)),
        ),
    )
    return Figure(
        panels=[panel],
        paper=Paper(width=width, height=2.5 if width == "one" else 3.2),
        screen=Screen(room=420),
        says=f"{VARIABLES[name].title} by {dim} and {words}.",
        scales=[Scale(label=palette.axis_label(name), colours="mako_r", values=cells)],
        notes=map_notes(cells),
        lettered=False,
        last=int(ds["block"].values[-1] if "block" in ds.coords else blocks[-1]),
    )


def noise_axis(ds: xr.Dataset, title: str = palette.NOISE, *, most: int = 5) -> Axis:
    """Return an x axis whose columns are the noise levels, about ``most`` of them labelled."""
    names = palette.levels(ds)
    values = tuple(float(f"{level:.12g}") for level in ds["noise_level"].values)
    return Axis(
        title=title,
        names=names,
        ticks=palette.evenly(len(names), most),
        link=Link(dim="noise_level", values=values),
    )


def lacks(ds: xr.Dataset, name: str) -> str:
    """Say why there is nothing to draw; empty where there is something.

    Raises:
        UsageError: as ``heatmap``.
    """
    palette.depth_dim(name)
    return "" if np.isfinite(ds[name].values).any() else f"{name!r} was measured nowhere"
