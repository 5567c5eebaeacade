"""The paper's figure 2, for print: the three symptoms over the block index."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dar_probe.reports import canvas, lettering, maps, style
from dar_probe.results import metrics

LABEL = "block index"


def dilution(analyses: Sequence[tuple[str, xr.Dataset]], *, width: canvas.Width = "two") -> Figure:
    """Draw arXiv 2605.20708, figure 2: RMS, gradient RMS and neighbour cosine over depth.

    Args:
        analyses: (name, dataset) pairs, one line each, plain residuals blue and DAR orange; bands
            are 95 % bootstrap intervals over samples, left out where one sample gives none. The
            axis reaches to the deepest model.
        width: "one" column (3.25 in, panels stacked) or "two" (6.75 in, side by side).

    Raises:
        UsageError: another width.
    """
    inches = canvas.inches(width)
    colours = style.colours([ds for _, ds in analyses])
    last = max(int(ds["block"].values[-1]) for _, ds in analyses)
    lines: list[Line2D] = []
    bands = False
    with canvas.paper():
        stacked = width == "one"
        figure = canvas.figure(inches, 4.8 if stacked else 2.0)
        axes = figure.subplots(3, 1) if stacked else figure.subplots(1, 3)
        for letter, axis, panel in zip("abc", axes, style.PANELS, strict=True):
            seen, lines = [], []
            for line, (_, ds) in enumerate(analyses):
                profile = metrics.profile(ds, panel.variable).sel(block=slice(1, None))
                value, low, high = (profile[key].values for key in ("value", "low", "high"))
                drawn = (profile["block"].values, value, low, high)
                lines.append(canvas.draw_line(axis, drawn, colours[line], *style.look(line)))
                seen += [value, low, high]
                bands = bands or bool(np.isfinite(low).any())
            axis.set_title(f"({letter}) {panel.title}")
            axis.set(ylabel=panel.label, xlim=(0.5, last + 0.5))
            axis.set_xlabel("" if stacked and letter != "c" else LABEL)
            axis.set_xticks(style.block_ticks(last))
            canvas.value_axis(axis, np.concatenate(seen), panel.may_log)
        lettering.legend(figure, lines, [name for name, _ in analyses], bands=bands)
        routed = any(maps.has_router(ds) for _, ds in analyses)
        lettering.note(figure, [style.GRADIENT_NOTE] if routed else [])
    return figure
