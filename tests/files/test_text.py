"""Numbers as people read them."""

import math

import numpy as np
import pytest

from dar_probe.files.text import span


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([1.0, 3.0, 2.0], 2.0),
        ([-3.0, 1.0], 4.0),
        ([5.0], 0.0),
        ([0.0, 0.0], 0.0),
        ([1.0, 1.0 + 1e-7], 0.0),
        ([1e6, 1e6 + 0.5], 0.0),
        ([-1e-30, -1e-30 * (1 + 1e-8)], 0.0),
        ([0.0, 1e-30], 1e-30),  # small, but no rounding of each other
        ([0.993, 0.9931], 0.9931 - 0.993),
    ],
)
def test_span(values, wanted):
    assert span(values) == wanted


def test_the_rounding_of_float32_is_none():
    """Of one number as float32 has it, and of a mean of many."""
    exact = np.random.default_rng(0).uniform(0.5, 2, 1000)
    single = exact.astype(np.float32)
    assert span([exact[0], float(single[0])]) == 0
    assert span([exact.mean(), float(single.mean())]) == 0
    assert not math.isclose(exact.mean(), float(single.mean()), rel_tol=1e-9)
