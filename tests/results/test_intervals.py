"""Student's t, means over seeds, and intervals as JSON has them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dar_probe.results import intervals
from dar_probe.results.metrics import Metric


@pytest.mark.parametrize(
    "freedom, wanted",
    [
        (1, 12.7062),
        (3, 3.1824),
        (9, 2.2622),
        (10, 2.2281),
        (15, 2.1314),
        (30, 2.0423),
        (63, 1.9983),
    ],
)
def test_quantiles_of_student(freedom, wanted):
    assert intervals.student(freedom) == pytest.approx(wanted, abs=6e-5)  # as tables print them


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_student_has_closed_forms_with_one_and_two_degrees_of_freedom(confidence):
    p = (1 + confidence) / 2
    closed = [math.tan(math.pi * (p - 0.5)), (2 * p - 1) / math.sqrt(2 * p * (1 - p))]
    found = [intervals.student(freedom, confidence) for freedom in (1, 2)]
    assert found == pytest.approx(closed, rel=1e-9)


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(2)
    found = [intervals.over_seeds(row) for row in rng.normal(size=(4000, 3))]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert covered == pytest.approx(0.95, abs=0.012)
    share = intervals.over_seeds([0.99, 0.9], "share")
    assert share.high == 1 and 0 < share.low < share.value
    one = intervals.over_seeds([2.5])
    assert one.value == 2.5 and math.isnan(one.low) and one.seeds == 1


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=6))
def test_a_ratio_has_the_interval_of_its_inverse(values):
    """An interval of a ratio is positive, and says the same of x over y as of y over x."""
    found = intervals.over_seeds(values, "ratio")
    turned = intervals.over_seeds([1 / value for value in values], "ratio")
    assert 0 <= found.low <= found.value * (1 + 1e-9)
    assert found.high >= found.value * (1 - 1e-9)
    assert turned.value == pytest.approx(1 / found.value, rel=1e-9)
    assert turned.high * found.low == pytest.approx(1, rel=1e-6) or found.low < 1e-300
    scaled = intervals.over_seeds([3 * value for value in values], "ratio")
    assert scaled.value == pytest.approx(3 * found.value, rel=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6))
def test_a_cosine_keeps_within_its_ends(values):
    found = intervals.over_seeds(values, "cosine")
    assert -1 <= found.low <= found.value <= found.high <= 1
    turned = intervals.over_seeds([-value for value in values], "cosine")
    assert turned.value == pytest.approx(-found.value, abs=1e-9)
    assert turned.low == pytest.approx(-found.high, abs=1e-9)


def test_scales_by_hand():
    """Three values each, by Student's t with two degrees of freedom: 4.302653."""
    ratio = intervals.over_seeds([0.1, 0.2, 0.8], "ratio")
    logs = [math.log(value) for value in (0.1, 0.2, 0.8)]
    middle = sum(logs) / 3
    half = 4.302653 * math.sqrt(sum((log - middle) ** 2 for log in logs) / 2 / 3)
    assert ratio.value == pytest.approx((0.1 * 0.2 * 0.8) ** (1 / 3))
    assert ratio.low == pytest.approx(math.exp(middle - half), rel=1e-5)
    assert ratio.high == pytest.approx(math.exp(middle + half), rel=1e-5)
    cosine = intervals.over_seeds([0.98, 0.99, 0.9], "cosine")
    assert 0.9 < cosine.value < 0.99 and cosine.low > 0 and cosine.high < 1
    assert intervals.over_seeds([1.0, 1.0], "cosine").high == pytest.approx(1)
    # Where the logarithm of a seed does not exist, the plain mean stays, cut at 0.
    never = intervals.over_seeds([0.0, 5.0], "ratio")
    assert (never.value, never.low) == (2.5, 0.0)
    unknown = intervals.over_seeds([math.nan, 2.0], "ratio")
    assert math.isnan(unknown.value) and math.isnan(unknown.low)


def test_ratios_cover_as_often_as_they_say():
    rng = np.random.default_rng(3)
    found = [intervals.over_seeds(row, "ratio") for row in np.exp(rng.normal(size=(4000, 3)))]
    covered = np.mean([one.low <= 1 <= one.high for one in found])
    assert covered == pytest.approx(0.95, abs=0.012)


def test_numbers_are_what_json_has():
    unknown = Metric(name="loss", value=1.5, low=math.nan, high=math.inf, definition="")
    assert intervals.numbers(unknown) == {"value": 1.5, "low": None, "high": None}
    assert intervals.numbers(-intervals.Interval(1.0, 0.5, 2.0, 3)) == {
        "value": -1.0, "low": -2.0, "high": -0.5,
    }  # fmt: skip
    assert repr(unknown) == "<loss 1.5 [nan, inf]>"
