"""Paired differences over depth, other models minus the first: printed and for the screen."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from matplotlib.figure import Figure

from dar_probe.errors import UsageError
from dar_probe.reports.draw import matplotlib, plotly
from dar_probe.reports.figures.interactive import DASHES, intervals
from dar_probe.reports.style import axis_links, palette, source_maps, text_metrics
from dar_probe.results.bootstrap import Array
from dar_probe.results.comparability import obstacle, unlike_depth
from dar_probe.results.paired import over_depth
from dar_probe.results.schema import VARIABLES
from dar_probe.results.trajectory import last_step

Named = Sequence[tuple[str, xr.Dataset]]

NOTHING = "no model has the samples and the depth of the first, so nothing differs over depth"
ZERO_NOTE = "Zero: as in {}. Intervals are paired over samples."


class Line(NamedTuple):
    """One other model: its look, as in the overlay of all models, and its differences."""

    name: str
    colour: str
    look: tuple[str, str]  # dashes and marker
    gaps: dict[str, tuple[Array, Array, Array, Array]]  # block, value, low, high of a variable


def figure(analyses: Named, *, width: matplotlib.Width = "two") -> Figure:
    """Draw other minus reference of RMS, gradient RMS and neighbour cosine over depth.

    Args:
        analyses: (name, dataset) pairs; the first is the reference. Those that cannot be compared
            with it, or are of another depth, are left out.
        width: "one" column (panels stacked) or "two" (side by side).

    Raises:
        UsageError: none is left.
    """
    lines, last = _lines(analyses), _last(analyses)
    with matplotlib.paper():
        stacked = width == "one"
        drawn = matplotlib.figure(matplotlib.inches(width), 4.8 if stacked else 2.3)
        axes = drawn.subplots(3, 1) if stacked else drawn.subplots(1, 3)
        for letter, axis, panel in zip("abc", axes, palette.PANELS, strict=True):
            axis.axhline(0, color="#303030", linewidth=0.8, zorder=1)
            handles = [
                matplotlib.draw_line(axis, line.gaps[panel.variable], line.colour, *line.look)
                for line in lines
            ]
            axis.set_title(f"({letter}) {panel.title}")
            axis.set(xlabel="block", ylabel=_label(panel), xlim=(0.5, last + 0.5))
            axis.set_xticks(palette.block_ticks(last))
            matplotlib.value_axis(axis, np.concatenate(list(_seen(lines, panel))), may_log=False)
        text_metrics.legend(drawn, handles, [line.name for line in lines], bands=_has_bands(lines))
        gradient = (
            [palette.GRADIENT_NOTE] if any(source_maps.has_router(ds) for _, ds in analyses) else []
        )
        text_metrics.note(
            drawn, [ZERO_NOTE.format(text_metrics.printable(analyses[0][0])), *gradient]
        )
    return drawn


def interactive(analyses: Named) -> go.Figure:
    """Draw the same for the screen, as ``figure``."""
    lines, last = _lines(analyses), _last(analyses)
    drawn = plotly.figure()
    for at, panel in enumerate(palette.PANELS):
        drawn.add_shape(
            type="line",
            xref=f"{plotly.numbered('x', at)} domain",
            yref=plotly.numbered("y", at),
            x0=0,
            x1=1,
            y0=0,
            y1=0,
            line={"color": plotly.INK, "width": 1},
        )
        for line in lines:
            block, value, low, high = line.gaps[panel.variable]
            shared = {**plotly.axes(at), "legendgroup": line.name}
            plotly.band(drawn, block, low, high, line.colour, **shared)
            drawn.add_scatter(
                x=block,
                y=value,
                name=plotly.text(line.name),
                customdata=intervals(low, high),
                hovertemplate="%{y:+.4~g} %{customdata}",
                mode="lines+markers",
                line={"color": line.colour, "dash": DASHES[line.look[0]]},
                marker={"size": 5},
                showlegend=at == 0,
                **shared,
            )
        plotly.title(drawn, at, f"({'abc'[at]}) {panel.title}")
        blocks = {"tickvals": palette.block_ticks(last), "range": [0.5, last + 0.5]}
        plotly.axis(drawn, "x", at, title={"text": "block", "standoff": 6}, **blocks)
        label = {"text": _label(panel), "standoff": 4}
        plotly.axis(drawn, "y", at, title=label, **_range(np.concatenate([*_seen(lines, panel)])))
        axis_links.link(drawn, at, last, x=("block", None))
    drawn.update_layout(hovermode="x unified", showlegend=True)
    return plotly.placed(drawn, 3, columns=3, row=240, room=760, gap=0.085)


def drawable(analyses: Named) -> list[int]:
    """Return the positions of the analyses that differ from the first over a common depth."""
    (_, reference), *others = [(name, last_step(ds)) for name, ds in analyses]
    return [
        at
        for at, (_, ds) in enumerate(others, start=1)
        if not (obstacle(reference, ds) or unlike_depth(reference, ds))
    ]


def _lines(analyses: Named) -> list[Line]:
    kept = drawable(analyses)
    if not kept:
        raise UsageError(NOTHING)
    colours = palette.colours([ds for _, ds in analyses])
    reference = analyses[0][1]
    return [
        Line(
            name=analyses[at][0],
            colour=colours[at],
            look=palette.look(at),
            gaps={p.variable: _gap(reference, analyses[at][1], p.variable) for p in palette.PANELS},
        )
        for at in kept
    ]


def _gap(reference: xr.Dataset, other: xr.Dataset, name: str) -> tuple[Array, Array, Array, Array]:
    found = over_depth(reference, other, name).sel(block=slice(1, None))
    return (
        found["block"].values,
        found["value"].values,
        found["low"].values,
        found["high"].values,
    )


def _last(analyses: Named) -> int:
    return int(analyses[0][1]["block"].values[-1])


def _label(panel: palette.Panel) -> str:
    units = VARIABLES[panel.variable].units.replace("/", " / ")
    return "difference" if units == "1" else f"difference ({units})"


def _seen(lines: Sequence[Line], panel: palette.Panel) -> Iterator[Array]:
    """Yield every number of a panel; the line at zero belongs to it where there is any."""
    for line in lines:
        yield from line.gaps[panel.variable][1:]
    if any(np.isfinite(line.gaps[panel.variable][1]).any() for line in lines):
        yield np.zeros(1)


def _range(values: Array) -> dict[str, object]:
    """Return a y axis that shows every number and zero, however small they are."""
    known = values[np.isfinite(values)]
    if not known.size:
        return {"range": [-1, 1], "showticklabels": False}
    low, high = float(known.min()), float(known.max())
    pad = 0.08 * (high - low) or 1.0
    return {"range": [low - pad, high + pad], "nticks": 6, "exponentformat": "e"}


def _has_bands(lines: Sequence[Line]) -> bool:
    return any(np.isfinite(low).any() for line in lines for _, _, low, _ in line.gaps.values())
