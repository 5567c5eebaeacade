"""The same figures for the screen: plotly, with names and values under the pointer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.reports.draw import plotly
from dar_probe.reports.style import axis_links, palette, source_maps
from dar_probe.reports.style.sample_band import Spread, middle
from dar_probe.results import metrics

Array = npt.NDArray[np.floating]

DASHES = {"solid": "solid", "dashed": "dash", "dashdot": "dashdot", "dotted": "dot"}


def dilution(analyses: Sequence[tuple[str, xr.Dataset]]) -> go.Figure:
    """Draw RMS, gradient RMS and neighbour cosine over depth, as ``figures.dilution``.

    Args:
        analyses: (name, dataset) pairs, one line each.
    """
    drawn = plotly.figure()
    colours = palette.colours([ds for _, ds in analyses])
    last = max(int(ds["block"].values[-1]) for _, ds in analyses)
    spread = Spread()
    for at, panel in enumerate(palette.PANELS):
        seen: list[Array] = []
        wide: list[Array] = []
        for line, (name, ds) in enumerate(analyses):
            profile = metrics.profile(ds, panel.variable).sel(block=slice(1, None))
            parts = (profile[key].values for key in ("block", "value", "low", "high"))
            block, value, low, high = parts
            seen += [value, low, high]
            shared = {**plotly.axes(at), "legendgroup": str(line)}
            if ds.sizes["sample"] > 1:
                ends = middle(ds, panel.variable)[:, 1:]
                wide += list(ends)
                spread.add(drawn, block, ends, colours[line], **shared)
            plotly.band(drawn, block, low, high, colours[line], **shared)
            drawn.add_scatter(
                x=block,
                y=value,
                name=plotly.text(name),
                customdata=intervals(low, high),
                hovertemplate="%{y:.4~g} %{customdata}",
                mode="lines+markers",
                line={"color": colours[line], "dash": DASHES[palette.DASHES[line % 4]]},
                marker={"size": 5},
                showlegend=at == 0,
                **shared,
            )
        plotly.title(drawn, at, f"({'abc'[at]}) {panel.title}")
        blocks = {"tickvals": palette.block_ticks(last), "range": [0.5, last + 0.5]}
        plotly.axis(drawn, "x", at, title={"text": "block", "standoff": 6}, **blocks)
        values = plotly.value_axis(np.concatenate(seen), panel.may_log)
        plotly.axis(drawn, "y", at, title={"text": panel.label, "standoff": 4}, **values)
        if values.get("type") == "log":
            spread.rescale(at, values, plotly.value_axis(np.concatenate(seen + wide), True))
        axis_links.link(drawn, at, last, x=("block", None))
    drawn.update_layout(hovermode="x unified", showlegend=True)
    if spread.traces:
        drawn.update_layout(meta={**drawn.layout.meta, "spread": spread.meta})
    return plotly.placed(drawn, 3, columns=3, row=240, room=760, gap=0.085)


def sources(
    ds: xr.Dataset,
    rows: Sequence[source_maps.SourceMap] | None = None,
    *,
    shallow: int | None = None,
    deep: int | None = None,
) -> go.Figure:
    """Draw what a shallow and a deep block take from which block, as ``figures.sources``.

    Args:
        ds: an analysis.
        rows: what ``maps.block_maps`` gave for it; left out, it is asked.
        shallow: a block number, B+1 for the head; left out, about B/4.
        deep: the same, about 3B/4.

    Raises:
        UsageError: a block that has no reader, or nothing to draw.
    """
    rows = source_maps.block_maps(ds) if rows is None else rows
    if not rows:
        raise UsageError(source_maps.NOTHING)
    places = source_maps.locations(rows[0].values, shallow, deep)
    last = int(ds["block"].values[-1])
    drawn = plotly.figure()
    drawn.update_layout(margin={"t": 30})
    for row, (quantity, label, colours, *arrays) in enumerate(rows):
        shown, marked = (
            [
                array.isel(reader=place.position, source_block=slice(0, len(place.names))).values.T
                for place in places
            ]
            for array in arrays
        )
        for column, (place, values) in enumerate(zip(places, shown, strict=True)):
            at = row * len(places) + column
            even = f"an even split over {place.sources} sources is {1 / max(place.sources, 1):.3f}"
            dot, dots = plotly.dots(drawn, at, marked[column])
            drawn.add_heatmap(
                z=values.astype(np.float32),
                x=palette.levels(ds),
                y=place.names,
                hovertemplate=f"{plotly.text(place.name)} reads %{{y}}<br>noise level %{{x}}"
                f"<br>{quantity} %{{z:.3f}}{dot}<br>{even}<extra></extra>",
                coloraxis=plotly.numbered("coloraxis", row),
                hoverongaps=False,
                **dots,
                **plotly.axes(at),
            )
            plotly.title(drawn, at, f"({'abcd'[at]}) {quantity}, {plotly.text(place.title)}")
            words = ("noise level", "source" if column == 0 else "")
            plotly.map_axes(drawn, at, palette.levels(ds), place.names, words)
            blocks = rows[0].values["source_block"].values[: len(place.names)].tolist()
            axis_links.link(drawn, at, last, x=noise_axis(ds), y=("block", blocks))
        every = np.concatenate([np.zeros(1), *(values.ravel() for values in shown)])
        plotly.colour_axis(drawn, row, every, colours, label)
    columns = len(places)
    bars = [range(row * columns, (row + 1) * columns) for row in range(len(rows))]
    return plotly.placed(
        drawn, columns * len(rows), columns=columns, row=230, room=680, gap=0.12, bars=bars
    )


def decodability(ds: xr.Dataset) -> go.Figure:
    """Draw with which R2 the noise level is decoded from what each reader reads, over depth.

    One line for each kind of reader; the head lies one block behind the last.
    """
    drawn = plotly.figure()
    profile = metrics.profile(ds, "decodability")
    kinds = [str(kind) for kind in ds["reader_kind"].values]
    names = palette.depth_names(ds, "reader")
    last = int(ds["block"].values[-1])
    for line, kind in enumerate(dict.fromkeys(kinds)):
        own = [at for at, other in enumerate(kinds) if other == kind]
        block = ds["reader_block"].values[own]
        value, low, high = (profile[key].values[own] for key in ("value", "low", "high"))
        shared = {**plotly.axes(0), "legendgroup": kind}
        colour = palette.OTHERS[line % len(palette.OTHERS)]
        if len(own) > 1:
            plotly.band(drawn, block, low, high, colour, **shared)
        drawn.add_scatter(
            x=block,
            y=value,
            name=plotly.text(kind.replace("_", " ")),
            text=[plotly.text(names[at]) for at in own],
            customdata=intervals(low, high),
            hovertemplate="%{text}<br>R2 %{y:.3f} %{customdata}<extra></extra>",
            mode="lines+markers" if len(own) > 1 else "markers",
            line={"color": colour, "dash": DASHES[palette.DASHES[line % 4]]},
            marker={"size": 5 if len(own) > 1 else 8},
            error_y=_whisker(value, low, high) if len(own) == 1 else None,
            showlegend=True,
            **shared,
        )
    ticks = palette.block_ticks(last)
    plotly.axis(
        drawn,
        "x",
        0,
        title={"text": "block of the reader", "standoff": 6},
        tickvals=ticks,
        range=[0.5, last + 1.5],
    )
    plotly.axis(drawn, "y", 0, title={"text": "R2", "standoff": 4}, nticks=6)
    axis_links.link(drawn, 0, last, x=("block", None))
    drawn.update_layout(showlegend=True)
    return plotly.placed(drawn, 1, columns=1, row=270)


def heatmap(ds: xr.Dataset, name: str) -> go.Figure:
    """Draw one variable over depth and noise level, as ``figures.heatmap``.

    Raises:
        UsageError: a variable that is unknown or has not exactly one depth dim.
    """
    palette.depth_dim(name)
    levels = range(ds.sizes["noise_level"])
    profiles = [metrics.profile(ds.isel(noise_level=[level]), name) for level in levels]
    return depth_map(ds, name, profiles, palette.levels(ds), "noise level", x=noise_axis(ds))


def depth_map(
    ds: xr.Dataset,
    name: str,
    profiles: Sequence[xr.Dataset],
    across: Sequence[str],
    words: str,
    **link: tuple[str, Sequence[float] | None],
) -> go.Figure:
    """Draw one column for each profile over depth.

    Args:
        ds: an analysis of the same depth, whose names the rows get.
        name: the variable.
        profiles: what ``metrics.profile`` gave.
        across: the name of every column.
        words: what the columns are.
        link: what the x axis runs over, if the page links it.
    """
    dim = palette.depth_dim(name)
    first = 1 if name.startswith("cosine") else 0  # block 0 has no neighbour below it
    value, low, high = (
        np.stack([profile[key].values for profile in profiles], axis=1)[first:]
        for key in ("value", "low", "high")
    )
    names = plotly.unique(palette.depth_names(ds, dim))[first:]
    if dim == "block":
        names = [f"block {name}" for name in names]
    hover = [
        [f"{palette.number(v, 4)} {interval}" for v, interval in zip(row, bounds, strict=True)]
        for row, bounds in zip(value, map(intervals, low, high), strict=True)
    ]
    log = palette.spans(value, 20)
    drawn = plotly.figure()
    drawn.update_layout(margin={"t": 30})
    drawn.add_heatmap(
        z=(np.log10(value) if log else value).astype(np.float32),
        x=list(across),
        y=names,
        customdata=hover,
        hovertemplate=f"%{{y}}<br>{words} %{{x}}<br>%{{customdata}}<extra></extra>",
        coloraxis="coloraxis",
        hoverongaps=False,
        **plotly.axes(0),
    )
    plotly.map_axes(drawn, 0, across, names, (words, ""))
    blocks = palette.depth_blocks(ds, dim)[first:]
    axis_links.link(drawn, 0, int(ds["block"].values[-1]), **link, y=("block", blocks))
    plotly.title(drawn, 0, palette.axis_label(name))
    plotly.colour_axis(drawn, 0, value, "mako_r", "", log=log)
    return plotly.placed(drawn, 1, columns=1, row=270, bars=[[0]])


def noise_axis(ds: xr.Dataset) -> tuple[str, list[float]]:
    """Return what ``linking.link`` takes for an axis over the noise levels."""
    return "noise_level", [float(f"{level:.12g}") for level in ds["noise_level"].values]


def _whisker(value: Array, low: Array, high: Array) -> dict[str, Any]:
    """Return the interval of a line's only point, which has no band."""
    return {"array": high - value, "arrayminus": value - low, "thickness": 1.5, "width": 3}


def intervals(low: Array, high: Array) -> list[str]:
    """Return "[low, high]" for every position, empty where there is no interval."""
    return [
        f"[{palette.number(a, 4)}, {palette.number(b, 4)}]"
        if np.isfinite(a) and np.isfinite(b)
        else ""
        for a, b in zip(low, high, strict=True)
    ]
