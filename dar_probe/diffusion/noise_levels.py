"""Noise levels as users write them."""

from collections.abc import Sequence

import numpy as np

from dar_probe.errors import UsageError


def parse_levels(wanted: float | str | Sequence[float]) -> np.ndarray:
    """Return rising noise levels (n,) in [0, 1].

    A whole number n is a count, and gives n levels evenly from 0.01 to 0.99 (one level: 0.5); any
    other number is a level. A string of digits is a count, any other one a literal list with
    commas, of one level or more.

    Raises:
        UsageError: no number, a count below 1, a level outside [0, 1] or given twice.
    """
    if isinstance(wanted, str):
        try:
            if wanted.isdecimal():
                wanted = int(wanted)
            else:
                wanted = [float(part) for part in wanted.split(",") if part.strip()]
        except ValueError:
            raise _error(wanted) from None
    if isinstance(wanted, int | np.integer):
        if not 1 <= wanted <= 10_000:
            raise _error(wanted)
        return np.linspace(0.01, 0.99, wanted) if wanted > 1 else np.array([0.5])
    try:
        levels = np.sort(np.asarray(wanted, dtype=np.float64).reshape(-1))
    except (TypeError, ValueError):
        raise _error(wanted) from None
    if not levels.size or not np.isfinite(levels).all() or levels[0] < 0 or levels[-1] > 1:
        raise _error(wanted)
    if (np.diff(levels) == 0).any():
        raise UsageError("a noise level is given twice")
    return levels


def _error(wanted: object) -> UsageError:
    return UsageError(
        f"noise levels {wanted!r} make no sense",
        hint="give a count such as 10, or levels from 0 (data) to 1 (noise) such as 0.1,0.5,0.9; "
        "a comma makes a level of a whole number, as in 0, or 1,",
    )
