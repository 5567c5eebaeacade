"""The paper's figures 2 and 3 and the depth x noise level heatmaps, for print."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dar_probe import metrics
from dar_probe.errors import UsageError
from dar_probe.reports import canvas, interventions, maps, style
from dar_probe.reports.canvas import save

__all__ = ["dilution", "heatmap", "save", "sources", "write_all"]

WIDTH = 7.0  # inches, the text width of a two-column paper


def dilution(analyses: Sequence[tuple[str, xr.Dataset]]) -> Figure:
    """Draw arXiv 2605.20708, figure 2: RMS, gradient RMS and neighbour cosine over depth.

    Args:
        analyses: (name, dataset) pairs, one line each; bands are 95 % bootstrap intervals over
            samples, left out where one sample gives none.
    """
    colours = style.colours([ds for _, ds in analyses])
    last = max(int(ds["block"].values[-1]) for _, ds in analyses)
    bands = False
    with canvas.paper():
        figure = canvas.figure(WIDTH, 2.6)
        axes = figure.subplots(1, 3)
        for letter, axis, panel in zip("abc", axes, style.PANELS, strict=True):
            seen = []
            for line, (_, ds) in enumerate(analyses):
                profile = metrics.profile(ds, panel.variable).sel(block=slice(1, None))
                value, low, high = (profile[key].values for key in ("value", "low", "high"))
                drawn = (profile["block"].values, value, low, high)
                canvas.draw_line(axis, drawn, colours[line], style.DASHES[line % 4])
                seen += [value, low, high]
                bands = bands or bool(np.isfinite(low).any())
            axis.set_title(f"({letter}) {panel.title}")
            axis.set(xlabel="block", ylabel=panel.label, xlim=(0.5, last + 0.5))
            axis.set_xticks(style.block_ticks(last))
            canvas.value_axis(axis, np.concatenate(seen), panel.may_log)
        _legend(figure, axes[0].get_lines(), [name for name, _ in analyses], bands)
        canvas.note(figure, [style.GRADIENT_NOTE] if _any_router(analyses) else [])
    return figure


def sources(ds: xr.Dataset, *, shallow: int | None = None, deep: int | None = None) -> Figure:
    """Draw arXiv 2605.20708, figure 3: what a shallow and a deep block take from which block.

    Top row: counterfactual importance from the gates, with a dot in the cells of
    ``importance.block_below_null``. Bottom row, only where there is a router:
    its routes. The two are different quantities and have their own colour scales.

    Args:
        ds: an analysis.
        shallow: a block number, B+1 for the head; left out, about B/4.
        deep: the same, about 3B/4.

    Raises:
        UsageError: a block that has no reader, or nothing to draw.
    """
    rows = maps.block_maps(ds)
    if not rows:
        raise UsageError(maps.NOTHING)
    places = maps.locations(rows[0].values, shallow, deep)
    notes = [style.NOTES[row.quantity] for row in rows]
    if rows[0].quantity == "importance":
        notes.insert(1, style.dot_note(ds))
    if min(place.sources for place in places) < 3:
        notes.append(style.HALVES_NOTE)
    with canvas.paper():
        figure = canvas.figure(WIDTH, 0.6 + 2.2 * len(rows))
        grid = figure.subplots(len(rows), len(places), squeeze=False)
        for row, (quantity, label, wanted, *arrays) in enumerate(rows):
            shown, marked = (
                [
                    array.isel(
                        reader=place.position, source_block=slice(0, len(place.names))
                    ).values.T
                    for place in places
                ]
                for array in arrays
            )
            every = np.concatenate([values.ravel() for values in shown])
            norm = canvas.scale(every, from_zero=True)
            colours = canvas.colour_map(norm, wanted)
            if np.isnan(every).any() and style.GAP_NOTE not in notes:
                notes.append(style.GAP_NOTE)
            for column, (place, values) in enumerate(zip(places, shown, strict=True)):
                axis = grid[row, column]
                canvas.draw_map(axis, values, norm, colours)
                canvas.draw_dots(axis, marked[column], values, norm, colours)
                _level_ticks(axis, ds)
                _source_ticks(axis, place)
                letter = "abcd"[row * len(places) + column]
                text = f"({letter}) {quantity}, {place.title}"
                axis.set_title(canvas.printable(text), parse_math=False)
                axis.set_xlabel(style.NOISE if row + 1 == len(rows) else "")
            grid[row, 0].set_ylabel("source block (0 = embedding)")
            canvas.colour_bar(figure, list(grid[row]), norm, colours, label)
        canvas.note(figure, notes)
    return figure


def heatmap(ds: xr.Dataset, name: str) -> Figure:
    """Draw one variable over depth and noise level, pooled over samples.

    The colour scale is logarithmic where all values are positive and span more than 20x.

    Raises:
        UsageError: a variable that is unknown or has not exactly one depth dim.
    """
    dim = style.depth_dim(name)
    values = metrics.over_noise(ds, name).values
    names = style.depth_names(ds, dim)
    if name.startswith("cosine"):  # block 0 has no neighbour below it
        values, names = values[1:], names[1:]
    with canvas.paper():
        figure = canvas.figure(4.4, 3.4)
        axis = figure.subplots()
        norm = canvas.scale(values)
        colours = canvas.colour_map(norm, "mako_r")
        canvas.draw_map(axis, values, norm, colours)
        _level_ticks(axis, ds)
        canvas.ticks(axis, "y", style.thinned(len(names), 15), names)
        axis.set_xlabel(style.NOISE)
        axis.set_ylabel(f"{dim} (deeper upwards)")
        canvas.colour_bar(figure, [axis], norm, colours, style.axis_label(name))
        canvas.note(figure, [style.GAP_NOTE] if np.isnan(values).any() else [])
    return figure


def write_all(ds: xr.Dataset, folder: Path, *, name: str) -> list[Path]:
    """Write every figure of one analysis as PNG (200 dpi) and PDF into ``folder``.

    Variables that were measured nowhere are skipped. Equal datasets give equal bytes.

    Args:
        ds: an analysis.
        folder: made if it is missing.
        name: what to call the analysis; drawn, never used in a file name.

    Returns:
        The paths written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    measured = [key for key in style.HEATMAPS if np.isfinite(ds[key].values).any()]
    paths = []
    stems = ["dilution", *(["sources"] if maps.block_maps(ds) else [])]
    stems += ["interventions"] if "ablation" in ds.dims else []
    for stem in [*stems, *(f"heatmap_{key}" for key in measured)]:
        if stem == "dilution":
            figure = dilution([(name, ds)])
        elif stem == "interventions":
            figure = interventions.figure(ds, name=name)
        else:
            figure = sources(ds) if stem == "sources" else heatmap(ds, stem[len("heatmap_") :])
            with canvas.paper():
                figure.suptitle(canvas.printable(name), parse_math=False, x=0.01, ha="left")
        for suffix in ("png", "pdf"):
            paths.append(folder / f"{stem}.{suffix}")
            save(figure, paths[-1])
            figure.set_layout_engine("none")  # keep the places that the first file has
        figure.clear()
    return paths


def _legend(figure: Figure, lines: Sequence[Line2D], names: Sequence[str], bands: bool) -> None:
    """Put one legend above the panels; it explains the bands where there are any."""
    handles: list[Line2D | Patch] = list(lines)
    labels = list(names)
    if bands:
        handles.append(Patch(facecolor="#333333", alpha=0.22, linewidth=0))
        labels.append("95 % interval over samples")
    canvas.legend(figure, handles, labels)


def _level_ticks(axis: Axes, ds: xr.Dataset) -> None:
    levels = style.levels(ds)
    canvas.ticks(axis, "x", style.spread(len(levels), 5), levels)


def _source_ticks(axis: Axes, place: maps.Location) -> None:
    numbers = [str(block) for block in range(place.block)]
    at, fusion = style.thinned(place.block, 8), place.names[place.block :]
    at += range(place.block, len(place.names))
    canvas.ticks(axis, "y", at, [*numbers, *fusion])


def _any_router(analyses: Sequence[tuple[str, xr.Dataset]]) -> bool:
    return any(maps.has_router(ds) for _, ds in analyses)
