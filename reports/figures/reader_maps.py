"""Reader x source maps of which a page shows one noise level at a time, and one reader over all."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.reports.figures.arrangement import Paper, Screen
from dar_probe.reports.figures.description import (
    Axis,
    Cells,
    Field,
    Figure,
    Frames,
    Link,
    Panel,
    Scale,
    map_notes,
)
from dar_probe.reports.figures.heatmap import noise_axis
from dar_probe.reports.style import palette, source_maps
from dar_probe.reports.style.source_maps import SourceMap


def every_reader(ds: xr.Dataset, shown: Sequence[SourceMap] | None = None) -> Figure:
    """Describe reader x source maps of importance, and of routes where there is a router.

    The panels show the first noise level; ``frames`` has all of them, for the page's slider.

    Args:
        ds: an analysis.
        shown: what ``source_maps.sublayer_maps`` gave for it; left out, it is asked.

    Raises:
        UsageError: nothing to draw.
    """
    shown = _measured(ds, shown)
    levels = palette.levels(ds)
    panels = [
        Panel(
            title=found.quantity,
            x=_sublayers(ds, "source", "source (deeper to the right)"),
            y=_sublayers(ds, "reader", "reader"),
            cells=Cells(
                values=found.values.values[0],
                marked=found.marked.values[0],
                dotted=bool(found.marked.values.any()),
                scale=at,
                hover=(
                    (Field.ROW, " reads ", Field.COLUMN),
                    ("noise level ", Field.LEVEL),
                    (f"{found.quantity} ", Field.VALUE),
                ),
            ),
        )
        for at, found in enumerate(shown)
    ]
    frames = Frames(
        levels=levels,
        values=[float(f"{level:.12g}") for level in ds["noise_level"].values],
        maps=[(found.quantity, found.values.values, found.marked.values) for found in shown],
    )
    return Figure(
        panels=panels,
        paper=Paper(height=3.4, across=len(panels)),
        screen=Screen(
            columns=len(panels),
            row=460,
            room=900 if len(panels) > 1 else 680,
            gap=0.3,
            names_across=True,
        ),
        scales=[_scale(found, found.values.values) for found in shown],
        notes=[f"Noise level {levels[0]}.", *map_notes(shown[0].values.values[0])],
        last=int(ds["block"].values[-1]),
        frames=frames,
    )


def one_reader(
    ds: xr.Dataset, shown: Sequence[SourceMap] | None = None, *, position: int | None = None
) -> Figure:
    """Describe where one reader reads from over the noise levels: source x noise level.

    The page draws any other reader in its place, from the frames of ``every_reader``.

    Args:
        ds: an analysis.
        shown: what ``source_maps.sublayer_maps`` gave for it; left out, it is asked.
        position: of the reader; left out, the last one but the head that has many sources.

    Raises:
        UsageError: nothing to draw.
    """
    shown = _measured(ds, shown)
    reader = first_reader(shown) if position is None else position
    known = [np.isfinite(found.values.values[:, reader]).any(axis=0) for found in shown]
    offered = np.flatnonzero(np.any(known, axis=0))
    panels, scales = [], []
    for at, found in enumerate(shown):
        values = found.values.values[:, reader][:, offered].T
        hover = (
            ("reads ", Field.ROW),
            ("noise level ", Field.COLUMN),
            (f"{found.quantity} ", Field.VALUE),
        )
        marked = found.marked.values[:, reader][:, offered].T
        panels.append(
            Panel(
                title=found.quantity,
                x=noise_axis(ds, "noise level"),
                y=_sublayers(ds, "source", "source", offered.tolist()),
                cells=Cells(
                    values=values,
                    marked=marked,
                    dotted=bool(found.marked.values.any()),
                    scale=at,
                    hover=hover,
                ),
            )
        )
        scales.append(_scale(found, values))
    return Figure(
        panels=panels,
        paper=Paper(height=3.0, across=len(panels)),
        screen=Screen(columns=len(panels), row=400, room=680, gap=0.3),
        scales=scales,
        last=int(ds["block"].values[-1]),
        reader=reader,
    )


def first_reader(shown: Sequence[SourceMap]) -> int:
    """Return the position of the reader that is shown at first: offered most, the head aside."""
    count = np.isfinite(shown[0].values.values).any(axis=0).sum(axis=1)
    inside = count[:-1] if count[:-1].any() else count
    return int(np.flatnonzero(inside == inside.max())[-1])


def _measured(ds: xr.Dataset, shown: Sequence[SourceMap] | None) -> Sequence[SourceMap]:
    found = source_maps.sublayer_maps(ds) if shown is None else shown
    if not found:
        raise UsageError(source_maps.NOTHING)
    return found


def _sublayers(ds: xr.Dataset, dim: str, title: str, kept: list[int] | None = None) -> Axis:
    """Return an axis of all readers or sources, or of those at ``kept``."""
    names, blocks = palette.unique(palette.depth_names(ds, dim)), palette.depth_blocks(ds, dim)
    places = range(len(names)) if kept is None else kept
    link = Link(dim="block", values=tuple(float(blocks[at]) for at in places))
    own = [names[at] for at in places]
    return Axis(title=title, names=own, ticks=palette.thinned(len(own), 12), room=1.2, link=link)


def _scale(found: SourceMap, values: np.ndarray) -> Scale:
    return Scale(label=found.label, colours=found.colours, values=values, share=True)
