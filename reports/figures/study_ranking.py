"""All schemes of a study in one list: what each gains over plain residuals, and what it costs."""

from typing import NamedTuple

import numpy as np

from dar_probe.files.text import decimal
from dar_probe.reports.figures.arrangement import Paper, Screen
from dar_probe.reports.figures.description import Array, Axis, Figure, Panel, Points, Rule
from dar_probe.reports.style import palette
from dar_probe.results.intervals import Interval
from dar_probe.results.study.aggregate import Results, SchemeResult
from dar_probe.results.study.claims import final_frechet, final_loss

TITLE = "Every scheme at the end of training"
CAPTION = (
    "Differences are to plain residuals of the same seeds, negative where a scheme is better; "
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
        apart = [-line.gain(final_frechet) for line in lines]
        words = "difference of the distance"
        columns.append(Column("Fréchet minus residual", words, apart, 0.0, False))
    prices = [line.price for line in lines]
    columns.append(Column("price", "step / residual step", prices, 1.0, False))
    return Ranking([line.label for line in lines], [KINDS[_kind(line)] for line in lines], columns)


def figure(found: Ranking) -> Figure:
    """Describe the list, two printed columns wide, the best scheme on top."""
    count = len(found.names)
    names = Axis(
        names=[palette.clean(name) for name in found.names],
        limits=(count - 0.5, -0.5),
        ticks=range(count),
        room=1.3,
    )
    panels = [
        Panel(
            title=column.title,
            x=Axis(title=column.words, fitted=True, may_log=column.may_log),
            y=names,
            points=[_points(found, column, kind) for kind in KINDS],
            rules=[Rule(x=column.level, colour=palette.BLUE)],
        )
        for column in found.columns
    ]
    many = len(panels)
    return Figure(
        panels=panels,
        paper=Paper(height=0.6 + 0.15 * count, across=many, shared=True),
        screen=Screen(columns=many, row=18 * count, room=760, gap=0.04, names_shared=True),
    )


def _points(found: Ranking, column: Column, kind: str) -> Points:
    """Return the schemes of one kind: their values, and intervals as whiskers."""
    value, low, high = _arrays(column)
    own = np.array([colour == KINDS[kind] for colour in found.colours])

    return Points(
        label=kind,
        colour=KINDS[kind],
        marker="o",
        x=value[own],
        y=np.flatnonzero(own).astype(float),
        low=low[own],
        high=high[own],
        names=[palette.clean(name) for name, its in zip(found.names, own, strict=True) if its],
        details=[
            f"{column.words} {decimal(middle, 4)}"
            + (f" [{decimal(lower, 4)}, {decimal(upper, 4)}]" if np.isfinite(lower) else "")
            for middle, lower, upper in zip(value[own], low[own], high[own], strict=True)
        ],
    )


def spoken(found: Ranking) -> str:
    """Say to those who do not see it what stands in every row."""
    rows = zip(found.names, *(column.values for column in found.columns), strict=True)
    return " ".join(
        f"{palette.clean(name)}: "
        + ", ".join(
            f"{column.words} {decimal(value.value)}"
            for column, value in zip(found.columns, values, strict=True)
        )
        + "."
        for name, *values in rows
    )


def _arrays(column: Column) -> tuple[Array, Array, Array]:
    value, low, high = (
        np.array([getattr(one, name) for one in column.values]) for name in ("value", "low", "high")
    )
    return value, low, high


def _kind(line: SchemeResult) -> str:
    if line.is_reference:
        return "plain residuals"
    return "DAR" if str(line.records[0].config["routing"]).startswith("dar") else "other schemes"
