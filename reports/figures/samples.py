"""How far the samples lie apart in the three symptoms, at some depths."""

import numpy as np
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.reports.figures.arrangement import Paper, Screen, Width
from dar_probe.reports.figures.description import Axis, Distribution, Figure, Panel
from dar_probe.reports.figures.dilution import LABEL
from dar_probe.reports.style import palette
from dar_probe.results import metrics

FEWEST = 8  # samples from which the outline of a distribution says something
SHAPE_NOTE = (
    "Outline: how the samples are distributed, each pooled over its noise levels. "
    "Lines: their quartiles."
)


def samples(ds: xr.Dataset, *, width: Width = "two") -> Figure:
    """Describe the distribution over samples of RMS, gradient RMS and neighbour cosine.

    A mean with a narrow interval can hide two kinds of samples; here they are seen.

    Args:
        ds: an analysis of 8 samples or more.
        width: "one" column (3.25 in, panels stacked) or "two" (6.75 in, side by side).

    Raises:
        UsageError: there are fewer samples, another width.
    """
    stacked = width == "one"
    paper = Paper(width=width, height=4.8 if stacked else 2.0, across=1 if stacked else 3)
    if said := lacks(ds):
        raise UsageError(said, hint=f"analyse with --samples {FEWEST} or more")
    colour = palette.colours([ds])[0]
    return Figure(
        panels=[
            _panel(ds, panel, colour, LABEL if panel is palette.PANELS[-1] or not stacked else "")
            for panel in palette.PANELS
        ],
        paper=paper,
        says="How far the samples lie apart in the three symptoms, at some blocks.",
        screen=Screen(columns=3, row=240, room=760, gap=0.085),
        notes=[SHAPE_NOTE],
    )


def lacks(ds: xr.Dataset) -> str:
    """Say why there is nothing to draw; empty where there is something."""
    count = ds.sizes["sample"]
    few = f"{count} samples show no distribution: it takes {FEWEST}"
    return few if count < FEWEST else ""


def _panel(ds: xr.Dataset, panel: palette.Panel, colour: str, label: str) -> Panel:
    blocks = palette.block_ticks(int(ds["block"].values[-1]))
    found = metrics.per_sample(ds, panel.variable).sel(block=blocks).transpose("block", "sample")
    return Panel(
        title=panel.title,
        x=Axis(
            title=label,
            names=[str(block) for block in blocks],
            ticks=range(len(blocks)),
            limits=(-0.6, len(blocks) - 0.4),
        ),
        y=Axis(title=panel.label, fitted=True, may_log=panel.may_log),
        distributions=[
            Distribution(name=f"block {block}", colour=colour, x=float(at), values=values)
            for at, (block, values) in enumerate(zip(blocks, np.asarray(found), strict=True))
        ],
    )
