"""How numbers are written everywhere: three digits, no stray point, the unit behind."""

import math

import pytest

from dar_probe.files.text import quantity
from dar_probe.reports.pages import headline
from dar_probe.results.metrics import Metric


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (123, "x", "123x"),
        (100.0, "x", "100x"),
        (99.96, "x", "100x"),
        (99.94, "x", "99.9x"),
        (10.0, "x", "10.0x"),
        (1.893, "x", "1.89x"),
        (0.5, "x", "0.500x"),
        (1234.0, "x", "1.23e+03x"),
        (0.9749, "", "0.975"),
        (1.0, "", "1.000"),
        (math.nan, "x", "n/a"),
        (math.nan, "", "n/a"),
    ],
)
def test_number(value, unit, text):
    assert quantity(value, unit) == text


@pytest.mark.parametrize(
    ("bounds", "unit", "text"),
    [
        ((100.4, 120.0, 123.2), "x", "100x to 123x"),
        ((0.9, 0.95, 0.96), "", "0.900 to 0.960"),
        ((math.nan, 2.0, math.nan), "x", "one sample"),
        ((math.nan, math.nan, math.nan), "x", ""),
    ],
)
def test_interval(bounds, unit, text):
    low, value, high = bounds
    metric = Metric(name="inflation", value=value, low=low, high=high, definition="")
    assert headline.interval(metric, unit) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 samples"), (1, "1 sample"), (2, "2 samples"), (64, "64 samples")]
)
def test_counted(count, text):
    assert headline.counted(count, "sample") == text
