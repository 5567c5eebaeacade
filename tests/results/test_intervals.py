"""Student's t, means over seeds, and intervals as JSON has them."""

import math

import numpy as np
import pytest

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
    share = intervals.over_seeds([0.99, 0.9], share=True)
    assert share.high == 1 and 0 < share.low < share.value
    one = intervals.over_seeds([2.5])
    assert one.value == 2.5 and math.isnan(one.low) and one.seeds == 1


def test_numbers_are_what_json_has():
    unknown = Metric(name="loss", value=1.5, low=math.nan, high=math.inf, definition="")
    assert intervals.numbers(unknown) == {"value": 1.5, "low": None, "high": None}
    assert intervals.numbers(-intervals.Interval(1.0, 0.5, 2.0, 3)) == {
        "value": -1.0, "low": -2.0, "high": -0.5,
    }  # fmt: skip
    assert repr(unknown) == "<loss 1.5 [nan, inf]>"
