"""Reader x source maps for the screen: one noise level at a time, and one reader over all."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.reports.draw import plotly
from dar_probe.reports.figures import interactive
from dar_probe.reports.style import axis_links, palette, source_maps


def matrix(ds: xr.Dataset, every: Sequence[source_maps.SourceMap] | None = None) -> go.Figure:
    """Draw reader x source maps of importance, and of routes where there is a router.

    The figure shows the first noise level; all levels lie in ``layout.meta.frames``, from which
    the page's slider takes them.

    Args:
        ds: an analysis.
        every: what ``maps.sublayer_maps`` gave for it; left out, it is asked.

    Raises:
        UsageError: nothing to draw.
    """
    rows = _rows(ds, every)
    readers = plotly.unique(palette.depth_names(ds, "reader"))
    offered = plotly.unique(palette.depth_names(ds, "source"))
    last = int(ds["block"].values[-1])
    homes = {dim: ("block", palette.depth_blocks(ds, dim)) for dim in ("reader", "source")}
    drawn = plotly.figure()
    drawn.update_layout(margin={"t": 30})
    for at, shown in enumerate(rows):
        every_mark = shown.marked.values
        dot, dots = plotly.dots(drawn, at, every_mark[0], other=bool(every_mark.any()))
        drawn.add_heatmap(
            z=shown.values.values[0].astype(np.float32),
            x=offered,
            y=readers,
            meta=palette.levels(ds)[0],
            hovertemplate="%{y} reads %{x}<br>noise level %{meta}"
            f"<br>{shown.quantity} %{{z:.3f}}{dot}<extra></extra>",
            coloraxis=plotly.numbered("coloraxis", at),
            hoverongaps=False,
            **dots,
            **plotly.axes(at),
        )
        plotly.title(drawn, at, f"({'ab'[at]}) {shown.quantity}")
        words = ("source (deeper to the right)", "reader" if at == 0 else "")
        plotly.map_axes(drawn, at, offered, readers, words)
        axis_links.link(drawn, at, last, x=homes["source"], y=homes["reader"])
        scale = np.concatenate([np.zeros(1), shown.values.values.ravel()])
        plotly.colour_axis(drawn, at, scale, shown.colours, shown.label)
    drawn.update_layout(meta={**drawn.layout.meta, "frames": _frames(ds, rows)})
    bars = [[at] for at in range(len(rows))]
    return plotly.placed(
        drawn,
        len(rows),
        columns=len(rows),
        row=460,
        room=900 if len(rows) > 1 else 680,
        gap=0.3,
        bars=bars,
        names_across=True,
    )


def reader(
    ds: xr.Dataset,
    every: Sequence[source_maps.SourceMap] | None = None,
    *,
    position: int | None = None,
) -> go.Figure:
    """Draw where one reader reads from over the noise levels: source x noise level.

    The page's script draws any other reader in its place, from the maps of ``matrix``.

    Args:
        ds: an analysis.
        every: what ``maps.sublayer_maps`` gave for it; left out, it is asked.
        position: of the reader; left out, the last one but the head that has many sources.

    Raises:
        UsageError: nothing to draw.
    """
    rows = _rows(ds, every)
    at_reader = first_reader(rows) if position is None else position
    known = [np.isfinite(row.values.values[:, at_reader]).any(axis=0) for row in rows]
    offered = np.flatnonzero(np.any(known, axis=0))
    names = plotly.unique(palette.depth_names(ds, "source"))
    blocks = palette.depth_blocks(ds, "source")
    up = [names[at] for at in offered]
    drawn = plotly.figure()
    drawn.update_layout(margin={"t": 30})
    for at, shown in enumerate(rows):
        values = shown.values.values[:, at_reader][:, offered].T
        marked = shown.marked.values[:, at_reader][:, offered].T
        dot, dots = plotly.dots(drawn, at, marked, other=bool(shown.marked.values.any()))
        drawn.add_heatmap(
            z=values.astype(np.float32),
            x=palette.levels(ds),
            y=up,
            hovertemplate=f"reads %{{y}}<br>noise level %{{x}}<br>{shown.quantity} %{{z:.3f}}"
            f"{dot}<extra></extra>",
            coloraxis=plotly.numbered("coloraxis", at),
            hoverongaps=False,
            **dots,
            **plotly.axes(at),
        )
        plotly.title(drawn, at, f"({'ab'[at]}) {shown.quantity}")
        words = ("noise level", "source" if at == 0 else "")
        plotly.map_axes(drawn, at, palette.levels(ds), up, words)
        linked = ("block", [blocks[at] for at in offered])
        last = int(ds["block"].values[-1])
        axis_links.link(drawn, at, last, x=interactive.noise_axis(ds), y=linked)
        scale = np.concatenate([np.zeros(1), values.ravel()])
        plotly.colour_axis(drawn, at, scale, shown.colours, shown.label)
    drawn.update_layout(meta={**drawn.layout.meta, "reader": at_reader})
    bars = [[at] for at in range(len(rows))]
    return plotly.placed(drawn, len(rows), columns=len(rows), row=400, room=680, gap=0.3, bars=bars)


def first_reader(every: Sequence[source_maps.SourceMap]) -> int:
    """Return the position of the reader that is shown at first: offered most, the head aside."""
    count = np.isfinite(every[0].values.values).any(axis=0).sum(axis=1)
    inside = count[:-1] if count[:-1].any() else count
    return int(np.flatnonzero(inside == inside.max())[-1])


def _rows(
    ds: xr.Dataset, every: Sequence[source_maps.SourceMap] | None
) -> Sequence[source_maps.SourceMap]:
    rows = source_maps.sublayer_maps(ds) if every is None else every
    if not rows:
        raise UsageError(source_maps.NOTHING)
    return rows


def _frames(ds: xr.Dataset, rows: Sequence[source_maps.SourceMap]) -> dict[str, Any]:
    """Return every level of every map, as bytes: little-endian float32, and one bit per dot."""
    return {
        "levels": palette.levels(ds),
        "values": interactive.noise_axis(ds)[1],
        "dot": plotly.DOT,
        "maps": [
            {
                "quantity": row.quantity,
                "z": _text(row.values.values.astype("<f4")),
                "marks": _text(np.packbits(row.marked.values)) if row.marked.values.any() else "",
            }
            for row in rows
        ],
    }


def _text(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")
