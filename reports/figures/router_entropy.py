"""Over how many sources a router spreads its weights."""

import numpy as np
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.reports.figures.arrangement import Paper, Screen, Width
from dar_probe.reports.figures.decodability import by_kind
from dar_probe.reports.figures.description import Axis, Curve, Figure, Panel
from dar_probe.reports.figures.dilution import block_axis
from dar_probe.reports.style import readers, source_maps
from dar_probe.results import metrics

NO_ROUTER = "there is no router, so routes have no spread to draw"
GREY = "#777777"
NOTE = (
    "H: entropy of |w| / sum |w| over the sources offered, per token, then averaged over tokens, "
    "samples and noise levels. Grey, in the dashes of each kind: the bound, all sources offered "
    "weighted alike. The head follows the last block."
)


def router_entropy(ds: xr.Dataset, *, kind: str | None = None, width: Width = "two") -> Figure:
    """Describe routing entropy H and the effective number of sources exp(H) over reader depth.

    One line for each kind of reader, with 95 % bootstrap intervals over samples, against the
    number of sources offered.

    Args:
        ds: an analysis.
        kind: only readers of this kind, such as "attention".
        width: "one" column (3.25 in, panels stacked) or "two" (6.75 in, side by side).

    Raises:
        UsageError: there is no router, no reader is of this kind, another width.
    """
    stacked = width == "one"
    paper = Paper(width=width, height=3.4 if stacked else 2.1, across=1 if stacked else 2)
    if lacks(ds):
        raise UsageError(lacks(ds))
    groups = readers.kinds(ds, kind)
    offered = np.isfinite(ds["route"].values).any(axis=(0, 1)).sum(axis=1).astype(float)
    offered[offered == 0] = np.nan
    profile = metrics.profile(ds, "route_entropy")
    entropy = [profile[key].values for key in ("value", "low", "high")]
    last = int(ds["block"].values[-1])
    unknown = np.full(len(offered), np.nan)
    panels = []
    for title, label, parts, bound in (
        ("routing entropy", "H (nat)", entropy, np.log(offered)),
        ("effective number of sources", "exp(H)", [np.exp(part) for part in entropy], offered),
    ):
        limits = [
            Curve(
                label="offered",
                colour=GREY,
                look=line,
                x=group.blocks,
                value=bound[group.at],
                low=unknown[group.at],
                high=unknown[group.at],
                marked=False,
            )
            for line, group in enumerate(groups)
        ]
        lowest = not stacked or bound is offered
        panels.append(
            Panel(
                title=title,
                x=block_axis(last, readers.LABEL if lowest else "", head=True),
                y=Axis(title=label, fitted=True),
                curves=[*by_kind(ds, groups, *parts), *limits],
            )
        )
    return Figure(
        panels=panels,
        paper=paper,
        says="Over how many sources the router spreads its weights, by the block that reads.",
        screen=Screen(columns=2, row=240, room=680, gap=0.1),
        notes=[NOTE],
        last=last,
    )


def lacks(ds: xr.Dataset) -> str:
    """Say why there is nothing to draw; empty where there is something."""
    known = np.isfinite(ds["route_entropy"].values).any()
    return "" if known and source_maps.has_router(ds) else NO_ROUTER
