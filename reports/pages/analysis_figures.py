"""The figures of the page, each with its title, caption, definitions and what is said of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import numpy as np
import xarray as xr

from dar_probe.files.text import decimal
from dar_probe.reports.draw import plotly
from dar_probe.reports.draw import still as preview
from dar_probe.reports.figures import (
    decodability,
    dilution,
    heatmap,
    interventions,
    reader_maps,
    sources,
)
from dar_probe.reports.figures import trajectory as over_steps
from dar_probe.reports.figures.description import Figure
from dar_probe.reports.pages import alt_text, wording
from dar_probe.reports.style import palette, source_maps
from dar_probe.results import interventions as effects
from dar_probe.results import trajectory
from dar_probe.results.importance import signs_can_tell
from dar_probe.results.schema import MAPS, VARIABLES
from dar_probe.results.symptoms import SYMPTOMS
from dar_probe.results.verdict import Thresholds


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One figure of the page.

    Attributes:
        title, caption: above it.
        figure: what it shows.
        alt: what it shows in words, with its main numbers.
        define: keys of the definitions of what is drawn, and of nothing else.
        fold: the name of what it is folded into; empty where it is seen at once.
        still: whether it consists of lines and is seen first, so that a still stands in for it.
        small: whether two of them stand side by side.
    """

    title: str
    caption: str
    figure: Figure
    alt: str
    define: tuple[str, ...]
    small: bool = False
    still: bool = False
    fold: str = ""


def of_analysis(ds: xr.Dataset, name: str, every: Sequence[source_maps.SourceMap]) -> list[Shown]:
    """Return the figures of one analysis; those of which nothing was measured are left out.

    What was asked for comes first: interventions, where there are any.

    Args:
        ds: an analysis.
        name: what it is called.
        every: what ``source_maps.sublayer_maps`` gave for it.
    """
    return list(_of_analysis(ds, name, every))


def of_training(
    joined: xr.Dataset, found: Sequence[over_steps.Step], limits: Thresholds
) -> list[Shown]:
    """Return the figures of a trajectory: the symptoms over its steps, and step x depth maps.

    Args:
        joined: the trajectory.
        found: what ``metrics.means`` gave for each of its steps.
        limits: where a symptom is a warning and a failure.
    """
    pairs = trajectory.split(joined)
    shown = [
        Shown(
            title="Symptoms over training",
            caption=wording.STEPS_CAPTION,
            figure=over_steps.symptoms(found, limits),
            alt=alt_text.steps(found),
            define=(*(f"metric:{name}" for name in SYMPTOMS), "limits"),
        )
    ]
    for name in over_steps.MAPS:
        if np.isfinite(joined[name].values).any():
            shown.append(
                Shown(
                    title=f"{VARIABLES[name].title} over training",
                    caption="Shallow at the bottom, later steps to the right.",
                    figure=over_steps.step_map(pairs, name),
                    alt=alt_text.step_map(pairs, name),
                    define=(name,),
                    small=True,
                )
            )
    return shown


def of_streams(found: Mapping[str, xr.Dataset]) -> list[Shown]:
    """Return the figure of both streams over depth."""
    said = " ".join(f"{name.capitalize()}: {alt_text.depth(ds)}" for name, ds in found.items())
    return [
        Shown(
            title="Image and text over depth",
            caption=wording.STREAMS_CAPTION,
            figure=dilution.dilution(list(found.items()), middles=True),
            alt=said,
            define=("rms", "grad_rms", "cosine"),
        )
    ]


def of_text(ds: xr.Dataset) -> list[Shown]:
    """Return the figures of the text's stream, in a fold of their own."""
    every = source_maps.sublayer_maps(ds)
    return [
        replace(one, title=f"Text: {one.title}", fold="The stream of the text", still=False)
        for one in of_analysis(ds, "text", every)
    ]


def numbered(shown: Sequence[Shown], first: int = 1) -> list[dict[str, Any]]:
    """Return the figures as the template wants them, each with a fixed id and its JSON."""
    found = []
    for at, one in enumerate(shown, start=first):
        drawn = plotly.draw(one.figure)
        said = {field.name: getattr(one, field.name) for field in fields(one)}
        still = preview.still(drawn) if one.still else None
        found.append({**said, "id": f"fig-{at:02d}", "still": still, "spec": drawn})
    return found


def grouped(figures: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return runs of figures with the fold that they share; empty for those seen at once."""
    return [(fold, list(run)) for fold, run in groupby(figures, key=lambda one: one["fold"])]


def _of_analysis(
    ds: xr.Dataset, name: str, every: Sequence[source_maps.SourceMap]
) -> Iterator[Shown]:
    router = source_maps.has_router(ds)
    stream = palette.routing_of(ds) != "none"
    many = ds.sizes["sample"] > 1
    if "ablation" in ds.dims:
        yield Shown(
            title="What interventions did",
            caption=wording.EFFECT_CAPTION,
            figure=_scatter(interventions.interventions(ds)),
            alt=_said_of_interventions(ds),
            define=("gate_ablated", "gate_linear", "rank_correlation", "linearisation_error"),
        )
    yield Shown(
        title="Depth",
        caption=wording.depth_caption(router, ds.sizes["sample"], stream=stream),
        figure=dilution.dilution([(name, ds)], middles=True),
        alt=alt_text.depth(ds),
        define=("rms", "grad_rms", "cosine", *(("interval", "spread") if many else ())),
        still=True,
    )
    yield from _sources(ds, every, router)
    yield from _variables(ds, router)


def _variables(ds: xr.Dataset, router: bool) -> Iterator[Shown]:
    """Yield every variable over depth and noise level, folded."""
    if np.isfinite(ds["decodability"].values).any():
        yield Shown(
            title="Where the noise level can be read",
            caption=wording.DECODING_CAPTION,
            figure=decodability.decodability(ds),
            alt=alt_text.decodability(ds),
            define=("decodability",),
            small=True,
            fold=wording.VARIABLES_FOLD,
        )
    of_symptoms = {symptom.variable for symptom in SYMPTOMS.values()}
    for variable in sorted(MAPS, key=lambda name: name not in of_symptoms):
        measured = np.isfinite(ds[variable].values).any()
        if measured and (router or variable != "route_entropy"):
            yield Shown(
                title=VARIABLES[variable].title,
                caption=VARIABLES[variable].caption,
                figure=heatmap.heatmap(ds, variable, intervals=True),
                alt=alt_text.heatmap(ds, variable),
                define=(variable,),
                small=True,
                fold=wording.VARIABLES_FOLD,
            )


def _sources(
    ds: xr.Dataset, every: Sequence[source_maps.SourceMap], router: bool
) -> Iterator[Shown]:
    rows = source_maps.block_maps(ds)
    told = signs_can_tell(ds.sizes["sample"])
    if rows:
        yield Shown(
            title="Sources over noise levels",
            caption=wording.source_caption(router) + _of_dots(rows, wording.dot_caption(told)),
            figure=sources.sources(ds, rows, gaps=True),
            alt=alt_text.sources(ds, rows),
            define=_defined(rows),
        )
    if every:
        dots = _of_dots(every, wording.DOT_AGAIN if told else "")
        yield Shown(
            title="Every reader and every source",
            caption=wording.MATRIX_CAPTION + dots,
            figure=reader_maps.every_reader(ds, every),
            alt=alt_text.every_reader(ds, every),
            define=_defined(every),
        )
        yield Shown(
            title="One reader over noise levels",
            caption=wording.READER_CAPTION + dots,
            figure=reader_maps.one_reader(ds, every),
            alt=alt_text.reader(ds, every),
            define=_defined(every),
            fold=wording.READER_FOLD,
        )


def _of_dots(rows: Sequence[source_maps.SourceMap], words: str) -> str:
    """Return what is said of dots, where there is a map that can have any."""
    return words if rows[0].quantity == "importance" else ""


def _defined(rows: Sequence[source_maps.SourceMap]) -> tuple[str, ...]:
    """Return what maps of sources show: their quantities, and dots if there are any."""
    dotted = any(bool(row.marked.any()) for row in rows)
    return (*(row.quantity for row in rows), *(("sign",) if dotted else ()))


def _scatter(figure: Figure) -> Figure:
    """Return the first panel alone: its names are under the pointer, so no list is needed."""
    screen = replace(figure.screen, columns=1)
    return replace(figure, panels=figure.panels[:1], screen=screen, lettered=False)


def _said_of_interventions(ds: xr.Dataset) -> str:
    kinds = [
        f"{effects.KIND_TEXT[found.kind]} ({found.count}): rank correlation "
        f"{decimal(found.rank.value, 2)}"
        for found in effects.agreement(ds, resamples=1)
    ]
    return f"Scatter of true against predicted changes of the loss. {'; '.join(kinds)}."
