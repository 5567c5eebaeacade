"""Numbers with their intervals, and Student's t."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

Scale = Literal["difference", "ratio", "cosine", "share"]
NEARLY_ONE = 1 - 1e-15  # of it Fisher's z is finite


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the estimate; NaN where it is not measurable.
        low, high: its interval; NaN where one sample or one seed gives none.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Interval(Estimate):
    """A mean over seeds with its 95 % interval (Student's t); without one for a single seed."""

    seeds: int

    def __neg__(self) -> "Interval":
        """Turn the sign of a difference."""
        return Interval(-self.value, -self.high, -self.low, self.seeds)


def numbers(found: Estimate) -> dict[str, float | None]:
    """Return value, low and high as JSON has them: None in place of NaN."""
    values = {"value": found.value, "low": found.low, "high": found.high}
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def over_seeds(values: Sequence[float], scale: Scale = "difference") -> Interval:
    """Return the mean of one value per seed and its 95 % interval, where such a number can lie.

    Mean and interval are taken on a scale without ends: ratios and other positive numbers by their
    logarithm (a geometric mean), cosines by Fisher's z (R. A. Fisher 1915). A share keeps its own
    scale, and its interval is cut at 0 and 1; so does a ratio that is 0 for some seed, cut at 0.

    Args:
        values: one for each seed; without any, everything is NaN.
        scale: what kind of number it is.
    """
    found = np.asarray(values, dtype=np.float64)
    if scale == "ratio" and (found > 0).all():
        return _mapped(_student(np.log(found)), np.exp)
    if scale == "cosine":
        return _mapped(_student(np.arctanh(np.clip(found, -NEARLY_ONE, NEARLY_ONE))), np.tanh)
    plain = _student(found)
    least = -math.inf if scale == "difference" else 0.0
    most = 1.0 if scale == "share" else math.inf
    low, high = (
        min(max(end, least), most) if end == end else end for end in (plain.low, plain.high)
    )
    return Interval(plain.value, low, high, plain.seeds)


def _student(values: "np.ndarray") -> Interval:
    count = len(values)
    mean = float(np.mean(values)) if count else math.nan
    if count < 2:
        return Interval(mean, math.nan, math.nan, count)
    half = student(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def _mapped(found: Interval, back: Callable[[float], float]) -> Interval:
    with np.errstate(over="ignore"):  # no number is left beyond the largest
        value, low, high = (float(back(end)) for end in (found.value, found.low, found.high))
    return Interval(value, low, high, found.seeds)


@cache
def student(freedom: int, confidence: float = 0.95) -> float:
    """Return how far from its centre Student's t keeps with this confidence, in two tails."""
    from scipy.special import stdtrit  # a third of a second: only where an interval is asked for

    return float(stdtrit(freedom, (1 + confidence) / 2))
