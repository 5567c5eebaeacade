"""The curves of a study: losses, quality, symptoms and prices of every scheme."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dar_probe.reports.figures.arrangement import Paper, Screen, Width
from dar_probe.reports.figures.description import Array, Axis, Curve, Figure, Panel, Rule
from dar_probe.reports.style import palette
from dar_probe.results.intervals import Interval, Scale, over_seeds
from dar_probe.results.study.aggregate import Results, SchemeResult, chunk_cost, optimal_chunk
from dar_probe.results.study.record import Record

SHARES = (0.4, 0.5, 0.6)  # of the paper's cost model: a
SEEDS = "95 % interval over seeds"


class Drawing(NamedTuple):
    """A figure of the study's page: the stem of its files, title, caption, and what it shows."""

    name: str
    title: str
    caption: str
    figure: Figure


def drawings(results: Results, *, width: Width = "two") -> list[Drawing]:
    """Return every figure that the records are enough for.

    Args:
        results: the records of a study.
        width: of the print: "one" column (panels stacked) or "two" (side by side).
    """
    main = results.main
    seeds = " Bands: 95 % intervals over seeds." if any(line.seeds > 1 for line in main) else ""
    found = [
        Drawing(
            "loss",
            "Validation loss",
            "Of the average, on held-out samples at ten noise levels; the difference is paired: "
            f"same seed, same batches. Seconds: steps times each scheme's own price.{seeds}",
            _figure(_loss(results, main), width),
        )
    ]
    if any(line.quality[0] for line in main):
        found.append(
            Drawing(
                "frechet",
                "Fréchet distance",
                "Of samples of the average from the training rows, in the features of a "
                f"classifier of digits.{seeds}",
                _figure(_frechet(results, main), width),
            )
        )
    found.append(
        Drawing(
            "depth",
            "The symptoms over depth",
            "After training, at the study's noise levels; magnitudes are geometric means over "
            f"seeds. {palette.GRADIENT_NOTE}{seeds}",
            _figure(_depth(main), width),
        )
    )
    plain = [line for line in results.single if line.is_reference]
    rest = [line for line in results.single if not line.is_reference]
    parts = math.ceil(len(rest) / 6)
    for at in range(0, len(rest), 6):
        part = f", {at // 6 + 1} of {parts}" if parts > 1 else ""  # no two figures share a title
        found.append(
            Drawing(
                f"others-{at // 6 + 1}",
                f"Validation loss of the other schemes{part}",
                "One seed each, plain residuals too: differences of a few thousandths are not to "
                "be told from chance.",
                _figure(_loss(results, plain + rest[at : at + 6]), width),
            )
        )
    if deep := results.of("deep"):
        found.append(
            Drawing(
                "deep",
                "Validation loss at 28 blocks",
                "One seed each.",
                _figure(_loss(results, deep), width),
            )
        )
    if (chunks := _chunks(results)) is not None:
        low, high = (round(optimal_chunk(_sublayers(results), a), 1) for a in (0.6, 0.4))
        found.append(
            Drawing(
                "chunks",
                "Chunk size S",
                "DAR static+t, one seed each. Price: median and quartiles of timed steps. Shaded: "
                "where the paper's cost model has its least, "
                f"S* = {low} to {high} for a from 0.6 to 0.4.",
                _figure(chunks, width, band="quartiles of timed steps"),
            )
        )
    return found


def _figure(panels: Sequence[Panel], width: Width, *, band: str = SEEDS) -> Figure:
    """Put panels side by side, or one above the other in one printed column."""
    count = len(panels)
    stacked = width == "one"
    return Figure(
        panels=panels,
        paper=Paper(
            width=width, height=1.7 * count if stacked else 2.0, across=1 if stacked else count
        ),
        screen=Screen(columns=count, row=240, room=760, gap=0.085),
        band=band,
    )


def _panel(
    title: str, across: str, up: str, curves: Sequence[Curve], *, may_log: bool = False
) -> Panel:
    return Panel(
        title=title,
        x=Axis(title=across),
        y=Axis(title=up, fitted=True, may_log=may_log),
        curves=curves,
    )


def _loss(results: Results, lines: Sequence[SchemeResult]) -> list[Panel]:
    seconds = results.reference_seconds(lines)
    curves, differences, timed = [], [], []
    for line, (look, colour) in zip(lines, _looks(lines), strict=True):
        steps, losses = line.curve
        at = np.array(steps, float)
        curves.append(_curve(line, look, colour, at, losses))
        timed.append(_curve(line, look, colour, at * line.ratio * seconds, losses))
        if line.pairs and not line.is_reference:
            gaps = zip(
                *(np.subtract(own.losses, other.losses) for own, other in line.pairs), strict=True
            )
            apart = [over_seeds([float(gap) for gap in values]) for values in gaps]
            differences.append(_curve(line, look, colour, at, apart))
    step = "training step"
    return [
        _panel("loss over steps", step, "validation loss", curves, may_log=True),
        replace(
            _panel("minus residual", step, "difference of the loss", _settled(differences)),
            rules=[Rule(y=0.0, colour=palette.BLUE)],
        ),
        _panel("loss over time", "seconds of training", "validation loss", timed, may_log=True),
    ]


def _settled(curves: list[Curve]) -> list[Curve]:
    """Leave the first fifth out, where all losses fall steeply and differences dwarf the rest."""
    found = []
    for curve in curves:
        kept = curve.x >= curve.x[-1] / 5
        parts = {name: getattr(curve, name)[kept] for name in ("x", "value", "low", "high")}
        found.append(replace(curve, **parts))
    return found


def _frechet(results: Results, lines: Sequence[SchemeResult]) -> list[Panel]:
    seconds = results.reference_seconds(lines)
    over_steps, over_time = [], []
    for line, (look, colour) in zip(lines, _looks(lines), strict=True):
        steps, distances = line.quality
        if steps:
            at = np.array(steps, float)
            over_steps.append(_curve(line, look, colour, at, distances))
            over_time.append(_curve(line, look, colour, at * line.ratio * seconds, distances))
    up = "Fréchet distance"
    return [
        _panel("over steps", "training step", up, over_steps, may_log=True),
        _panel("over time", "seconds of training", up, over_time, may_log=True),
    ]


def _depth(lines: Sequence[SchemeResult]) -> list[Panel]:
    found = []
    for panel in palette.PANELS:
        curves = []
        for line, (look, colour) in zip(lines, _looks(lines), strict=True):
            rows = np.array([one.blocks[panel.variable] for one in line.records], float)
            scale: Scale = "ratio" if panel.may_log else "cosine"
            pooled = [over_seeds(column, scale) for column in rows.T]  # None became NaN
            curves.append(_curve(line, look, colour, np.arange(1.0, len(pooled) + 1), pooled))
        found.append(_panel(panel.title, "block", panel.label, curves, may_log=panel.may_log))
    return found


def _chunks(results: Results) -> list[Panel] | None:
    """Loss, distance and price over S, beside C(S)."""
    lines = sorted(results.varied("chunks"), key=lambda line: _size(line.records[0]))
    if len(lines) < 3:
        return None
    sizes = [_size(line.records[0]) for line in lines]
    at, sublayers = np.array(sizes, float), _sublayers(results)
    gap = np.full(len(at), np.nan)
    best = optimal_chunk(sublayers, SHARES[-1]), optimal_chunk(sublayers, SHARES[0])

    def over_size(title: str, up: str, curves: Sequence[Curve]) -> Panel:
        axis = Axis(title="S", octaves=True, ticks=sizes, labels=[str(size) for size in sizes])
        return replace(_panel(title, "S", up, curves), x=axis, shaded=best)

    def measured(title: str, up: str, value: Callable[[SchemeResult], Interval]) -> Panel:
        curve = _curve(lines[0], 0, palette.ORANGE, at, [value(line) for line in lines])
        return over_size(title, up, [replace(curve, label="measured")])

    model = []
    for look, (share, colour) in enumerate(zip(SHARES, palette.OTHERS, strict=False), start=1):
        values = np.array([chunk_cost(sublayers, size, share) for size in at])
        model.append(
            Curve(
                label=f"C(S), a = {share}",
                colour=colour,
                look=look,
                x=at,
                value=values,
                low=gap,
                high=gap,
            )
        )
    panels = [measured("loss", "validation loss", lambda line: line.loss)]
    if lines[0].quality[0]:
        panels.append(measured("quality", "Fréchet distance", lambda line: line.frechet))
    panels.append(measured("price", "step / residual step", lambda line: line.price))
    panels.append(over_size("cost model", "C(S)", model))
    return panels


def _size(one: Record) -> int:
    return int(one.config["chunk_size"])


def _sublayers(results: Results) -> int:
    first = next(iter(results.lines.values()))
    return 2 * int(first.records[0].config["depth"])


def _curve(
    line: SchemeResult, look: int, colour: str, x: Array, values: Sequence[Interval]
) -> Curve:
    value, low, high = (
        np.array([getattr(one, name) for one in values]) for name in ("value", "low", "high")
    )
    return Curve(label=line.label, colour=colour, look=look, x=x, value=value, low=low, high=high)


def _looks(lines: Sequence[SchemeResult]) -> list[tuple[int, str]]:
    """Return number and colour of each line: residual blue, the first DAR orange."""
    free, found = list(palette.OTHERS), []
    used: set[str] = set()
    for look, line in enumerate(lines):
        wanted = palette.BLUE if line.is_reference else ""
        if line.records[0].config["routing"] == "dar":
            wanted = palette.ORANGE
        if not wanted or wanted in used:
            wanted = free.pop(0)
            free.append(wanted)
        used.add(wanted)
        found.append((look, wanted))
    return found
