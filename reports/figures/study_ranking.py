"""All schemes of a study in one list: what each gains over plain residuals, and what it costs."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dar_probe.reports.draw import matplotlib, plotly
from dar_probe.reports.figures import interactive
from dar_probe.reports.style import palette, text_metrics
from dar_probe.results.intervals import Interval
from dar_probe.results.study.aggregate import Line, Results
from dar_probe.results.study.claims import final_loss

TITLE = "Every scheme at the end of training"
CAPTION = (
    "The difference is to plain residuals of the same seeds, negative where a scheme is better; "
    "the best come first. Bars: 95 % intervals over seeds; a dot without one is one seed, where "
    "differences of a few thousandths are not to be told from chance. Price: median and quartiles "
    "of timed steps."
)
KINDS = {"plain residuals": palette.BLUE, "DAR": palette.ORANGE, "other schemes": "#767676"}


class Column(NamedTuple):
    """One panel: words, a value of every scheme, and where plain residuals stand."""

    title: str
    words: str
    values: list[Interval]
    level: float
    may_log: bool


class Ranking(NamedTuple):
    """The schemes, best first: their names and colours, and what is drawn of them."""

    names: list[str]
    colours: list[str]
    columns: list[Column]


def ranking(results: Results) -> Ranking | None:
    """Rank the schemes by their last validation loss; None without residual runs, or with few."""
    found = [(-line.gain(final_loss), line) for line in results.of("schemes") if line.pairs]
    found.sort(key=lambda pair: pair[0].value)
    lines = [line for _, line in found]
    plain = next((line for line in lines if line.is_reference), None)
    if plain is None or len(lines) < 3:
        return None
    minus = [gap for gap, _ in found]
    columns = [Column("loss minus residual", "difference of the loss", minus, 0.0, False)]
    if plain.quality[0]:
        distances = [line.frechet for line in lines]
        level = plain.frechet.value
        columns.append(Column("quality", "Fréchet distance", distances, level, True))
    prices = [line.price for line in lines]
    columns.append(Column("price", "step / residual step", prices, 1.0, False))
    return Ranking([line.label for line in lines], [KINDS[_kind(line)] for line in lines], columns)


def printed(found: Ranking) -> Figure:
    """Draw the list for print, two columns wide."""
    rows = np.arange(len(found.names))
    room = 1.3  # inches, for the names
    with matplotlib.paper():
        figure = matplotlib.figure(matplotlib.inches("two"), 0.6 + 0.15 * len(rows))
        axes = figure.subplots(1, len(found.columns), squeeze=False, sharey=True).ravel()
        for letter, axis, column in zip("abc", axes, found.columns, strict=False):
            value, low, high = _arrays(column)
            axis.axvline(column.level, color=palette.BLUE, linewidth=0.9)
            axis.hlines(rows, low, high, color=found.colours, linewidth=1.4)
            axis.scatter(value, rows, s=14, color=found.colours, zorder=3)
            axis.set(xlabel=column.words, title=f"({letter}) {column.title}")
            matplotlib.value_axis(axis, np.concatenate([value, low, high]), column.may_log, "x")
        axes[0].set_yticks(rows, [text_metrics.fitted(name, room) for name in found.names])
        for label in axes[0].get_yticklabels():
            label.set_parse_math(False)
        axes[0].set_ylim(len(rows) - 0.5, -0.5)
        dots = [Line2D([], [], color=colour, marker="o", linestyle="") for colour in KINDS.values()]
        text_metrics.legend(figure, dots, list(KINDS))
    return figure


def screened(found: Ranking) -> go.Figure:
    """Draw the list for the screen."""
    drawn = plotly.figure()
    names = plotly.unique(found.names)
    for at, column in enumerate(found.columns):
        value, low, high = _arrays(column)
        drawn.add_shape(
            type="line", x0=column.level, x1=column.level, y0=0, y1=1,
            line={"color": palette.BLUE, "width": 1},
            xref=plotly.numbered("x", at), yref=f"{plotly.numbered('y', at)} domain",
        )  # fmt: skip
        for kind, colour in KINDS.items():
            own = [row for row, its in enumerate(found.colours) if its == colour]
            drawn.add_scatter(
                x=value[own],
                y=[names[row] for row in own],
                name=kind,
                legendgroup=kind,
                showlegend=at == 0 and bool(own),
                mode="markers",
                marker={"color": colour, "size": 7},
                error_x={
                    "array": np.nan_to_num(high - value)[own],
                    "arrayminus": np.nan_to_num(value - low)[own],
                    "width": 0,
                    "thickness": 1.6,
                },
                customdata=interactive.intervals(low[own], high[own]),
                hovertemplate=f"%{{y}}<br>{column.words} %{{x:.4~g}} %{{customdata}}"
                "<extra></extra>",
                **plotly.axes(at),
            )
        plotly.title(drawn, at, f"({'abc'[at]}) {column.title}")
        scale = plotly.value_axis(np.concatenate([value, low, high]), column.may_log)
        plotly.axis(drawn, "x", at, **scale, title={"text": column.words, "standoff": 6})
        plotly.axis(
            drawn, "y", at, type="category", categoryorder="array", categoryarray=names[::-1],
            range=[-0.5, len(names) - 0.5], automargin=True, tickfont={"size": 11},
        )  # fmt: skip
    many, row = len(found.columns), 18 * len(names)
    plotly.placed(drawn, many, columns=many, row=row, room=760, gap=0.04, names_shared=True)
    return plotly.with_legend_room(drawn)


def spoken(found: Ranking) -> str:
    """Say to those who do not see it what stands in every row."""
    rows = zip(found.names, *(column.values for column in found.columns), strict=True)
    return " ".join(
        f"{palette.clean(name)}: "
        + ", ".join(
            f"{column.words} {palette.number(value.value)}"
            for column, value in zip(found.columns, values, strict=True)
        )
        + "."
        for name, *values in rows
    )


def _arrays(column: Column) -> tuple[matplotlib.Array, matplotlib.Array, matplotlib.Array]:
    value, low, high = (
        np.array([getattr(one, name) for one in column.values]) for name in ("value", "low", "high")
    )
    return value, low, high


def _kind(line: Line) -> str:
    if line.is_reference:
        return "plain residuals"
    return "DAR" if str(line.records[0].config["routing"]).startswith("dar") else "other schemes"
