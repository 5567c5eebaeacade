"""One self-contained HTML page: the verdict, the figures, and what they rest on."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from dar_probe.files.text import decimal
from dar_probe.reports.pages import (
    analysis_figures,
    definitions,
    document,
    headline,
    tables,
    wording,
)
from dar_probe.reports.style import palette, source_maps
from dar_probe.results import schema
from dar_probe.results.metrics import Metric, means
from dar_probe.results.symptoms import SYMPTOMS, unit_of
from dar_probe.results.trajectory import split
from dar_probe.results.verdict import Thresholds, Verdict

LONG = 600  # characters of a sentence or of one provenance value


def render(
    ds: xr.Dataset,
    metrics: Mapping[str, Metric],
    verdict: Verdict,
    *,
    thresholds: Thresholds | None = None,
    changes: Mapping[str, tuple[Metric, Metric]] | None = None,
    trajectory: xr.Dataset | None = None,
    text: tuple[xr.Dataset, Mapping[str, Metric]] | None = None,
) -> str:
    """Return the whole page; it loads nothing, and equal arguments give an equal page.

    Args:
        ds: a valid analysis.
        metrics: what ``metrics.compute`` gave for it.
        verdict: what ``verdict.judge`` gave for it.
        thresholds: those that ``judge`` was given; left out, its own.
        changes: numbers before and after training, where ``ds`` is of a trained copy.
        trajectory: the analyses of a whole training run, where ``ds`` is of its last step.
        text: the analysis and the metrics of the text's stream, where ``ds`` is of the image's.

    Raises:
        CheckpointError: the dataset carries no readable manifest.
    """
    manifest = schema.manifest(ds)
    limits = thresholds or Thresholds()
    every = source_maps.sublayer_maps(ds)
    steps = [] if trajectory is None else [(step, means(one)) for step, one in split(trajectory)]
    shown = [] if trajectory is None else analysis_figures.of_training(trajectory, steps, limits)
    over_training = analysis_figures.numbered(shown)  # before all else: it was asked for
    all_figures = analysis_figures.of_analysis(ds, name_of(manifest), every)
    if text is not None:
        both = analysis_figures.of_streams({"image": ds, "text": text[0]})
        all_figures = [*both, *all_figures, *analysis_figures.of_text(text[0])]
    figures = analysis_figures.numbered(all_figures, first=len(shown) + 1)
    return document.render(
        "report.html.j2",
        name=palette.clean(name_of(manifest), 120),
        facts=_facts(ds, manifest),
        warnings=[palette.clean(str(text), LONG) for text in manifest.get("warnings") or []],
        assumptions=[palette.clean(str(text), LONG) for text in manifest.get("assumptions") or []],
        verdict=verdict,
        words=wording.STATUS_WORDS,
        cards=_cards(verdict, metrics, limits),
        training=manifest.get("training") or {},
        changes=_changes(changes or {}),
        figures=analysis_figures.grouped(figures),
        over_training=over_training,
        tables=[
            tables.blocks(ds),
            tables.readers(ds, every),
            *([tables.steps(steps)] if steps else []),
            *([tables.streams({"image": metrics, "text": text[1]})] if text else []),
        ],
        define=definitions.definitions(),
        findings=[(finding, _meaning(finding.name)) for finding in verdict.findings],
        intervals=_intervals(ds),
        trust=[_trust(metrics[name]) for name in wording.TRUST_TEXT],
        metrics=list(metrics.values()),
        variables=schema.VARIABLES,
        axes=schema.COORD_TEXT,
        provenance=provenance(manifest),
        config=json.dumps(manifest.get("config") or {}, indent=2, sort_keys=True),
        bibtex=wording.BIBTEX,
    )


def name_of(manifest: Mapping[str, Any]) -> str:
    """Return what the analysis is called: the model's name, else the checkpoint's file."""
    for key in ("model", "checkpoint"):
        name = (manifest.get(key) or {}).get("name")
        if name:
            return str(name)
    return "unnamed model"


def _facts(ds: xr.Dataset, manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (text, key of its definition or nothing) of what was measured."""
    model = manifest.get("model") or {}
    data = (manifest.get("data") or {}).get("name")
    objective = (manifest.get("config") or {}).get("objective")
    routing = headline.routing_title(model) or "unknown"
    file = (manifest.get("checkpoint") or {}).get("name")
    told = file in (None, name_of(manifest))  # the title says it already
    parts = [
        ("" if told else palette.clean(str(file)), ""),
        (f"routing: {palette.clean(routing)}", ""),
        (f"objective: {palette.clean(str(objective))}" if objective else "", ""),
        (f"{model['parameters']:,} parameters" if model.get("parameters") else "", "parameters"),
        (headline.counted(ds.sizes["block"] - 1, "block"), "axis:block"),
        (headline.counted(ds.sizes["noise_level"], "noise level"), "axis:noise_level"),
        (headline.counted(ds.sizes["sample"], "sample"), "axis:sample"),
        (f"data: {palette.clean(str(data))}" if data else "", ""),
    ]
    return [(text, key) for text, key in parts if text]


def _cards(
    verdict: Verdict, metrics: Mapping[str, Metric], limits: Thresholds
) -> list[dict[str, Any]]:
    status = {finding.name: finding.status for finding in verdict.findings}
    advice = {finding.name: finding.advice for finding in verdict.findings}
    cards = []
    for name, symptom in SYMPTOMS.items():
        metric, unit = metrics[name], symptom.unit
        warn, fail = getattr(limits, f"{name}_warn"), getattr(limits, f"{name}_fail")
        cards.append(
            {
                "title": symptom.title,
                "define": f"metric:{name}",
                "about": symptom.about,
                "status": status[name],
                "advice": advice[name],
                "value": _with_unit(metric.value, unit),
                "interval": _interval(metric, unit),
                "limits": f"warning above {warn:g}{unit}, failure above {fail:g}{unit}",
                "gauge": {
                    key: _gauge(name, value)
                    for key, value in {"value": metric.value, "warn": warn, "fail": fail}.items()
                },
            }
        )
    return cards


def _changes(changes: Mapping[str, tuple[Metric, Metric]]) -> list[dict[str, Any]]:
    rows = []
    for name, pair in changes.items():
        unit = unit_of(name)
        cells = [
            {
                "text": _with_unit(m.value, unit),
                "interval": _interval(m, unit),
                "cell": tables.number_cell(m.value, m.low, m.high),
            }
            for m in pair
        ]
        title = SYMPTOMS[name].title if name in SYMPTOMS else name.capitalize()
        define = f"metric:{name}" if name in SYMPTOMS else name
        rows.append({"title": title, "cells": cells, "define": define})
    return rows


def _meaning(finding: str) -> str:
    """Return the key of what a finding's numbers mean."""
    return finding if finding in wording.MEANINGS else f"metric:{finding}"


def _gauge(name: str, value: float) -> float | None:
    """Return where a value lies on its card's gauge, in percent; ratios are logarithmic."""
    if not np.isfinite(value):
        return None
    share = np.log10(max(value, 1.0)) / 2 if SYMPTOMS[name].ratio else 2 * value - 1
    return round(float(np.clip(100 * share, 0, 100)), 1)


def _with_unit(value: float, unit: str) -> str:
    return decimal(value) + unit if np.isfinite(value) else "n/a"


def _interval(metric: Metric, unit: str = "") -> str:
    if not np.isfinite(metric.value):
        return ""
    if not np.isfinite(metric.low):
        return "no interval: one sample"
    return f"95 % interval {decimal(metric.low)}{unit} to {decimal(metric.high)}{unit}"


def _intervals(ds: xr.Dataset) -> str:
    samples = ds.sizes["sample"]
    if samples == 1:
        return "One sample was measured, so no number on this page has an interval."
    few = " That is few: read the intervals as a lower bound." if samples < 8 else ""
    return (
        f"Intervals are 95 % bootstrap intervals over {samples} samples.{few} They cover the "
        "choice of samples and their noise, not the choice of checkpoint, data or training run."
    )


def _trust(metric: Metric) -> dict[str, Any]:
    title, about = wording.TRUST_TEXT[metric.name]
    return {
        "title": title,
        "value": decimal(metric.value, 2) if np.isfinite(metric.value) else "n/a",
        "interval": _interval(metric).removeprefix("95 % interval "),
        "cell": tables.number_cell(metric.value, metric.low, metric.high),
        "define": f"metric:{metric.name}",
        "about": about,
    }


def provenance(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (label, value) rows; what the manifest does not know is left out."""
    rows: list[tuple[str, Any]] = []
    for part in ("checkpoint", "model", "data", "training"):
        for key, value in (manifest.get(part) or {}).items():
            rows.append((f"{part} {key.replace('_', ' ')}", value))
    rows += [(key, manifest.get(key)) for key in ("seed", "device", "dtype", "created")]
    versions = manifest.get("versions") or {}
    rows.append(("versions", ", ".join(f"{key} {value}" for key, value in versions.items())))
    return [
        (palette.clean(label), palette.clean(str(value), LONG))
        for label, value in rows
        if value not in (None, "")
    ]
