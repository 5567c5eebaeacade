"""Who reads what in every scheme, side by side: the routes of a study's trained models."""

from typing import NamedTuple

import numpy as np

from dar_probe.files.text import decimal
from dar_probe.reports.figures.arrangement import Paper, Screen
from dar_probe.reports.figures.description import Array, Axis, Cells, Field, Figure, Panel, Scale
from dar_probe.reports.style import palette
from dar_probe.results.study.aggregate import Results
from dar_probe.results.study.record import Record

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


def figure(found: list[Map]) -> Figure:
    """Describe the maps, two printed columns wide."""
    across = min(COLUMNS, len(found))
    down = -(-len(found) // across)
    panels = []
    for one in found:
        readers, sources = (
            Axis(title=title, names=names, ticks=palette.evenly(len(names), 5))
            for title, names in zip(("reader", "source"), _names(one), strict=True)
        )
        hover = (
            (one.label,),
            ("reader ", Field.ROW, " takes source ", Field.COLUMN),
            (Field.VALUE, f" {WORDS}"),
        )
        cells = Cells(values=one.values, hover=hover)
        panels.append(Panel(subject=palette.clean(one.label), x=sources, y=readers, cells=cells))
    return Figure(
        panels=panels,
        paper=Paper(height=0.5 + 1.45 * down, across=across, shared=True),
        screen=Screen(columns=across, row=130, room=760, gap=0.05, ticks=5),
        scales=[
            Scale(
                label=WORDS,
                colours="rocket_r",
                values=np.array([0.0, TOP]),
                share=True,
                root=True,
            )
        ],
        notes=[palette.GAP_NOTE, f"The colours end at {TOP:g}."],
        lettered=False,
    )


def spoken(found: list[Map]) -> str:
    """Say to those who do not see it which source the head takes most of, scheme by scheme."""
    parts = []
    for one in found:
        row = one.values[-1]
        best = int(np.nanargmax(row))
        parts.append(
            f"{palette.clean(one.label)}: the head takes most of source {best}, "
            f"{decimal(float(row[best]))} {WORDS}."
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
