"""What a figure shows, said with its main numbers to those who do not see it."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from dar_probe.files.text import decimal
from dar_probe.reports.figures import reader_maps
from dar_probe.reports.figures.description import Array, Figure
from dar_probe.reports.figures.trajectory import Step
from dar_probe.reports.style import palette, source_maps
from dar_probe.results import metrics
from dar_probe.results.symptoms import SYMPTOMS


def depth(ds: xr.Dataset) -> str:
    """Describe the lines over depth."""
    block = ds["block"].values
    parts = [
        _line(panel.title, block, metrics.profile(ds, panel.variable, resamples=1))
        for panel in palette.PANELS
    ]
    return f"Three line charts over the block number. {' '.join(parts)}"


def heatmap(ds: xr.Dataset, name: str) -> str:
    """Describe one variable over depth and noise level."""
    dim = palette.depth_dim(name)
    rows = palette.depth_names(ds, dim)
    if dim == "block":
        rows = [f"block {row}" for row in rows]
    return of_map(palette.axis_label(name), metrics.over_noise(ds, name).values, rows, _levels(ds))


def sources(ds: xr.Dataset, rows: Sequence[source_maps.SourceMap]) -> str:
    """Describe what a shallow and a deep block take from which block, by its block maps."""
    parts = []
    for row in rows:
        for place in source_maps.locations(rows[0].values):
            shown = row.values.isel(reader=place.position, source_block=slice(len(place.names)))
            what = f"{row.quantity}, {place.title}"
            parts.append(of_map(what, shown.values.T, place.names, _levels(ds)))
    return " ".join(parts)


def every_reader(ds: xr.Dataset, every: Sequence[source_maps.SourceMap]) -> str:
    """Describe the reader x source maps ``every``."""
    names = [f"reader {name}" for name in palette.depth_names(ds, "reader")]
    across = [f"source {name}" for name in palette.depth_names(ds, "source")]
    parts = []
    for row in every:
        for level in dict.fromkeys((0, -1)):
            what = f"{row.quantity} at {_levels(ds)[level]}"
            parts.append(of_map(what, row.values.values[level], names, across))
    return " ".join(parts)


def reader(ds: xr.Dataset, every: Sequence[source_maps.SourceMap]) -> str:
    """Describe the maps of the reader that is shown at first."""
    at = reader_maps.first_reader(every)
    name = palette.depth_names(ds, "reader")[at]
    across = palette.depth_names(ds, "source")
    parts = []
    for row in every:
        what = f"{row.quantity} of the sources of {name}"
        parts.append(of_map(what, row.values.values[:, at].T, across, _levels(ds)))
    return " ".join(parts)


def decodability(ds: xr.Dataset) -> str:
    """Describe with which R2 the noise level is decoded over depth."""
    profile = metrics.profile(ds, "decodability", resamples=1)
    readers = palette.depth_names(ds, "reader")
    return f"Line chart over the readers. {_line('R2', readers, profile)}"


def steps(found: Sequence[Step]) -> str:
    """Describe the symptoms over training steps: what ``metrics.means`` gave for each."""
    parts = []
    for name in SYMPTOMS:
        ends = [
            f"{decimal(numbers[name].value)} at step {step:,}"
            for step, numbers in (found[0], found[-1])
        ]
        parts.append(f"{SYMPTOMS[name].title}: from {' to '.join(ends)}.")
    return f"Three line charts over the training steps. {' '.join(parts)}"


def step_map(pairs: Sequence[tuple[int, xr.Dataset]], name: str) -> str:
    """Describe one variable over training step and depth."""
    profiles = [metrics.profile(ds, name, resamples=1)["value"].values for _, ds in pairs]
    rows = [f"block {block}" for block in pairs[-1][1]["block"].values]
    across = [f"step {step:,}" for step, _ in pairs]
    return of_map(palette.axis_label(name), np.stack(profiles, axis=1), rows, across)


def lines(figure: Figure, *, along: str) -> str:
    """Say where every line of a figure starts and ends.

    Args:
        figure: its panels have curves.
        along: what the x axis counts, such as "block "; empty for a number alone.
    """
    tick = palette.tick
    return " ".join(
        f"{panel.title}, {palette.clean(curve.label)}: from {decimal(float(curve.value[0]))} at "
        f"{along}{tick(float(curve.x[0]))} to {decimal(float(curve.value[-1]))} at "
        f"{along}{tick(float(curve.x[-1]))}."
        for panel in figure.panels
        for curve in panel.curves
        if len(curve.x)
    )


def of_map(what: str, values: Array, rows: Sequence[str], across: Sequence[str]) -> str:
    """Describe a map by its smallest and its largest cell."""
    size = f"Map of {what}, {len(rows)} rows by {len(across)} columns"
    if not np.isfinite(values).any():
        return f"{size}: nothing was measurable."
    ends = []
    for word, find in (("smallest", np.nanargmin), ("largest", np.nanargmax)):
        row, column = (int(at) for at in np.unravel_index(find(values), values.shape))
        number = decimal(float(values[row, column]))
        ends.append(f"{word} {number} at {rows[row]}, {across[column]}")
    return f"{size}: {'; '.join(ends)}."


def _line(what: str, positions: Sequence[object] | Array, profile: xr.Dataset) -> str:
    value = profile["value"].values
    known = np.flatnonzero(np.isfinite(value))
    if "block" in profile.dims:
        known = known[known > 0]
    if not known.size:
        return f"{what}: not measurable."
    ends = [f"{decimal(float(value[at]))} at {positions[at]}" for at in (known[0], known[-1])]
    low, high = (decimal(float(end)) for end in (value[known].min(), value[known].max()))
    return f"{what}: from {' to '.join(ends)}, between {low} and {high}."


def _levels(ds: xr.Dataset) -> list[str]:
    return [f"noise level {level}" for level in palette.levels(ds)]
