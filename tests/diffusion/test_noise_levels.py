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
        (2, [0.01, 0.99]),
        (0.5, [0.5]),
        (np.int64(2), [0.01, 0.99]),
        (np.float32(0.25), [0.25]),
        ((0.9, 0.1), [0.1, 0.9]),
    ],
)
def test_counts_and_levels(written, levels):
    np.testing.assert_allclose(parse_levels(written), levels)


@pytest.mark.parametrize(
    "written",
    [
        "0",
        "-1",
        "",
        " ",
        ",",
        "1e1",
        "-0.1",
        "nan",
        "inf",
        "0.5;0.6",
        "9" * 5_000,
        1.5,
        float("nan"),
        [],
        [[0.1], 0.2],
        {"a": 1},
        None,
        object(),
    ],
)
def test_what_is_neither(written):
    with pytest.raises(UsageError, match="make no sense"):
        parse_levels(written)
