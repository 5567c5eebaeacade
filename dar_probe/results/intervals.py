"""Numbers with their intervals, and Student's t."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np


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


def over_seeds(values: Sequence[float], *, share: bool = False) -> Interval:
    """Return the mean of one value per seed and its 95 % interval, that of a share within 0..1.

    NaN where there is no seed.
    """
    count = len(values)
    mean = float(np.mean(values)) if count else math.nan
    if count < 2:
        return Interval(mean, math.nan, math.nan, count)
    half = student(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    low, high = mean - half, mean + half
    return Interval(mean, *((max(low, 0.0), min(high, 1.0)) if share else (low, high)), count)


@cache
def student(freedom: int, confidence: float = 0.95) -> float:
    """Return how far from its centre Student's t keeps with this confidence, in two tails."""
    from scipy.special import stdtrit  # a third of a second: only where an interval is asked for

    return float(stdtrit(freedom, (1 + confidence) / 2))
