"""Distributions of printed panels, by seaborn."""

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from dar_probe.reports.figures.description import Panel, drawn
from dar_probe.reports.style import palette

WIDTH = 0.8  # of an outline, where the next one stands 1 away


def draw_distributions(axis: Axes, panel: Panel) -> None:
    """Draw the outline of each distribution, as wide as the others, with its quartiles.

    Nothing is drawn beyond the smallest and the largest value. On an axis that will be logarithmic
    the outline is that of the logarithms.
    """
    log = panel.y.may_log and palette.spans(drawn(panel), 5)
    for one in panel.distributions:
        values = one.values[np.isfinite(one.values)]
        if values.size:
            sns.violinplot(
                x=np.full(values.size, one.x), y=values, ax=axis, color=one.colour,
                cut=0, inner="quart", width=WIDTH, linewidth=0.6, saturation=1, alpha=0.55,
                native_scale=True, log_scale=(False, log),
            )  # fmt: skip
    axis.set(xlabel="", ylabel="")
