"""How well the noise level is decoded from what the readers read, for print."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from dar_probe.errors import UsageError
from dar_probe.reports.draw import matplotlib
from dar_probe.reports.style import readers, text_metrics
from dar_probe.results import metrics

NOTHING = "the noise level was not decoded: that takes two noise levels and two samples"
NOTE = (
    "R2 of ridge regression on the token mean of what a sublayer reads, on samples that were not "
    "fitted: 1 is exact, 0 no better than the mean level. The head follows the last block."
)


def decodability(
    ds: xr.Dataset, *, kind: str | None = None, width: matplotlib.Width = "two"
) -> Figure:
    """Draw the R2 with which the noise level is decoded from what each reader reads, over depth.

    One line for each kind of reader, with 95 % bootstrap intervals over samples.

    Args:
        ds: an analysis.
        kind: only readers of this kind, such as "attention".
        width: "one" column (3.25 in) or "two" (6.75 in).

    Raises:
        UsageError: nothing was decoded, no reader is of this kind, another width.
    """
    inches = matplotlib.inches(width)
    if lacks(ds):
        raise UsageError(lacks(ds))
    groups = readers.kinds(ds, kind)
    profile = metrics.profile(ds, "decodability")
    value, low, high = (profile[key].values for key in ("value", "low", "high"))
    with matplotlib.paper():
        figure = matplotlib.figure(inches, 2.0)
        axis = figure.subplots()
        lines = readers.draw(axis, groups, value, low, high)
        matplotlib.value_axis(axis, np.concatenate([value, low, high]), may_log=False)
        axis.set_title("noise level decoded from what is read")
        axis.set_ylabel("R2")
        readers.block_axis(axis, ds)
        text_metrics.legend(
            figure, lines, [group.name for group in groups], bands=bool(np.isfinite(low).any())
        )
        text_metrics.note(figure, [NOTE])
    return figure


def lacks(ds: xr.Dataset) -> str:
    """Say why there is nothing to draw; empty where there is something."""
    return "" if np.isfinite(ds["decodability"].values).any() else NOTHING
