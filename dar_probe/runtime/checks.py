"""Checks of arguments that several entry points share."""

from numbers import Integral

from dar_probe.errors import UsageError

MOST = 1_000_000  # samples


def check_counts(*, samples: int | None = None, batch_size: int | None = None) -> None:
    """Raise UsageError where there are none to measure, or more than could ever be kept."""
    for count, what in ((samples, "samples"), (batch_size, "samples in one pass")):
        if count is not None and (isinstance(count, bool) or not isinstance(count, Integral)):
            raise UsageError(f"{what} are counted in whole numbers, not by {count!r}")
        if count is not None and not 1 <= count <= MOST:
            limit = "at least 1" if count < 1 else f"at most {MOST:,}"
            raise UsageError(f"{count} {what} were asked for; it takes {limit}")
