"""The paper's figure 3: what a shallow and a deep block take from which block."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.reports.figures.arrangement import Paper, Screen, Width, inches
from dar_probe.reports.figures.description import (
    Array,
    Axis,
    Cells,
    Field,
    Figure,
    Hover,
    Link,
    Panel,
    Scale,
    map_notes,
)
from dar_probe.reports.figures.heatmap import noise_axis
from dar_probe.reports.style import palette, source_maps
from dar_probe.reports.style.source_maps import Location, SourceMap
from dar_probe.results import importance

LEFT_OUT_NOTE = "Blocks that the reader is not offered are left out."
SUMS_NOTE, FREE_NOTE = "each column sums to 1", "not normalised"


def sources(
    ds: xr.Dataset,
    shown: Sequence[SourceMap] | None = None,
    *,
    shallow: int | None = None,
    deep: int | None = None,
    width: Width = "two",
    gaps: bool = False,
) -> Figure:
    """Describe arXiv 2605.20708, figure 3: source x noise level at a shallow and at a deep block.

    Counterfactual importance from the gates, with a dot where a gate has a consistent sign (see
    ``importance.block_below_null``), and, only where there is a router, the routes. The two are
    different quantities and have their own colour scales.

    Args:
        ds: an analysis.
        shown: what ``source_maps.block_maps`` gave for it; left out, it is asked.
        shallow: a block number, B+1 for the head; left out, about B/4.
        deep: the same, about 3B/4.
        width: "one" column (3.25 in) or "two" (6.75 in).
        gaps: whether rows are all source blocks, also those that the reader is not offered.

    Raises:
        UsageError: a block that has no reader, nothing to draw, another width.
    """
    inches(width)
    shown = source_maps.block_maps(ds) if shown is None else shown
    if not shown:
        raise UsageError(source_maps.NOTHING)
    places = source_maps.locations(shown[0].values, shallow, deep)
    beside = len(shown) > 1  # importance beside routes; alone, shallow beside deep
    across = len(shown) if beside else 1 if width == "one" else len(places)
    down = len(shown) * len(places) // across
    rows = [_rows(shown, place, gaps=gaps) for place in places]
    narrow = width == "one" and across > 1
    panels: list[Panel] = []
    scales, notes = [], []
    for at, found in enumerate(shown):
        own = [
            _panel(ds, found, place, kept, at, width=width, narrow=narrow)
            for place, kept in zip(places, rows, strict=True)
        ]
        panels += own
        every = np.concatenate([panel.cells.values.ravel() for panel in own if panel.cells])
        scales.append(
            Scale(label=found.label, colours=found.colours, values=every, share=True, below=beside)
        )
        notes += _notes(ds, found, own, places)
        notes += [text for text in map_notes(every) if text not in notes]
    if any(len(kept) < len(place.names) for kept, place in zip(rows, places, strict=True)):
        notes.append(LEFT_OUT_NOTE)
    return Figure(
        panels=panels,
        paper=Paper(
            width=width,
            height=0.55 + down * (1.4 if width == "one" else 1.65),
            across=across,
            downwards=beside,
        ),
        says="What a shallow and a deep block read: source block by noise level.",
        screen=Screen(columns=len(places), row=230, room=680, gap=0.12),
        scales=scales,
        notes=[
            "Source block 0 is the embedding.",
            *([palette.NOISE_NOTE] if narrow else []),
            *notes,
        ],
        last=int(ds["block"].values[-1]),
    )


def lacks(ds: xr.Dataset) -> str:
    """Say why there is nothing to draw; empty where there is something."""
    return source_maps.lacks(ds, importance.block_importance(ds))


def _rows(shown: Sequence[SourceMap], place: Location, *, gaps: bool) -> list[int]:
    """Return the source blocks that some map knows; all of them where none does."""
    known = [
        np.isfinite(found.values.values[:, place.position, : len(place.names)]).any(axis=0)
        for found in shown
    ]
    rows = np.flatnonzero(np.any(known, axis=0)).tolist()
    return list(range(len(place.names))) if gaps or not rows else rows


def _panel(
    ds: xr.Dataset,
    found: SourceMap,
    place: Location,
    rows: list[int],
    scale: int,
    *,
    width: Width,
    narrow: bool,
) -> Panel:
    """Describe one quantity at one reader.

    Args:
        ds: an analysis.
        found: the quantity.
        place: the reader.
        rows: its source blocks.
        scale: the number of the quantity's colour scale.
        width: of the figure.
        narrow: whether the panel shares one printed column with another.
    """
    values, marked = (
        array.isel(reader=place.position, source_block=rows).values.T
        for array in (found.values, found.marked)
    )
    labels = [str(row) if row < place.block else place.names[row] for row in rows]
    fused = np.flatnonzero(np.array(rows) >= place.block).tolist()
    ticks = sorted({*palette.thinned(len(rows), 8), *fused})
    where = place.title.removesuffix(place.name).rstrip(": ") if narrow else ""
    even = f"an even split over {place.sources} sources is {1 / max(place.sources, 1):.3f}"
    hover: Hover = (
        (f"{place.name} reads ", Field.ROW),
        ("noise level ", Field.COLUMN),
        (f"{found.quantity} ", Field.VALUE),
        (even,),
    )
    blocks = tuple(float(block) for block in found.values["source_block"].values[rows])
    lead = {"two": f"{found.quantity}, ", "one": ""}[width]  # a colour bar names it already
    return Panel(
        title=f"{found.quantity}\n" if narrow else lead,
        subject=place.name if narrow else place.title,  # there is no room for "shallow"
        x=noise_axis(ds, "noise level" if narrow else palette.NOISE, most=3 if narrow else 5),
        y=Axis(
            title=f"{where}\nsource block".strip(),
            names=[place.names[row] for row in rows],
            ticks=ticks,
            labels=[labels[at] for at in ticks],
            link=Link(dim="block", values=blocks),
        ),
        cells=Cells(values=values, scale=scale, hover=hover, marked=marked),
    )


def _notes(
    ds: xr.Dataset, found: SourceMap, panels: Sequence[Panel], places: Sequence[Location]
) -> list[str]:
    if found.quantity == "importance":
        halves = min(place.sources for place in places) < 3
        notes = [palette.NOTES["importance"], palette.dot_note(ds)]
        return [*notes, palette.HALVES_NOTE] if halves else notes
    cells: list[Array] = [panel.cells.values for panel in panels if panel.cells]
    sums = np.concatenate([np.nansum(values, axis=0) for values in cells])
    ending = SUMS_NOTE if np.allclose(sums, 1, atol=1e-3) else FREE_NOTE
    return [palette.NOTES["route"].format(ending)]
