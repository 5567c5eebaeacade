"""Two analyses of the same samples: differences of their numbers, paired, with intervals."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.results import metrics
from dar_probe.results.bootstrap import Array, coords_of
from dar_probe.results.comparability import (
    in_order_of,
    obstacle,
    unknown_samples,
    unlike_depth,
    unlike_losses,
)
from dar_probe.results.metrics import Metric
from dar_probe.results.schema import VARIABLES
from dar_probe.results.streams import single
from dar_probe.results.symptoms import CHOICES, SYMPTOMS, unit_of
from dar_probe.results.verdict import plain, unmeasured

NUMBERS = (*SYMPTOMS, *CHOICES, "loss")
Direction = Literal["rises", "falls", "same", "open", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One number of two analyses, and other minus reference.

    Attributes:
        name: one of ``NUMBERS``.
        reference, other: each with its own interval; NaN where it is not measurable.
        difference: its interval is paired: both are resampled with the same draw of samples.
        sentence: the difference in words, or why there is none.
    """

    name: str
    reference: Metric
    other: Metric
    difference: Metric
    sentence: str

    @property
    def direction(self) -> Direction:
        """What the interval says: "open" where it holds zero, "unknown" without a number.

        With one sample, which has no interval, the sign of the value.
        """
        return _direction(self.difference)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What differs between one analysis and the reference.

    Attributes:
        reference, other: display names.
        reason: why the two cannot be compared; empty where they can.
        changes: one for each of ``NUMBERS``; empty where there is a reason.
        notes: sentences on what the comparison takes for granted.
    """

    reference: str
    other: str
    reason: str = ""
    changes: list[Change]
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The whole pair in one sentence."""
        if self.reason:
            return f"{self.other} cannot be compared with {self.reference} because {self.reason}."
        return _summary(self)


def compare(
    analyses: Sequence[tuple[str, xr.Dataset]],
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[Pair]:
    """Compare every analysis with the first one, over the same samples and noise.

    Args:
        analyses: (name, dataset) pairs; equal names are numbered. Of a trajectory the last step
            is compared.
        resamples: bootstrap draws of samples.
        seed: of the draws.
        confidence: of the intervals.

    Raises:
        UsageError: fewer than two analyses, or settings that ``metrics.compute`` refuses.
    """
    if len(analyses) < 2:
        raise UsageError("a comparison takes two analyses or more")
    names = distinct([name for name, _ in analyses])
    reference, *others = zip(names, (ds for _, ds in analyses), strict=True)
    first = single(reference[1])
    own = _draws(first, resamples=resamples, seed=seed)
    pairs = []
    for name, whole in others:
        other = single(whole)
        reason = obstacle(first, other)
        changes: list[Change] = []
        if not reason:
            other = in_order_of(first, other)
            drawn = own, _draws(other, resamples=resamples, seed=seed)
            both = (reference[0], first), (name, other)
            changes = [_change(number, *both, drawn, confidence) for number in NUMBERS]
        notes = tuple(_notes(reference, (name, whole)))
        pairs.append(
            Pair(reference=names[0], other=name, reason=reason, changes=changes, notes=notes)
        )
    return pairs


def over_depth(
    reference: xr.Dataset,
    other: xr.Dataset,
    variable: str,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> xr.Dataset:
    """Return other minus reference of ``metrics.profile``: ``value``, ``low``, ``high`` over depth.

    Intervals are paired over samples.

    Raises:
        UsageError: the two cannot be compared, or have no depth in common.
    """
    reference, other = single(reference), single(other)
    reason = obstacle(reference, other) or unlike_depth(reference, other, variable)
    if variable == "loss":
        reason = reason or unlike_losses(reference, other)
    if reason:
        raise UsageError(f"{variable!r} cannot be compared because {reason}")
    pair = [reference, in_order_of(reference, other)]
    if variable == "decodability":
        known = [np.isfinite(ds["decoded_level"].values).any(axis=(0, 2)) for ds in pair]
        both = known[0] & known[1]
        pair = [ds.isel(sample=both | ~both.any()) for ds in pair]
    rows = [metrics.profile_draws(ds, variable, resamples=resamples, seed=seed) for ds in pair]
    difference = rows[1] - rows[0]
    low, high = metrics.interval(difference, pair[0].sizes["sample"], confidence)
    dims = VARIABLES[variable].dims
    parts = {"value": difference[0], "low": low, "high": high}
    return xr.Dataset(
        {key: (dims, part, reference[variable].attrs) for key, part in parts.items()},
        coords=coords_of(reference, dims),
        attrs={"variable": variable, "confidence": confidence},
    )


def named(own: Sequence[str], wanted: Sequence[str] | None = None) -> list[str]:
    """Return what analyses are called: the wanted names, or their own, numbered where equal.

    Raises:
        UsageError: there are more or fewer wanted names than analyses.
    """
    if wanted is not None and len(wanted) != len(own):
        raise UsageError(
            f"{len(wanted)} names for {len(own)} analyses", hint="give each of them one name"
        )
    return distinct(list(own if wanted is None else wanted))


def distinct(names: Sequence[str]) -> list[str]:
    """Number the names that occur more than once: "a (1)", "a (2)"."""
    count, taken = Counter(names), set(names)
    found = []
    for name in names:
        at, new = 0, name
        while count[name] > 1 and new in taken:
            new, at = f"{name} ({at + 1})", at + 1
        taken.add(new)
        found.append(new)
    return found


def signed(difference: Metric) -> str:
    """Write a difference as "-1.61 [-1.62, -1.59]"."""
    if math.isnan(difference.value):
        return "not measurable"
    return _bracketed(difference.value, difference.low, difference.high, sign="+")


def amount(metric: Metric, difference: float = math.nan) -> str:
    """Write one of the two numbers with as many digits as show the ``difference``."""
    if math.isnan(metric.value):
        return "not measurable"
    digits = max(_places(metric.value), _places(difference) - 2)
    return _decimal(metric.value, digits) + unit_of(metric.name)


def _draws(ds: xr.Dataset, *, resamples: int, seed: int) -> dict[str, Array]:
    """Return every number on all samples (row 0) and on each resample: (1 + R,)."""
    found = metrics.draws(ds, resamples=resamples, seed=seed)
    loss = metrics.profile_draws(ds, "loss", resamples=resamples, seed=seed)
    return {name: found.get(name, loss) for name in NUMBERS}


def _change(
    name: str,
    reference: tuple[str, xr.Dataset],
    other: tuple[str, xr.Dataset],
    draws: tuple[dict[str, Array], dict[str, Array]],
    confidence: float,
) -> Change:
    samples = reference[1].sizes["sample"]
    definition = metrics.DEFINITIONS.get(name, metrics.LOSS_TEXT)
    found, missing = [], {}
    for (label, ds), rows in zip((reference, other), draws, strict=True):
        metric = _metric(name, rows[name], samples, confidence, definition)
        if reason := unmeasured(ds, metric):
            nothing = np.full(2, np.nan)
            metric = _metric(name, nothing, samples, confidence, definition)
            missing[label] = reason
        found.append(metric)
    why = _missing(missing)
    if not why and name == "loss" and (unlike := unlike_losses(reference[1], other[1])):
        why = f" because {unlike}"
    gap = draws[1][name] - draws[0][name]
    text = f"other minus reference, paired over samples: {definition}"
    difference = _metric(name, gap * np.nan if why else gap, samples, confidence, text)
    return Change(
        name=name,
        reference=found[0],
        other=found[1],
        difference=difference,
        sentence=f"{_word(name)} cannot be compared{why}."
        if why
        else _sentence(found[0], found[1], difference),
    )


def _missing(reasons: dict[str, str]) -> str:
    """Say in which models a number is not measurable, and why."""
    if not reasons:
        return ""
    where = _joined([f"{label} ({reason})" for label, reason in reasons.items()])
    if len(reasons) == 2 and len(set(reasons.values())) == 1:
        where = f"either ({next(iter(reasons.values()))})"
    return f": it is not measurable in {where}"


def _metric(name: str, rows: Array, samples: int, confidence: float, definition: str) -> Metric:
    low, high = (float(bound) for bound in metrics.interval(rows, samples, confidence))
    return Metric(name=name, value=float(rows[0]), low=low, high=high, definition=definition)


def _direction(difference: Metric) -> Direction:
    value = difference.value
    low, high = difference.low, difference.high
    if math.isnan(value):
        return "unknown"
    if math.isnan(low):
        low = high = value
    if low == high == 0:
        return "same"
    return "rises" if low > 0 else "falls" if high < 0 else "open"


def _sentence(reference: Metric, other: Metric, difference: Metric) -> str:
    name, value = difference.name, difference.value
    direction = _direction(difference)
    start, end = amount(reference, value), amount(other, value)
    if direction == "same":
        return f"{_word(name)} is the same, {start}."
    if direction == "open":
        return (
            f"No difference in {plain(name)} can be told: {signed(difference)}, "
            f"from {start} to {end}."
        )
    low, high = sorted((abs(difference.low), abs(difference.high)))
    alone = " (one sample, no interval)" if math.isnan(difference.low) else ""
    size = _bracketed(abs(value), low, high)
    return f"{_word(name)} {direction} by {size}, from {start} to {end}{alone}."


def _summary(pair: Pair) -> str:
    by: dict[str, list[str]] = {}
    for change in pair.changes:
        by.setdefault(change.direction, []).append(plain(change.name))
    parts = [
        f"{word} {_joined(by[direction])}"
        for direction, word in (("falls", "lower"), ("rises", "higher"))
        if direction in by
    ]
    ends = []
    if "same" in by:
        ends.append(f"{_joined(by['same'])} {'are' if by['same'][1:] else 'is'} the same")
    if "open" in by:
        ends.append(f"no difference can be told in {_joined(by['open'])}")
    if "unknown" in by:
        ends.append(f"{_joined(by['unknown'])} cannot be compared")
    lead = f"Against {pair.reference}, {pair.other}"
    if parts:
        ends.insert(0, f"{lead} has {', and '.join(parts)}")
    else:
        ends[0] = f"Between {pair.other} and {pair.reference} {ends[0]}"
    return "; ".join(ends) + "."


def _notes(*analyses: tuple[str, xr.Dataset]) -> Iterator[str]:
    for name, ds in analyses:
        if "step" in ds.dims:
            last = int(ds["step"].values[-1])
            yield f"{name} is a training run: its last step, {last}, is compared."
    if unknown_samples(analyses[0][1], analyses[1][1]):
        yield "The samples are taken to be the same by their ids: no file holds a hash of them."


def _word(name: str) -> str:
    return plain(name).capitalize()


def _joined(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _bracketed(value: float, low: float, high: float, sign: str = "") -> str:
    """Write value [low, high] with three digits of the largest."""
    known = [number for number in (value, low, high) if not math.isnan(number)]
    places = _places(max(map(abs, known)))
    value_text, *bounds = (_decimal(number, places, sign) for number in known)
    return f"{value_text} [{', '.join(bounds)}]" if bounds else value_text


def _places(value: float) -> int:
    """Return the decimals that show three digits; 0 for zero and NaN."""
    return 2 - math.floor(math.log10(abs(value))) if value and not math.isnan(value) else 0


def _decimal(value: float, places: int, sign: str = "") -> str:
    if places > 8:
        return f"{value:{sign}.2e}"
    return f"{value:{sign}.{max(places, 0)}f}"
