"""The paper's figure 2, for print: the three symptoms over the block index."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dar_probe.reports.draw import matplotlib
from dar_probe.reports.style import palette, source_maps, text_metrics
from dar_probe.results import metrics

LABEL = "block index"


def dilution(
    analyses: Sequence[tuple[str, xr.Dataset]], *, width: matplotlib.Width = "two"
) -> Figure:
    """Draw arXiv 2605.20708, figure 2: RMS, gradient RMS and neighbour cosine over depth.

    Args:
        analyses: (name, dataset) pairs, one line each, plain residuals blue and DAR orange; bands
            are 95 % bootstrap intervals over samples, left out where one sample gives none. The
            axis reaches to the deepest model.
        width: "one" column (3.25 in, panels stacked) or "two" (6.75 in, side by side).

    Raises:
        UsageError: another width.
    """
    inches = matplotlib.inches(width)
    colours = palette.colours([ds for _, ds in analyses])
    last = max(int(ds["block"].values[-1]) for _, ds in analyses)
    lines: list[Line2D] = []
    bands = False
    with matplotlib.paper():
        stacked = width == "one"
        figure = matplotlib.figure(inches, 4.8 if stacked else 2.0)
        axes = figure.subplots(3, 1) if stacked else figure.subplots(1, 3)
        for letter, axis, panel in zip("abc", axes, palette.PANELS, strict=True):
            seen, lines = [], []
            for line, (_, ds) in enumerate(analyses):
                profile = metrics.profile(ds, panel.variable).sel(block=slice(1, None))
                value, low, high = (profile[key].values for key in ("value", "low", "high"))
                drawn = (profile["block"].values, value, low, high)
                lines.append(matplotlib.draw_line(axis, drawn, colours[line], *palette.look(line)))
                seen += [value, low, high]
                bands = bands or bool(np.isfinite(low).any())
            axis.set_title(f"({letter}) {panel.title}")
            axis.set(ylabel=panel.label, xlim=(0.5, last + 0.5))
            axis.set_xlabel("" if stacked and letter != "c" else LABEL)
            axis.set_xticks(palette.block_ticks(last))
            matplotlib.value_axis(axis, np.concatenate(seen), panel.may_log)
        text_metrics.legend(figure, lines, [name for name, _ in analyses], bands=bands)
        routed = any(source_maps.has_router(ds) for _, ds in analyses)
        text_metrics.note(figure, [palette.GRADIENT_NOTE] if routed else [])
    return figure
