"""Which reader takes how much of which source at one noise level."""

import numpy as np
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.reports.figures.arrangement import Paper, Screen, Width, inches
from dar_probe.reports.figures.description import Array, Axis, Cells, Field, Figure, Panel, Scale
from dar_probe.reports.style import palette, readers, source_maps
from dar_probe.results import importance

NOTES = {
    "importance": "Importance: root mean square of the gate over samples; each row sums to 1.",
    "route": "Route: mean over samples and tokens{}.",
}
ORDER_NOTE = "Sources of a block stand in the order in which they run; source 0 is the embedding."
ROOT_NOTE = "Colours follow the square root."
LABELLED = 5  # readers from which a panel has room for a title of its axis


def matrix(
    ds: xr.Dataset,
    *,
    noise_level: float | None = None,
    kind: str | None = None,
    width: Width = "two",
) -> Figure:
    """Describe reader x source maps of importance, and of routes where there is a router.

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
    inches(width)
    level, taken = nearest(ds, noise_level)
    groups = readers.kinds(ds, kind)
    shown = source_maps.sublayer_maps(ds.isel(noise_level=[level]), dots=False)
    if not shown:
        raise UsageError(source_maps.NOTHING)
    across = len(shown) if width == "two" else 1
    rows = [len(group.at) for group in groups] * (len(shown) // across)  # all equally high
    panels = [_panel(ds, found, group, at) for at, found in enumerate(shown) for group in groups]
    notes = [taken, ROOT_NOTE]
    for found in shown:
        notes += _notes(found.quantity, found.values.values[0])
    gaps = any(np.isnan(found.values.values[0]).any() for found in shown)
    notes += [palette.GAP_NOTE] if gaps else []
    return Figure(
        panels=panels,
        paper=Paper(
            width=width,
            height=0.4 + sum(1.35 * row / max(rows) + 0.35 for row in rows),
            across=across,
            downwards=True,
            rows=rows,
            shared=True,
        ),
        says="What every reader reads: readers by sources at one noise level.",
        screen=Screen(columns=1, row=230, room=680),
        scales=[
            Scale(
                label=found.label,
                colours=found.colours,
                values=found.values.values[0],
                share=True,
                root=True,  # the shares of a deep reader are many and small
                below=across > 1,
            )
            for found in shown
        ],
        notes=[*notes, ORDER_NOTE],
        last=int(ds["block"].values[-1]),
    )


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


def _panel(ds: xr.Dataset, found: source_maps.SourceMap, group: readers.Kind, scale: int) -> Panel:
    """Describe one quantity of the readers of one kind."""
    last = int(ds["block"].values[-1])
    names = palette.depth_names(ds, "reader")
    up = "reader block" if len(group.at) >= LABELLED else ""
    return Panel(
        title=f"{found.quantity}, ",
        subject=group.name,
        x=_blocks(
            "source block", palette.depth_names(ds, "source"), ds["source_block"].values, last
        ),
        y=_blocks(up, [names[at] for at in group.at], group.blocks, last),
        cells=Cells(
            values=found.values.values[0][group.at],
            scale=scale,
            hover=((Field.ROW, " reads ", Field.COLUMN), (f"{found.quantity} ", Field.VALUE)),
        ),
    )


def _notes(quantity: str, values: Array) -> list[str]:
    if quantity == "importance":
        return [NOTES["importance"]]
    sums = np.nansum(values, axis=1)
    even = np.allclose(sums[sums != 0], 1, atol=1e-3)
    return [NOTES["route"].format("; each row sums to 1" if even else ", not normalised")]


def _blocks(title: str, names: list[str], blocks: Array, last: int) -> Axis:
    """Return an axis of sublayers, with a few blocks labelled at the first position of each."""
    found, first = np.unique(blocks, return_index=True)
    wanted = {0, *palette.block_ticks(last), last + 1}
    if 0 in found and 2 not in wanted:
        wanted -= {1}  # the labels 0 and 1 would touch
    kept = [int(at) for block, at in zip(found, first, strict=True) if block in wanted]
    labels = ["head" if blocks[at] > last else str(int(blocks[at])) for at in kept]
    return Axis(title=title, names=names, ticks=kept, labels=labels)
