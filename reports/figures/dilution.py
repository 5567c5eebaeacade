"""The paper's figure 2: the three symptoms over the block index."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from dar_probe.reports.figures.arrangement import Paper, Screen, Width
from dar_probe.reports.figures.description import Axis, Curve, Figure, Link, Panel
from dar_probe.reports.style import palette, source_maps
from dar_probe.reports.style.sample_band import middle
from dar_probe.results import metrics

LABEL = "block index"


def dilution(
    analyses: Sequence[tuple[str, xr.Dataset]], *, width: Width = "two", middles: bool = False
) -> Figure:
    """Describe arXiv 2605.20708, figure 2: RMS, gradient RMS and neighbour cosine over depth.

    Args:
        analyses: (name, dataset) pairs, one line each, plain residuals blue and DAR orange; bands
            are 95 % bootstrap intervals over samples, left out where one sample gives none. The
            axis reaches to the deepest model.
        width: "one" column (3.25 in, panels stacked) or "two" (6.75 in, side by side).
        middles: whether curves know the middle of the samples, which a page can show.

    Raises:
        UsageError: another width.
    """
    stacked = width == "one"
    paper = Paper(width=width, height=4.8 if stacked else 2.0, across=1 if stacked else 3)
    colours = palette.colours([ds for _, ds in analyses])
    last = max(int(ds["block"].values[-1]) for _, ds in analyses)
    panels = [
        Panel(
            title=panel.title,
            x=block_axis(last, LABEL if panel is palette.PANELS[-1] or not stacked else ""),
            y=Axis(title=panel.label, fitted=True, may_log=panel.may_log),
            curves=[
                _curve(name, ds, panel.variable, line, colours[line], middles=middles)
                for line, (name, ds) in enumerate(analyses)
            ],
        )
        for panel in palette.PANELS
    ]
    routed = any(source_maps.has_router(ds) for _, ds in analyses)
    return Figure(
        panels=panels,
        paper=paper,
        says="RMS of the state, RMS of its gradient, and cosine of neighbouring states over the "
        "block index.",
        screen=Screen(columns=3, row=240, room=760, gap=0.085),
        notes=[palette.GRADIENT_NOTE] if routed else [],
        last=last,
    )


def block_axis(last: int, title: str, *, head: bool = False) -> Axis:
    """Return an x axis over the blocks 1..last, or to the head one behind the last."""
    return Axis(
        title=title,
        limits=(0.5, last + (1.5 if head else 0.5)),
        ticks=palette.block_ticks(last),
        link=Link(dim="block"),
    )


def _curve(
    name: str, ds: xr.Dataset, variable: str, line: int, colour: str, *, middles: bool
) -> Curve:
    profile = metrics.profile(ds, variable).sel(block=slice(1, None))
    gaps = _new_streams(ds)
    band = middle(ds, variable)[:, 1:] if middles and ds.sizes["sample"] > 1 else None
    value, low, high = (
        np.insert(profile[part].values, gaps, np.nan) for part in ("value", "low", "high")
    )
    blocks = profile["block"].values
    return Curve(
        label=palette.clean(name, 80),
        colour=colour,
        look=line,
        x=np.insert(blocks.astype(float), gaps, blocks[gaps] - 0.5) if len(gaps) else blocks,
        value=value,
        low=low,
        high=high,
        middle=None if band is None else np.insert(band, gaps, np.nan, axis=1),
    )


def _new_streams(ds: xr.Dataset) -> np.ndarray:
    """Return behind which blocks a line ends: sizes of two streams do not compare.

    There no state has a cosine to the one before.
    """
    known = np.isfinite(ds["cosine"].values).any(axis=(0, 1))
    return np.flatnonzero(~known[2:]) + 1
