"""What the terminal and the notebook both say of an analysis: model, grid, the three symptoms."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from dar_probe.files.text import quantity
from dar_probe.results.symptoms import SYMPTOMS

if TYPE_CHECKING:  # the command line imports this module before anything heavy
    import xarray as xr

    from dar_probe.results.metrics import Metric
    from dar_probe.results.verdict import Status, Verdict


class PrintedSymptom(NamedTuple):
    """One symptom as it is printed.

    Attributes:
        label: its name in words.
        value: three digits and the unit, "n/a" where it is not measurable.
        interval: "1.88x to 1.91x", "one sample" without an interval, or empty without a value.
        status: of its finding.
        curve: its variable at the blocks 1..B, pooled over samples and noise levels.
    """

    label: str
    value: str
    interval: str
    status: "Status"
    curve: list[float]


def symptoms(
    ds: "xr.Dataset", metrics: "Mapping[str, Metric]", verdict: "Verdict"
) -> list[PrintedSymptom]:
    """Return the three symptoms in the order of the paper."""
    from dar_probe.results.metrics import profile

    status = {finding.name: finding.status for finding in verdict.findings}
    found = []
    for name, symptom in SYMPTOMS.items():
        curve = profile(ds, symptom.variable, resamples=1)["value"].values[1:].tolist()
        value = quantity(metrics[name].value, symptom.unit)
        between = interval(metrics[name], symptom.unit)
        found.append(PrintedSymptom(symptom.label, value, between, status[name], curve))
    return found


def interval(metric: "Metric", unit: str = "") -> str:
    """Return "low to high", or what stands in for it."""
    if metric.value != metric.value:
        return ""
    if metric.low != metric.low:
        return "one sample"
    return f"{quantity(metric.low, unit)} to {quantity(metric.high, unit)}"


def model(found: Mapping[str, Any]) -> str:
    """Return "28 blocks x 64, plain residuals, 2.1 M parameters" of a manifest's ``model``.

    What the manifest does not tell is left out.
    """
    options = [
        f"chunks of {found['chunk_size']}" if found.get("chunk_size") else "",
        counted(found["streams"], "stream") if found.get("streams") else "",
        *(f"{o} {found[o]}" for o in ("dilation", "period") if found.get(o, 1) != 1),
    ]
    named = " ".join(filter(None, (routing_title(found), str(found.get("query") or ""))))
    routing = ", ".join(filter(None, (named, *options)))
    size = f"{found['depth']} blocks" if "depth" in found else ""
    if size and "width" in found:
        size = f"{size} x {found['width']}"
    count = found.get("parameters")
    many = ""
    if isinstance(count, int):
        many = f"{count / 1e6:.1f} M" if count >= 100_000 else f"{count:,}"
        many += " parameters"
    return ", ".join(part for part in (size, routing, many) if part)


def routing_title(found: Mapping[str, Any]) -> str:
    """Return what a manifest's ``model`` calls its routing; older files have its name alone."""
    return str(found.get("routing_title") or found.get("routing") or "")


def grid(ds: "xr.Dataset", data: str) -> str:
    """Return "10 noise levels from 0.01 to 0.99 x 64 samples of digits"."""
    levels = ds["noise_level"].values
    many = f"{counted(len(levels), 'noise level')} from {levels[0]:.2f} to {levels[-1]:.2f}"
    if len(levels) == 1:
        many = f"noise level {levels[0]:.2f}"
    # Two kinds of data are no collection with a name, see ``results.schema.OWN_SAMPLES``.
    whose = {"own samples": "of the model's own", "batch": "from the batch function"}
    return f"{many} x {counted(ds.sizes['sample'], 'sample')} {whose.get(data, f'of {data}')}"


def counted(count: int, noun: str) -> str:
    """Return "1 sample" or "2 samples"."""
    return f"{count} {noun}{'s' * (count != 1)}"
