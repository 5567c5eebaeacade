"""How well the noise level is decoded from what the readers read."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.reports.figures.arrangement import Paper, Screen, Width
from dar_probe.reports.figures.description import Array, Axis, Curve, Figure, Panel
from dar_probe.reports.figures.dilution import block_axis
from dar_probe.reports.style import palette, readers
from dar_probe.results import metrics

NOTHING = "the noise level was not decoded: that takes two noise levels and two samples"
NOTE = (
    "R2 of ridge regression on the token mean of what a sublayer reads, on samples that were not "
    "fitted: 1 is exact, 0 no better than the mean level. The head follows the last block."
)


def decodability(ds: xr.Dataset, *, kind: str | None = None, width: Width = "two") -> Figure:
    """Describe the R2 with which the noise level is decoded from what each reader reads.

    One line for each kind of reader, with 95 % bootstrap intervals over samples; the head lies
    one block behind the last.

    Args:
        ds: an analysis.
        kind: only readers of this kind, such as "attention".
        width: "one" column (3.25 in) or "two" (6.75 in).

    Raises:
        UsageError: nothing was decoded, no reader is of this kind, another width.
    """
    paper = Paper(width=width, height=2.0)
    if lacks(ds):
        raise UsageError(lacks(ds))
    groups = readers.kinds(ds, kind)
    profile = metrics.profile(ds, "decodability")
    value, low, high = (profile[key].values for key in ("value", "low", "high"))
    last = int(ds["block"].values[-1])
    panel = Panel(
        title="noise level decoded from what is read",
        x=block_axis(last, readers.LABEL, head=True),
        y=Axis(title="R2", fitted=True),
        curves=by_kind(ds, groups, value, low, high),
    )
    return Figure(
        panels=[panel],
        paper=paper,
        says="How well the noise level is decoded from what each sublayer reads.",
        screen=Screen(room=420),
        notes=[NOTE],
        lettered=False,
        last=last,
    )


def by_kind(
    ds: xr.Dataset, groups: Sequence[readers.Kind], value: Array, low: Array, high: Array
) -> list[Curve]:
    """Return one line for each kind over the blocks of its readers; arrays run over ``reader``."""
    names = palette.depth_names(ds, "reader")
    return [
        Curve(
            label=kind.name,
            colour=palette.OTHERS[line % len(palette.OTHERS)],
            look=line,
            x=kind.blocks,
            value=value[kind.at],
            low=low[kind.at],
            high=high[kind.at],
            names=[names[at] for at in kind.at],
        )
        for line, kind in enumerate(groups)
    ]


def lacks(ds: xr.Dataset) -> str:
    """Say why there is nothing to draw; empty where there is something."""
    return "" if np.isfinite(ds["decodability"].values).any() else NOTHING
