"""One self-contained HTML page of a comparison: what differs, and how far that can be told."""

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from dar_probe.files.text import decimal
from dar_probe.reports.draw import plotly
from dar_probe.reports.figures import differences, dilution
from dar_probe.reports.figures.description import Figure
from dar_probe.reports.pages import (
    alt_text,
    analysis,
    definitions,
    document,
    headline,
    wording,
)
from dar_probe.reports.style import palette, source_maps
from dar_probe.results import metrics, schema
from dar_probe.results.intervals import numbers
from dar_probe.results.metrics import Metric
from dar_probe.results.paired import NUMBERS, Pair, amount, distinct, signed
from dar_probe.results.streams import single
from dar_probe.results.verdict import Verdict, judge, plain, unmeasured

LONG = 600  # characters of a sentence

DILUTION_CAPTION = (
    "Hidden-state RMS, gradient RMS and cosine between neighbouring blocks of every model, pooled "
    "over samples and noise levels."
)
DIFFERENCE_CAPTION = (
    "Every other model minus {}, block by block, over the same samples and noise. Where a band "
    "leaves zero, the models differ by more than the choice of samples explains."
)
BAND_CAPTION = " Bands: 95 % intervals over samples."


def render(
    analyses: Sequence[tuple[str, xr.Dataset]],
    pairs: Sequence[Pair],
    *,
    judged: Sequence[tuple[Mapping[str, Metric], Verdict]] | None = None,
) -> str:
    """Return the whole page; it loads nothing, and equal arguments give an equal page.

    Args:
        analyses: (name, dataset) pairs, the names those of ``pairs``; the first is the reference.
        pairs: what ``pairs.compare`` gave for them.
        judged: what ``metrics.compute`` and ``verdict.judge`` gave for each; left out, they are
            asked, by the default thresholds.
    """
    datasets = [single(ds) for _, ds in analyses]
    if judged is None:
        found = [metrics.compute(ds) for ds in datasets]
        judged = [(own, judge(ds, own)) for ds, own in zip(datasets, found, strict=True)]
    manifests = [schema.manifest(ds) for ds in datasets]
    names = [palette.clean(name, 120) for name, _ in analyses]
    shown = list(zip([name for name, _ in analyses], datasets, strict=True))
    return document.render(
        "comparison.html.j2",
        reference=names[0],
        others=names[1:],
        facts=_facts(datasets[0], manifests[0]),
        apart=[palette.clean(pair.sentence, LONG) for pair in pairs if pair.reason],
        warnings=[
            (name, text)
            for name, manifest in zip(names, manifests, strict=True)
            for text in _texts(manifest.get("warnings"))
        ],
        pairs=[_pair(pair) for pair in pairs if not pair.reason],
        models=[(name, verdict) for name, (_, verdict) in zip(names, judged, strict=True)],
        words=wording.STATUS_WORDS,
        figures=_figures(shown, pairs),
        numbers=[_numbers(name, datasets, [own for own, _ in judged]) for name in NUMBERS],
        intervals=_intervals(datasets[0].sizes["sample"]),
        define=definitions.definitions(),
        provenance=[
            (name, analysis.provenance(manifest), _texts(manifest.get("assumptions")))
            for name, manifest in zip(names, manifests, strict=True)
        ],
        bibtex=wording.BIBTEX,
    )


def _facts(ds: xr.Dataset, manifest: dict[str, Any]) -> list[str]:
    counts = {"noise level": ds.sizes["noise_level"], "sample": ds.sizes["sample"]}
    data = (manifest.get("data") or {}).get("name")
    found = [headline.counted(count, noun) for noun, count in counts.items()]
    return [*found, *([f"data: {palette.clean(str(data))}"] if data else [])]


def _texts(values: Any) -> list[str]:
    return [palette.clean(str(text), LONG) for text in values or []]


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "reference": palette.clean(pair.reference, 120),
        "other": palette.clean(pair.other, 120),
        "sentence": palette.clean(pair.sentence, LONG),
        "notes": [palette.clean(note, LONG) for note in pair.notes],
        "rows": [
            (
                _key(change.name),
                plain(change.name),
                signed(change.difference),
                _exact(change.difference),
                palette.clean(change.sentence, LONG),
            )
            for change in pair.changes
        ],
    }


def _numbers(
    name: str, datasets: Sequence[xr.Dataset], found: Sequence[Mapping[str, Metric]]
) -> tuple[str, str, list[tuple[str, str, dict[str, float | str]]]]:
    """Return a row of the table of all models: key, title, (value, interval, numbers) of each."""
    cells: list[tuple[str, str, dict[str, float | str]]] = []
    for ds, own in zip(datasets, found, strict=True):
        metric = own[name] if name in own else metrics.mean_loss(ds)
        if unmeasured(ds, metric):
            cells.append(("not measurable", "", dict.fromkeys(_exact(metric), "")))
            continue
        low, high = decimal(metric.low), decimal(metric.high)
        known = metric.low == metric.low
        interval = f"[{low}, {high}]" if known else "one sample"
        cells.append((amount(metric), interval, _exact(metric)))
    return _key(name), plain(name), cells


def _exact(metric: Metric) -> dict[str, float | str]:
    """Return value, low and high for sorting and export; empty where there is none."""
    return {key: "" if v is None else v for key, v in numbers(metric).items()}


def _key(name: str) -> str:
    """Return where a number is defined."""
    return f"metric:{name}" if name in metrics.DEFINITIONS else name


def _intervals(samples: int) -> str:
    if samples == 1:
        return "One sample was measured, so no difference has an interval, and none is certain."
    few = " That is few: read the intervals as a lower bound." if samples < 8 else ""
    return (
        f"Every difference has a 95 % interval from 1,000 draws of the {samples} samples.{few} It "
        "is paired: each draw takes the same samples and the same noise of both models, so what "
        "samples do to both alike cancels. Intervals cover the choice of samples and their noise, "
        "not the choice of checkpoint, data or training run."
    )


def _figures(
    analyses: Sequence[tuple[str, xr.Dataset]], pairs: Sequence[Pair]
) -> list[dict[str, Any]]:
    """Return the page's figures, each with a fixed id, a caption and its plotly JSON."""
    # Short enough for the legend of a narrow page.
    names = distinct([palette.clean(name, 40) for name, _ in analyses])
    analyses = [(name, ds) for name, (_, ds) in zip(names, analyses, strict=True)]
    apart = [name for name, pair in zip(names[1:], pairs, strict=True) if pair.reason]
    alien = f" Not of the reference's samples or levels: {', '.join(apart)}." if apart else ""
    bands = BAND_CAPTION if any(ds.sizes["sample"] > 1 for _, ds in analyses) else ""
    gradient = (
        f" {palette.GRADIENT_NOTE}" if any(source_maps.has_router(ds) for _, ds in analyses) else ""
    )
    overlay = DILUTION_CAPTION + alien + bands + gradient
    lines = ("rms", "grad_rms", "cosine")
    found = dilution.dilution(analyses, middles=True)
    own = (*lines, *(("interval", "spread") if bands else ()))
    drawn: list[tuple[str, str, Figure, tuple[str, ...]]] = [
        ("All models over depth", overlay, found, own)
    ]
    if differences.drawable(analyses):
        caption = DIFFERENCE_CAPTION.format(names[0]) + bands + gradient
        found = differences.differences(analyses)
        drawn.append(("Differences over depth", caption, found, (*lines, "paired")))
    return [
        {
            "id": f"fig-{at:02d}",
            "title": title,
            "caption": caption,
            "alt": alt_text.lines(figure, along="block "),
            "small": False,
            "still": None,
            "define": define,
            "spec": plotly.draw(figure),
        }
        for at, (title, caption, figure, define) in enumerate(drawn, start=1)
    ]
