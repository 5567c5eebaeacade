"""Metrics -> a verdict in plain sentences: thresholds and findings."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from dar_probe.results.advice import Advice, advise
from dar_probe.results.intervals import numbers
from dar_probe.results.metrics import Metric, chance, no_choice, profile, staged
from dar_probe.results.schema import manifest
from dar_probe.results.symptoms import SYMPTOMS, unit_of

Status = Literal["pass", "warn", "fail", "info", "untrained", "not measurable"]

FEW = "too few blocks, or states that are zero"
ERROR_BAR = 1e-2  # above this the gates or routes do not describe the model


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where a symptom becomes a warning and where it fails.

    The limits of the symptoms are those of ``symptoms``. ``untrained_write_ratio``: writes below
    this share of the read are none.
    ``idle_cosine``: a block above it that writes all the same hands on what it reads.
    """

    inflation_warn: float = SYMPTOMS["inflation"].warn
    inflation_fail: float = SYMPTOMS["inflation"].fail
    gradient_decay_warn: float = SYMPTOMS["gradient_decay"].warn
    gradient_decay_fail: float = SYMPTOMS["gradient_decay"].fail
    redundancy_warn: float = SYMPTOMS["redundancy"].warn
    redundancy_fail: float = SYMPTOMS["redundancy"].fail
    untrained_write_ratio: float = 1e-4
    idle_cosine: float = 0.9999


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One number; ``sentence`` quotes its value, interval and threshold.

    What no limit is set for has the status "info". A warning or a failure comes with ``advice``.
    """

    name: str
    status: Status
    sentence: str
    metric: Metric | None = None
    advice: Advice | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The whole judgement in one status and one sentence, and what it rests on."""

    status: Status
    sentence: str
    findings: list[Finding]

    def __repr__(self) -> str:
        """Return the status, the sentence, and one line for each finding."""
        found = "".join(f"\n- {item.status}: {item.sentence}" for item in self.findings)
        return f"<Verdict {self.status}> {self.sentence}{found}"


def judge(
    ds: xr.Dataset, metrics: Mapping[str, Metric], thresholds: Thresholds | None = None
) -> Verdict:
    """Judge an analysis by its metrics; ``thresholds`` defaults to ``Thresholds()``.

    A symptom fails when its whole interval lies beyond the failure threshold. It is a warning
    when its value lies beyond the warning threshold or its interval straddles the failure. A
    model whose median sublayer writes nothing, or whose norms or linear layers are as they were
    made, is ``untrained``: its cosines of 1 say nothing.
    """
    limits = thresholds or Thresholds()
    write = profile(ds, "write_ratio", resamples=1)["value"].values
    known = write[np.isfinite(write)]
    median = float(np.median(known)) if known.size else math.nan
    silent = median < limits.untrained_write_ratio
    fresh = str(manifest(ds)["model"].get("fresh") or "")
    untrained = silent or bool(fresh)
    findings = [
        *(
            _symptom(metrics[name], limits, untrained, unmeasured(ds, metrics[name]))
            for name in SYMPTOMS
        ),
        _selectivity(ds, metrics["selectivity"]),
        _shift(ds, metrics["selectivity_shift"], "Routes"),
        _shift(ds, metrics["importance_shift"], "Importances"),
        _measurement(metrics),
        *([] if untrained else _useless_blocks(ds, limits)),
    ]
    findings = [_advised(ds, item, limits) for item in findings]
    if not untrained:
        return _conclude(findings, limits)
    why = (
        f"the median sublayer writes {median:.2g} of what it reads "
        f"(limit {limits.untrained_write_ratio:g})"
        if silent
        else f"{fresh}, and dilution is learnt"
    )
    sentence = f"Untrained: {why}, so no symptom can be judged."
    return Verdict(status="untrained", sentence=sentence, findings=findings)


def _advised(ds: xr.Dataset, item: Finding, limits: Thresholds) -> Finding:
    """Say what a warning or a failure means, and what to do about it."""
    if item.status not in ("warn", "fail"):
        return item
    limit = getattr(limits, f"{item.name}_fail", math.nan)
    return dataclasses.replace(item, advice=advise(ds, item.name, item.metric, limit))


def summary(ds: xr.Dataset, metrics: Mapping[str, Metric], verdict: Verdict) -> dict[str, Any]:
    """Give the contents of summary.json: plain values, None where a number is NaN.

    Raises CheckpointError where the dataset carries no manifest.
    """
    provenance = manifest(ds)
    return {
        "verdict": verdict.status,
        "sentence": verdict.sentence,
        "findings": [
            {
                **{key: getattr(item, key) for key in ("name", "status", "sentence")},
                **({} if item.advice is None else _plain(item.advice)),
            }
            for item in verdict.findings
        ],
        "metrics": {name: numbers(metric) for name, metric in metrics.items()},
        "assumptions": list(provenance.get("assumptions", [])),
        "warnings": list(provenance.get("warnings", [])),
    }


def _plain(advice: Advice) -> dict[str, Any]:
    return {**dataclasses.asdict(advice), "commands": list(advice.commands)}


def unmeasured(ds: xr.Dataset, metric: Metric) -> str:
    """Say why a number says nothing about ``ds``; empty where it does."""
    if metric.name in ("selectivity", "selectivity_shift") and (reason := no_choice(ds)):
        return reason
    if not math.isnan(metric.value):
        return ""
    blind = manifest(ds)["model"].get("blind")
    if blind and metric.name in ("gradient_decay", "importance_shift"):
        return str(blind)
    if metric.name == "selectivity":
        return "no reader has two sources"
    if metric.name in ("selectivity_shift", "importance_shift"):
        return "it takes two noise levels and two sources that matter"
    if metric.name == "loss":
        return "no loss was measured"
    return "a new stream begins on the way" if staged(ds) else FEW


def _symptom(metric: Metric, limits: Thresholds, untrained: bool, unknown: str = FEW) -> Finding:
    warn, fail = (getattr(limits, f"{metric.name}_{kind}") for kind in ("warn", "fail"))
    surely = metric.value if math.isnan(metric.low) else metric.low
    status: Status
    if math.isnan(metric.value):
        status, ending = "not measurable", unknown
    elif untrained:
        status, ending = "untrained", "not judged, because the model is untrained"
    elif surely > fail:
        status, ending = "fail", f"above the failure limit {fail:g}"
    elif metric.value > warn or metric.high > fail:
        far = "the interval reaches beyond" if metric.high > fail else "below"
        near = f"{'' if metric.value > warn else 'not '}above the warning limit {warn:g}"
        status, ending = "warn", f"{near}, {far} the failure limit {fail:g}"
    else:
        status, ending = "pass", f"not above the warning limit {warn:g}"
    sentence = f"{plain(metric.name).capitalize()}: {with_interval(metric)}, {ending}."
    return Finding(name=metric.name, status=status, sentence=sentence, metric=metric)


def _selectivity(ds: xr.Dataset, metric: Metric) -> Finding:
    if reason := unmeasured(ds, metric):
        return _unmeasured(metric, reason)
    offered = np.isfinite(ds["route"].values).any(axis=(0, 1)).sum(axis=1)
    entropy = profile(ds, "route_entropy", resamples=1)["value"].values
    used = (offered >= 2) & np.isfinite(entropy)
    sentence = (
        f"Selectivity is {with_interval(metric)} (0: uniform, 1: one source only): "
        f"an average reader uses {np.exp(entropy[used]).mean():.1f} of "
        f"{offered[used].mean():.1f} sources."
    )
    return Finding(name=metric.name, status="info", sentence=sentence, metric=metric)


def _shift(ds: xr.Dataset, metric: Metric, what: str) -> Finding:
    if reason := unmeasured(ds, metric):
        return _unmeasured(metric, reason)
    level = ds["noise_level"].values
    odds = chance(ds, metric.name)
    sentence = (
        f"{what} shift by {with_interval(metric)} between noise levels {level[0]:.3g} and "
        f"{level[-1]:.3g} (0: none, 1: all), {'more than' if odds < 0.05 else 'which may be'} "
        f"chance (p = {odds:.2g})."
    )
    return Finding(name=metric.name, status="info", sentence=sentence, metric=metric)


def _unmeasured(metric: Metric, reason: str) -> Finding:
    sentence = f"{plain(metric.name).capitalize()} is not measurable: {reason}."
    return Finding(name=metric.name, status="not measurable", sentence=sentence, metric=metric)


def _measurement(metrics: Mapping[str, Metric]) -> Finding:
    texts = {
        "gate_conservation": "a reader's gates cancel to {:.1g} of the largest gate",
        "read_residual": "routes rebuild what is read to {:.1g}",
        "write_lost": "rounding loses {:.1g} of a write",
    }
    values = {n: metrics[n].value for n in texts if math.isfinite(metrics[n].value)}
    large = [plain(n) for n in values if n != "write_lost" and values[n] > ERROR_BAR]
    sentence = f"Error bars, worst case: {', '.join(texts[n].format(values[n]) for n in values)}."
    if large:
        sentence += f" Trust no gradient, gate or route: {' and '.join(large)} above {ERROR_BAR:g}."
    if not values:
        sentence = "No error bar is measurable for this model."
    status: Status = "warn" if large else "pass" if values else "not measurable"
    return Finding(name="measurement", status=status, sentence=sentence)


def _useless_blocks(ds: xr.Dataset, limits: Thresholds) -> list[Finding]:
    """Name the blocks that write nothing, and those that hand on what they read; often none."""
    write = profile(ds, "write_ratio", resamples=1)["value"].values
    cosine = profile(ds, "cosine", resamples=1)["value"].values
    home = ds["reader_block"].values[:-1]  # of every sublayer
    dead, idle = [], []
    for block, near in zip(ds["block"].values, cosine > limits.idle_cosine, strict=True):
        own = write[home == block]
        if own.size and (own < limits.untrained_write_ratio).all():
            dead.append(int(block))
        elif near:
            idle.append(int(block))
    sentences = {
        "dead_blocks": f"Nothing is written by {_blocks(dead)} (every sublayer below "
        f"{limits.untrained_write_ratio:g} of what it reads).",
        "idle_blocks": f"Idle, at most rescaling what is read: {_blocks(idle)} (cosine with the "
        f"block before above {limits.idle_cosine:g}).",
    }
    named = {"dead_blocks": dead, "idle_blocks": idle}
    return [
        Finding(name=name, status="warn", sentence=sentences[name])
        for name, blocks in named.items()
        if blocks
    ]


def _blocks(numbers: list[int]) -> str:
    return f"block{'s' * (len(numbers) > 1)} {_ranges(numbers)}"


def _ranges(numbers: list[int]) -> str:
    """Write rising numbers as "2, 5-7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _conclude(findings: list[Finding], limits: Thresholds) -> Verdict:
    symptoms = [item for item in findings if item.name in SYMPTOMS]
    held = {item.status for item in symptoms}
    others = [item.sentence for item in findings if item.status == "warn" and not item.metric]
    status: Status = "not measurable"
    lead = "PreNorm dilution cannot be judged"
    if "fail" in held:
        status, lead = "fail", "PreNorm dilution"
    elif "warn" in held:
        status, lead = "warn", "Signs of PreNorm dilution"
    elif "pass" in held:
        status, lead = "warn" if others else "pass", "No PreNorm dilution"
        if "not measurable" in held:
            lead += " in what can be measured"
    shown = [item for item in symptoms if item.status in ("warn", "fail")] or symptoms
    parts = [_part(item, limits) for item in sorted(shown, key=lambda item: item.status != "fail")]
    sentence = " ".join([f"{lead}: {'; '.join(parts)}.", *others])
    return Verdict(status=status, sentence=sentence, findings=findings)


def _part(item: Finding, limits: Thresholds) -> str:
    """Quote one symptom for the verdict's sentence."""
    if item.metric is None or item.status == "not measurable":
        return f"{plain(item.name)} is not measurable"
    limit = getattr(limits, f"{item.name}_{'fail' if item.status == 'fail' else 'warn'}")
    if item.status == "warn" and not item.metric.value > limit:
        limit = getattr(limits, f"{item.name}_fail")  # the interval alone reaches it
    state = " is a warning" if item.status == "warn" else ""
    return f"{plain(item.name)}{state} ({with_interval(item.metric)}, limit {limit:g})"


def with_interval(metric: Metric) -> str:
    """Write value [low, high] in the metric's own form."""
    if math.isnan(metric.value):
        return "not measurable"
    unit = unit_of(metric.name)
    value, low, high = (
        f"{number:#.3g}".rstrip(".") if unit else f"{number:.3f}"
        for number in (metric.value, metric.low, metric.high)
    )
    kind = "cosine " if metric.name == "redundancy" else ""
    spread = "one sample, no interval" if math.isnan(metric.low) else f"{low}, {high}"
    return f"{kind}{value}{unit} [{spread}]"


def plain(name: str) -> str:
    """Write a metric's name as words."""
    return name.replace("_", " ")
