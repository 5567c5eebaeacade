"""Noise levels as users write them."""

import numpy as np
import pytest

from dar_probe.diffusion.noise_levels import parse_levels
from dar_probe.errors import UsageError


@pytest.mark.parametrize(
    ("written", "levels"),
    [
        ("3", [0.01, 0.5, 0.99]),
        ("1", [0.5]),
        ("1e-3", [0.001]),  # digits alone are a count, every other number is a level
        ("0.5", [0.5]),
        ("5e-1,", [0.5]),
        ("1e0", [1.0]),
        ("0.9, 0.1", [0.1, 0.9]),
        ("0,1", [0.0, 1.0]),
    ],
)
def test_counts_and_levels(written, levels):
    np.testing.assert_allclose(parse_levels(written), levels)


@pytest.mark.parametrize(
    "written", ["0", "-1", "", " ", ",", "1e1", "-0.1", "nan", "inf", "0.5;0.6", "9" * 5_000]
)
def test_what_is_neither(written):
    with pytest.raises(UsageError, match="make no sense"):
        parse_levels(written)
