"""One self-contained HTML page of a study: curves, prices, symptoms, and the paper's claims."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from dar_probe.files.text import decimal
from dar_probe.reports.draw import plotly
from dar_probe.reports.figures import study_ranking, study_routes
from dar_probe.reports.figures.description import Figure
from dar_probe.reports.figures.study_curves import Drawing
from dar_probe.reports.pages import alt_text, definitions, document, headline, wording
from dar_probe.reports.style import palette
from dar_probe.results.intervals import Interval, over_seeds
from dar_probe.results.study import claims, summary
from dar_probe.results.study.aggregate import Results, SchemeResult
from dar_probe.results.study.record import NUMBERS
from dar_probe.results.symptoms import SYMPTOMS

GROUPS = {
    "schemes": ("The schemes", "residual"),
    "single": ("The other schemes, one seed each", "residual, the same seed"),
    "chunks": ("DAR's chunk size", "residual"),
    "ablations": ("What helps or hurts", "residual"),
    "repa": ("With REPA", "residual with REPA"),
    "deep": ("28 blocks", "residual at 28 blocks"),
}
BADGES = {"confirmed": "pass", "not confirmed": "fail", "undecided": "warn"}
SYMPTOM_HEADS = {
    **{name: symptom.words.capitalize() for name, symptom in SYMPTOMS.items()},
    "importance_shift": "Importance shift",
    "selectivity_shift": "Route shift",
}


# Where the titles of axes are defined: a figure's definitions are those of what it shows.
DEFINED = {
    "validation loss": "study:loss",
    "difference of the loss": "study:pairs",
    "difference of the distance": "study:frechet",
    "Fréchet distance": "study:frechet",
    "seconds of training": "study:seconds",
    "step / residual step": "study:seconds",
    **{panel.label: panel.variable for panel in palette.PANELS},
}
SHORT = 5  # sentences that are seen at once


class Cell(NamedTuple):
    """A cell of a table: what it shows, its interval, and its numbers in full."""

    text: str
    range: str
    value: float | str
    low: float | str
    high: float | str


def render(results: Results, drawings: Sequence[Drawing]) -> str:
    """Return the whole page; it loads nothing, and equal arguments give an equal page."""
    first = next(iter(results.lines.values())).records[0]
    return document.render(
        "study.html.j2",
        facts=_facts(results, first.config),
        sentences=[palette.clean(text, 600) for text in summary.sentences(results)],
        short=SHORT,
        claims=[
            (
                claim.text,
                claim.status,
                BADGES.get(claim.status, ""),
                palette.clean(claim.evidence, 600),
            )
            for claim in claims.judge(results)
        ],
        figures=_figures(results, drawings),
        tables=[
            (title, reference, group, [_row(line) for line in lines])
            for group, (title, reference) in GROUPS.items()
            if (lines := _members(results, group))
        ],
        symptom_heads=SYMPTOM_HEADS,
        symptoms=[
            (
                title,
                group,
                [(line.label, [_symptom(line, name) for name in SYMPTOM_HEADS]) for line in lines],
            )
            for group, (title, _) in GROUPS.items()
            if (lines := _members(results, group))
        ],
        machines=_machines(results),
        versions=sorted({palette.clean(one.version) for one in results.records}),
        scale=palette.clean(results.scale),
        define=definitions.definitions(),
        bibtex=wording.BIBTEX,
    )


def _facts(results: Results, config: dict[str, Any]) -> list[str]:
    found = [
        f"scale {results.scale}",
        headline.counted(len(results.records), "run"),
        f"{config['depth']} blocks x {config['width']}",
        f"{config['steps']:,} steps of {config['batch_size']} samples",
        f"data: {config['data']}",
    ]
    return [palette.clean(fact) for fact in found]


def _members(results: Results, group: str) -> list[SchemeResult]:
    """Return the lines of a group's table, what they vary first."""
    if group in ("chunks", "ablations"):
        return results.varied(group)
    return {"schemes": results.main, "single": results.single}.get(group) or results.of(group)


def _figures(results: Results, drawings: Sequence[Drawing]) -> list[dict[str, Any]]:
    """Return the page's figures, each with a fixed id, a caption and its plotly JSON."""
    found = [
        (one.title, one.caption, alt_text.lines(one.figure, along=""), _defined(one.figure),
         one.figure)
        for one in drawings
    ]  # fmt: skip
    if ranking := study_ranking.ranking(results):
        spoken, made = study_ranking.spoken(ranking), study_ranking.figure(ranking)
        first = (study_ranking.TITLE, study_ranking.CAPTION, spoken, _defined(made), made)
        found.insert(0, first)
    if routes := study_routes.maps(results):
        spoken, made = study_routes.spoken(routes), study_routes.figure(routes)
        found.append((study_routes.TITLE, study_routes.CAPTION, spoken, ("route",), made))
    return [
        {
            "id": f"fig-{at:02d}",
            "title": title,
            "caption": caption,
            "alt": alt,
            "small": False,
            "still": None,
            "define": define,
            "spec": plotly.draw(made),
        }
        for at, (title, caption, alt, define, made) in enumerate(found, start=1)
    ]


def _defined(figure: Figure) -> tuple[str, ...]:
    """Return the keys of the definitions of what a figure's axes show."""
    titles = [axis.title for panel in figure.panels for axis in (panel.y, panel.x)]
    return tuple(dict.fromkeys(DEFINED[title] for title in titles if title in DEFINED))


def _row(line: SchemeResult) -> dict[str, Any]:
    first = line.records[0]
    reached = [factor for factor in line.factors if factor]
    never = len(line.factors) - len(reached)
    sooner = _cell(over_seeds(reached, "ratio"), 3) if reached else _none("never" if never else "")
    if reached and never:
        sooner = sooner._replace(range=f"never in {never} of {len(line.factors)}")
    flops = "" if first.flops is None else f"{first.flops / 1e6:.1f}"
    return {
        "label": palette.clean(line.label),
        "seeds": line.seeds,
        "cells": [
            _cell(line.loss, 4),
            _none("") if line.is_reference else _signed(-line.gain(claims.final_loss)),
            _cell(line.frechet, 3),
            _cell(line.at_equal_time, 4),
            sooner,
            Cell(f"{line.ratio:.2f}", "", line.ratio, "", ""),
            Cell(f"{line.memory:.2f}", "", line.memory, "", ""),
            Cell(f"{first.parameters:,}", "", first.parameters, "", ""),
            Cell(flops or "not counted", "", "" if first.flops is None else first.flops, "", ""),
        ],
    }


def _cell(found: Interval, digits: int) -> Cell:
    if found.value != found.value:
        return _none("not measured")
    known = found.low == found.low
    low, high = (decimal(end, digits) for end in (found.low, found.high))
    ends = (found.low, found.high) if known else ("", "")
    return Cell(decimal(found.value, digits), f"[{low}, {high}]" if known else "",
                found.value, *ends)  # fmt: skip


def _signed(found: Interval) -> Cell:
    """Show a difference with four decimals and its sign."""
    cell = _cell(found, 4)
    if found.value != found.value:
        return cell
    ends = f"[{found.low:+.4f}, {found.high:+.4f}]" if cell.range else ""
    return cell._replace(text=f"{found.value:+.4f}", range=ends)


def _none(text: str) -> Cell:
    return Cell(text, "", "", "", "")


def _symptom(line: SchemeResult, name: str) -> tuple[Cell, Cell]:
    assert name in NUMBERS
    return tuple(  # type: ignore[return-value]
        _cell(claims.of_symptom(line, name, when), 3) for when in ("start", "end")
    )


def _machines(results: Results) -> list[str]:
    found = {
        f"{one.machine.get('name')} ({one.machine.get('device')}), "
        f"{one.machine.get('threads')} threads, torch {one.machine.get('torch')}"
        for one in results.records
    }
    return sorted(palette.clean(text, 200) for text in found)
