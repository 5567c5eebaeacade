"""Who reads what in every scheme, side by side: the routes of a study's trained models."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from dar_probe.reports.draw import matplotlib, plotly
from dar_probe.reports.style import palette, text_metrics
from dar_probe.results.study.aggregate import Results
from dar_probe.results.study.record import Record

Array = npt.NDArray[np.floating]

TITLE = "Who reads what"
CAPTION = (
    "Share of each source in what a reader reads, times the number of sources on offer: 1 is an "
    "even split, as under plain residuals. Absolute routes, mean over samples, tokens and noise "
    "levels, first seed. Rows are readers, bottom to top, the head last; columns are sources, the "
    "embedding first."
)
WORDS = "times an even split"
COLUMNS, TOP = 5, 4.0  # the scale ends there: few cells are above


class Map(NamedTuple):
    """The routes of one scheme: (readers, sources), NaN where a source is not on offer."""

    label: str
    values: Array


def maps(results: Results) -> list[Map]:
    """Return a map of every scheme that has scalar routes, but the plain sum, which is even."""
    lines = [line for line in results.of("schemes") if not line.is_reference]
    found = [Map(line.label, _values(line.records[0])) for line in lines if line.records[0].routes]
    return [one for one in found if np.isfinite(one.values).any()]


def printed(found: list[Map]) -> Figure:
    """Draw the maps for print, two columns wide."""
    across = min(COLUMNS, len(found))
    down = math.ceil(len(found) / across)
    inches = matplotlib.inches("two")
    norm = PowerNorm(0.5, 0, TOP)
    with matplotlib.paper():
        figure = matplotlib.figure(inches, 0.5 + 1.45 * down)
        grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        colours = matplotlib.colour_map(norm, "rocket_r")
        for at, axis in enumerate(grid.ravel()):
            if at >= len(found):
                axis.set_visible(False)
                continue
            one = found[at]
            matplotlib.draw_map(axis, one.values, norm, colours)
            title = text_metrics.fitted(one.label, inches / across - 0.45, text_metrics.TITLE_SIZE)
            axis.set_title(title, parse_math=False)
            for which, names in zip("yx", _names(one), strict=True):
                matplotlib.ticks(axis, which, palette.spread(len(names), 5), names)
            axis.set_ylabel("reader" if at % across == 0 else "")
            axis.set_xlabel("source" if at + across >= len(found) else "")
            axis.tick_params(labelbottom=at + across >= len(found))
        matplotlib.colour_bar(figure, list(grid.ravel()), norm, colours, WORDS)
        text_metrics.note(figure, [palette.GAP_NOTE, f"The colours end at {TOP:g}."])
    return figure


def screened(found: list[Map]) -> go.Figure:
    """Draw the maps for the screen."""
    drawn = plotly.figure()
    drawn.update_layout(margin={"t": 30})
    for at, one in enumerate(found):
        readers, sources = _names(one)
        drawn.add_heatmap(
            z=one.values.astype(np.float32),
            x=sources,
            y=readers,
            hovertemplate=f"{plotly.text(one.label)}<br>reader %{{y}} takes source %{{x}}"
            f"<br>%{{z:.3~g}} {WORDS}<extra></extra>",
            coloraxis="coloraxis",
            hoverongaps=False,
            **plotly.axes(at),
        )
        plotly.title(drawn, at, plotly.text(one.label))
        words = ("source", "reader" if at % COLUMNS == 0 else "")
        plotly.map_axes(drawn, at, sources, readers, words)
        few = {"nticks": 5, "tickangle": 0}
        drawn.update_layout({plotly.numbered(f"{letter}axis", at): few for letter in "xy"})
    values = np.array([0.0, TOP])
    plotly.colour_axis(drawn, 0, values, "rocket_r", WORDS)
    columns = min(COLUMNS, len(found))
    bars = [list(range(len(found)))]
    return plotly.placed(drawn, len(found), columns=columns, row=130, room=760, gap=0.05, bars=bars)


def spoken(found: list[Map]) -> str:
    """Say to those who do not see it which source the head takes most of, scheme by scheme."""
    parts = []
    for one in found:
        row = one.values[-1]
        best = int(np.nanargmax(row))
        parts.append(
            f"{palette.clean(one.label)}: the head takes most of source {best}, "
            f"{palette.number(float(row[best]))} {WORDS}."
        )
    return " ".join(parts)


def _values(one: Record) -> Array:
    size = len(one.routes)
    values = np.full((size, size), np.nan)
    for at, row in enumerate(one.routes):
        values[at, : at + 1] = [np.nan if weight is None else abs(weight) for weight in row]
    offered = np.isfinite(values).sum(1, keepdims=True)
    total = np.nansum(values, 1, keepdims=True)
    shares: Array = np.divide(
        values * offered, total, out=np.full_like(values, np.nan), where=total > 0
    )
    return shares


def _names(one: Map) -> tuple[list[str], list[str]]:
    """Return the names of readers 1..L and the head, and of sources 0..L."""
    size = len(one.values)
    return [*map(str, range(1, size)), "head"], [*map(str, range(size))]
