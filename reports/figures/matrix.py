"""Which reader takes how much of which source at one noise level, for print."""

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure

from dar_probe.errors import UsageError
from dar_probe.reports.draw import matplotlib
from dar_probe.reports.style import palette, readers, source_maps, text_metrics
from dar_probe.results import importance

Array = npt.NDArray[np.floating]

NOTES = {
    "importance": "Importance: root mean square of the gate over samples; each row sums to 1.",
    "route": "Route: mean over samples and tokens{}.",
}
ORDER_NOTE = "Sources of a block stand in the order in which they run; source 0 is the embedding."
ROOT_NOTE = "Colours follow the square root."
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LEAST = 4  # rows that a panel is high, however few readers it has


def matrix(
    ds: xr.Dataset,
    *,
    noise_level: float | None = None,
    kind: str | None = None,
    width: matplotlib.Width = "two",
) -> Figure:
    """Draw reader x source maps of importance, and of routes where there is a router.

    Readers of one kind share a panel, so that what attention reads and what MLPs read stays
    apart. The figure says at which measured noise level it was taken.

    Args:
        ds: an analysis.
        noise_level: the nearest measured one is drawn; left out, the middle one.
        kind: only readers of this kind, such as "attention".
        width: "one" column (3.25 in, panels stacked) or "two" (6.75 in, routes beside importance).

    Raises:
        UsageError: nothing to draw, a noise level outside [0, 1], no reader of this kind, another
            width.
    """
    inches = matplotlib.inches(width)
    level, taken = nearest(ds, noise_level)
    groups = readers.kinds(ds, kind)
    shown = source_maps.sublayer_maps(ds.isel(noise_level=[level]), dots=False)
    if not shown:
        raise UsageError(source_maps.NOTHING)
    rows = [max(len(group.at), LEAST) for group in groups]
    across = len(shown) if width == "two" else 1
    down = len(groups) * len(shown) // across
    share = [1.35 * row / max(rows) + 0.35 for row in rows] * (down // len(groups))
    last = int(ds["block"].values[-1])
    notes = [taken, ROOT_NOTE]
    with matplotlib.paper():
        figure = matplotlib.figure(inches, 0.4 + sum(share))
        grid = figure.subplots(down, across, squeeze=False, height_ratios=share, sharex=True)
        for at, found in enumerate(shown):
            values = found.values.values[0]
            norm = _scale(values)
            colours = matplotlib.colour_map(norm, found.colours)
            notes += _notes(found.quantity, values)
            own = grid[:, at] if across > 1 else grid.ravel()[at * len(groups) :][: len(groups)]
            for row, (axis, group) in enumerate(zip(own, groups, strict=True)):
                matplotlib.draw_map(axis, values[group.at], norm, colours)
                place = row * len(shown) + at if across > 1 else at * len(groups) + row
                title = f"({LETTERS[place % 26]}) {found.quantity}, "
                room = inches / across - 1 - text_metrics.text_width(title, text_metrics.TITLE_SIZE)
                title += text_metrics.fitted(group.name, room, text_metrics.TITLE_SIZE)
                axis.set_title(title, parse_math=False)
                _block_ticks(axis, "y", group.blocks, last)
                _block_ticks(axis, "x", ds["source_block"].values, last)
                axis.tick_params(labelbottom=axis in grid[-1])
                axis.set_xlabel("source block" if axis in grid[-1] else "")
                if axis in grid[:, 0]:
                    axis.set_ylabel("reader block" if len(group.at) > LEAST else "")
            matplotlib.colour_bar(figure, list(own), norm, colours, found.label, below=across > 1)
        gaps = np.isnan(np.concatenate([found.values.values[0] for found in shown])).any()
        notes += [palette.GAP_NOTE] if gaps else []
        text_metrics.note(figure, [*notes, ORDER_NOTE])
    return figure


def lacks(ds: xr.Dataset, noise_level: float | None = None) -> str:
    """Say why there is nothing to draw; empty where there is something."""
    one = ds.isel(noise_level=[nearest(ds, noise_level)[0]])
    return source_maps.lacks(one, importance.importance(one))


def nearest(ds: xr.Dataset, wanted: float | None) -> tuple[int, str]:
    """Return the position of the measured noise level nearest to ``wanted``, and a sentence.

    Raises:
        UsageError: ``wanted`` lies outside [0, 1].
    """
    values = ds["noise_level"].values
    if wanted is None:
        at = (len(values) - 1) // 2
        return at, f"Noise level {palette.levels(ds)[at]} (0: data, 1: noise)."
    if not 0 <= wanted <= 1:
        raise UsageError(
            f"a noise level lies between 0 (data) and 1 (noise), not at {wanted}",
            hint=f"measured are {', '.join(palette.levels(ds))}",
        )
    at = int(np.abs(values - wanted).argmin())
    exact = abs(float(values[at]) - wanted) < 5e-4
    ending = "" if exact else f", the measured one nearest to {palette.tick(wanted)}"
    return at, f"Noise level {palette.levels(ds)[at]} (0: data, 1: noise){ending}."


def _scale(values: Array) -> Normalize:
    """Return square-root colours from zero: the shares of a deep reader are many and small."""
    linear = matplotlib.scale(values, from_zero=True)
    if linear.vmin == 0:
        return PowerNorm(0.5, 0, linear.vmax)
    return linear


def _notes(quantity: str, values: Array) -> list[str]:
    if quantity == "importance":
        return [NOTES["importance"]]
    sums = np.nansum(values, axis=1)
    even = np.allclose(sums[sums != 0], 1, atol=1e-3)
    return [NOTES["route"].format("; each row sums to 1" if even else ", not normalised")]


def _block_ticks(axis: Axes, which: str, blocks: Array, last: int) -> None:
    """Label a few blocks at the first position of each."""
    found, first = np.unique(blocks, return_index=True)
    wanted = {0, *palette.block_ticks(last), last + 1}
    if 0 in found and 2 not in wanted:
        wanted -= {1}  # the labels 0 and 1 would touch
    kept = [int(at) for block, at in zip(found, first, strict=True) if block in wanted]
    names = ["head" if block > last else str(int(block)) for block in blocks]
    matplotlib.ticks(axis, which, kept, names)
