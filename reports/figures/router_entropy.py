"""Over how many sources a router spreads its weights, for print."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dar_probe.errors import UsageError
from dar_probe.reports.draw import matplotlib
from dar_probe.reports.style import readers, source_maps, text_metrics
from dar_probe.results import metrics

NO_ROUTER = "there is no router, so routes have no spread to draw"
GREY = "#777777"
NOTE = (
    "H: entropy of |w| / sum |w| over the sources offered, per token, then averaged over tokens, "
    "samples and noise levels. Grey, in the dashes of each kind: the bound, all sources offered "
    "weighted alike. The head follows the last block."
)


def spread(ds: xr.Dataset, *, kind: str | None = None, width: matplotlib.Width = "two") -> Figure:
    """Draw routing entropy H and the effective number of sources exp(H) over reader depth.

    One line for each kind of reader, with 95 % bootstrap intervals over samples, against the
    number of sources offered.

    Args:
        ds: an analysis.
        kind: only readers of this kind, such as "attention".
        width: "one" column (3.25 in, panels stacked) or "two" (6.75 in, side by side).

    Raises:
        UsageError: there is no router, no reader is of this kind, another width.
    """
    inches = matplotlib.inches(width)
    if lacks(ds):
        raise UsageError(lacks(ds))
    groups = readers.kinds(ds, kind)
    offered = np.isfinite(ds["route"].values).any(axis=(0, 1)).sum(axis=1).astype(float)
    offered[offered == 0] = np.nan
    profile = metrics.profile(ds, "route_entropy")
    entropy = [profile[key].values for key in ("value", "low", "high")]
    panels = (
        ("(a) routing entropy", "H (nat)", entropy, np.log(offered)),
        ("(b) effective number of sources", "exp(H)", [np.exp(part) for part in entropy], offered),
    )
    lines: list[Line2D] = []
    with matplotlib.paper():
        stacked = width == "one"
        figure = matplotlib.figure(inches, 3.4 if stacked else 2.1)
        axes = figure.subplots(2, 1) if stacked else figure.subplots(1, 2)
        for axis, (title, label, parts, bound) in zip(axes, panels, strict=True):
            lines = readers.draw(axis, groups, *parts)
            for group, line in zip(groups, list(lines), strict=True):
                (grey,) = axis.plot(group.blocks, bound[group.at], color=GREY, linewidth=0.9)
                grey.set_linestyle(line.get_linestyle())
                if len(group.at) == 1:
                    grey.set(marker="_", markersize=6)
            matplotlib.value_axis(axis, np.concatenate([*parts, bound]), may_log=False)
            axis.set_title(title)
            axis.set_ylabel(label)
            readers.block_axis(axis, ds)
            if stacked and axis is axes[0]:
                axis.set_xlabel("")
        names = [group.name for group in groups]
        bound_line = Line2D([], [], color=GREY, linewidth=0.9)
        text_metrics.legend(
            figure,
            [*lines, bound_line],
            [*names, "offered"],
            bands=bool(np.isfinite(entropy[1]).any()),
        )
        text_metrics.note(figure, [NOTE])
    return figure


def lacks(ds: xr.Dataset) -> str:
    """Say why there is nothing to draw; empty where there is something."""
    known = np.isfinite(ds["route_entropy"].values).any()
    return "" if known and source_maps.has_router(ds) else NO_ROUTER
