"""The paper's figure 3, for print: what a shallow and a deep block take from which block."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dar_probe.errors import UsageError
from dar_probe.reports.draw import matplotlib
from dar_probe.reports.style import palette, source_maps, text_metrics
from dar_probe.results import importance

Array = npt.NDArray[np.floating]

LEFT_OUT_NOTE = "Blocks that the reader is not offered are left out."
SUMS_NOTE, FREE_NOTE = "each column sums to 1", "not normalised"


class Cells(NamedTuple):
    """One map: the source blocks that its reader is offered, (source, noise_level)."""

    values: Array
    marked: npt.NDArray[np.bool_]


def sources(
    ds: xr.Dataset,
    *,
    shallow: int | None = None,
    deep: int | None = None,
    width: matplotlib.Width = "two",
) -> Figure:
    """Draw arXiv 2605.20708, figure 3: source x noise level at a shallow and at a deep block.

    Counterfactual importance from the gates, with a dot in the cells of
    ``importance.block_below_null``, and beside it, only where there is a router, the routes. The
    two are different quantities and have their own colour scales. Rows are the source blocks
    that the reader is offered.

    Args:
        ds: an analysis.
        shallow: a block number, B+1 for the head; left out, about B/4.
        deep: the same, about 3B/4.
        width: "one" column (3.25 in) or "two" (6.75 in).

    Raises:
        UsageError: a block that has no reader, nothing to draw, another width.
    """
    inches = matplotlib.inches(width)
    shown = source_maps.block_maps(ds)
    if not shown:
        raise UsageError(source_maps.NOTHING)
    places = source_maps.locations(shown[0].values, shallow, deep)
    beside = len(shown) > 1  # importance beside routes; alone, shallow beside deep
    across = len(shown) if beside else 1 if width == "one" else len(places)
    narrow = width == "one" and across > 1
    down = len(shown) * len(places) // across
    kept = [_offered(shown, place) for place in places]
    with matplotlib.paper():
        figure = matplotlib.figure(inches, 0.55 + down * (1.4 if width == "one" else 1.65))
        grid = figure.subplots(down, across, squeeze=False)
        notes = []
        for column, found in enumerate(shown):
            cells = [_cells(found, place, rows) for place, rows in zip(places, kept, strict=True)]
            every = np.concatenate([cell.values.ravel() for cell in cells])
            norm = matplotlib.scale(every, from_zero=True)
            colours = matplotlib.colour_map(norm, found.colours)
            notes += _notes(ds, found, cells, places)
            notes += [text for text in matplotlib.map_notes(every, norm) if text not in notes]
            own = grid[:, column] if beside else grid.ravel()
            for at, (place, cell) in enumerate(zip(places, cells, strict=True)):
                axis = own[at]
                matplotlib.draw_map(axis, cell.values, norm, colours)
                matplotlib.draw_dots(axis, cell.marked, cell.values, norm, colours)
                matplotlib.level_ticks(axis, ds, 3 if narrow else 5)
                _source_ticks(axis, place, kept[at])
                letter = "abcd"[at * len(shown) + column]
                lead = _lead(letter, found.quantity, width, across)
                room = (inches - 0.8) / across - (
                    0 if narrow else text_metrics.text_width(lead, text_metrics.TITLE_SIZE)
                )
                title = place.name if narrow else place.title
                axis.set_title(
                    lead + text_metrics.fitted(title, room, text_metrics.TITLE_SIZE),
                    parse_math=False,
                )
                lowest = axis in grid[-1]
                axis.set_xlabel(("noise level" if narrow else palette.NOISE) if lowest else "")
                if axis in grid[:, 0]:  # a narrow title has no room for "shallow"
                    where = place.title.removesuffix(place.name).rstrip(": ") if narrow else ""
                    axis.set_ylabel(f"{where}\nsource block".strip())
            matplotlib.colour_bar(figure, list(own), norm, colours, found.label, below=beside)
        if any(len(rows) < len(place.names) for rows, place in zip(kept, places, strict=True)):
            notes.append(LEFT_OUT_NOTE)
        opening = ["Source block 0 is the embedding.", *([palette.NOISE_NOTE] if narrow else [])]
        text_metrics.note(figure, [*opening, *notes])
    return figure


def lacks(ds: xr.Dataset) -> str:
    """Say why there is nothing to draw; empty where there is something."""
    return source_maps.lacks(ds, importance.block_importance(ds))


def _lead(letter: str, quantity: str, width: matplotlib.Width, across: int) -> str:
    """Return what stands before the reader; in a narrow column the colour bar names a quantity."""
    if width == "two":
        return f"({letter}) {quantity}, "
    return f"({letter}) {quantity}\n" if across > 1 else f"({letter}) "


def _offered(shown: list[source_maps.SourceMap], place: source_maps.Location) -> list[int]:
    """Return the source blocks that some map knows; all of them where none does."""
    known = [
        np.isfinite(found.values.values[:, place.position, : len(place.names)]).any(axis=0)
        for found in shown
    ]
    rows = np.flatnonzero(np.any(known, axis=0)).tolist()
    return rows or list(range(len(place.names)))


def _cells(found: source_maps.SourceMap, place: source_maps.Location, rows: list[int]) -> Cells:
    arrays = (
        array.isel(reader=place.position, source_block=rows).values.T
        for array in (found.values, found.marked)
    )
    return Cells(*arrays)


def _notes(
    ds: xr.Dataset,
    found: source_maps.SourceMap,
    cells: list[Cells],
    places: list[source_maps.Location],
) -> list[str]:
    if found.quantity == "importance":
        halves = min(place.sources for place in places) < 3
        notes = [palette.NOTES["importance"], palette.dot_note(ds)]
        return [*notes, palette.HALVES_NOTE] if halves else notes
    sums = np.concatenate([np.nansum(cell.values, axis=0) for cell in cells])
    ending = SUMS_NOTE if np.allclose(sums, 1, atol=1e-3) else FREE_NOTE
    return [palette.NOTES["route"].format(ending)]


def _source_ticks(axis: Axes, place: source_maps.Location, rows: list[int]) -> None:
    names = [str(row) if row < place.block else place.names[row] for row in rows]
    at = {*palette.thinned(len(rows), 8), *np.flatnonzero(np.array(rows) >= place.block).tolist()}
    matplotlib.ticks(axis, "y", sorted(at), names)
