"""An analysis as the last line of a notebook's cell shows it: HTML, and text for a console."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from markupsafe import Markup

from dar_probe.files.text import decimal, quantity, span
from dar_probe.files.text import sparkline as marks
from dar_probe.reports.pages import document, headline
from dar_probe.reports.pages import wording as words
from dar_probe.reports.style import palette
from dar_probe.results import schema
from dar_probe.results.metrics import Metric
from dar_probe.results.symptoms import SYMPTOMS
from dar_probe.results.verdict import Verdict, with_interval

WIDE, HIGH, EDGE = 150, 26, 3  # of a sparkline, pixels
LONG = 300  # characters of a warning


def html(
    ds: xr.Dataset,
    metrics: Mapping[str, Metric],
    verdict: Verdict,
    *,
    name: str,
    changes: Mapping[str, tuple[Metric, Metric]] | None = None,
) -> str:
    """Return a piece of HTML without scripts that reads well on a light and on a dark ground.

    Args:
        ds: an analysis.
        metrics: what ``metrics.compute`` gave for it.
        verdict: what ``verdict.judge`` gave for it.
        name: what it is called.
        changes: numbers before and after training, where ``ds`` is of a trained copy.
    """
    manifest = schema.manifest(ds)
    environment = document.environment()
    environment.filters["plain"] = _plain
    symptoms = headline.symptoms(ds, metrics, verdict)
    before = [
        quantity(changes[name][0].value, symptom.unit) if changes else ""
        for name, symptom in SYMPTOMS.items()
    ]
    return environment.get_template("notebook.html.j2").render(
        name=palette.clean(name, 120),
        facts=[
            palette.clean(headline.model(manifest["model"]), LONG),
            palette.clean(headline.grid(ds, str(manifest["data"].get("name"))), LONG),
        ],
        warnings=[palette.clean(str(text), LONG) for text in manifest["warnings"]],
        verdict=verdict,
        words=words.STATUS_WORDS,
        symptoms=list(zip(symptoms, before, map(sparkline, symptoms), strict=True)),
        trained=bool(changes),
        blocks=ds.sizes["block"] - 1,
    )


def text(ds: xr.Dataset, metrics: Mapping[str, Metric], verdict: Verdict, *, name: str) -> str:
    """Return two lines, the three symptoms with their curves, and what finds out more."""
    sizes = ds.sizes
    head = (
        f"<dar_probe.Analysis of {palette.clean(name)!r}: "
        f"{headline.counted(sizes['noise_level'], 'noise level')} x "
        f"{headline.counted(sizes['sample'], 'sample')}, "
        f"{headline.counted(sizes['block'] - 1, 'block')}; {verdict.status}>"
    )
    status = {finding.name: finding.status for finding in verdict.findings}
    numbers = {name: f"{with_interval(metrics[name])}" for name in SYMPTOMS}
    wide = max(map(len, numbers.values()))
    curves = [one.curve for one in headline.symptoms(ds, metrics, verdict)]
    rows = [
        f"  {symptom.label:<14}  {numbers[name]:<{wide}}  {marks(curve)}  "
        f"{words.STATUS_WORDS[status[name]]}"
        for (name, symptom), curve in zip(SYMPTOMS.items(), curves, strict=True)
    ]
    more = [
        f"  to find out more of {finding.name.replace('_', ' ')}: {finding.advice.commands[0]}"
        for finding in verdict.findings
        if finding.advice
    ]
    return "\n".join([head, verdict.sentence, *rows, *more])


def sparkline(symptom: headline.PrintedSymptom) -> Markup:
    """Return a line over the blocks 1..B as inline SVG; a gap where nothing was measured."""
    values = np.asarray(symptom.curve, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(values))
    if not known.size:
        return Markup("")
    low, high = values[known].min(), values[known].max()
    x = EDGE + (WIDE - 2 * EDGE) * np.arange(len(values)) / max(len(values) - 1, 1)
    y = HIGH - EDGE - (HIGH - 2 * EDGE) * (values - low) / (span(values[known]) or np.inf)
    lines = [
        " ".join(f"{x[at]:.1f},{y[at]:.1f}" for at in run)
        for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
    ]
    first, last = known[0], known[-1]
    about = (
        f"{symptom.label}: {decimal(values[first])} at block {first + 1}, "
        f"{decimal(values[last])} at block {last + 1}, "
        f"between {decimal(low)} and {decimal(high)}"
    )
    drawn = Markup("").join(
        Markup(
            '<polyline points="{}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
        ).format(line)
        for line in lines
    )
    return Markup(
        '<svg width="{}" height="{}" role="img" style="vertical-align:middle">'
        '<title>{}</title>{}<circle cx="{:.1f}" cy="{:.1f}" r="2.2" fill="currentColor"/></svg>'
    ).format(WIDE, HIGH, about, drawn, x[last], y[last])


def _plain(words: str) -> Markup:
    """Escape, and keep MathJax from reading what stands between two dollar signs."""
    return Markup("<span>$</span>").join(words.split("$"))
