"""Names and numbers as text: safe for a terminal, and as people read them."""

import difflib
import math
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

SPARK_WIDTH = 28  # characters of a curve
ROUNDING = 1e-6  # of a number's size: float32 rounds at 1e-7, and sums of many numbers more


def quote(text: object, limit: int = 120) -> str:
    """Return ``text`` as a quoted literal of at most ``limit`` characters, safe for a terminal.

    Names in files and paths are hostile: control characters and lone surrogates are escaped, and
    the middle of a long name is left out.
    """
    text = str(text)
    if len(text) > limit:
        text = text[: limit // 2] + "..." + text[-limit // 2 :]
    shown = repr(text)
    if len(shown) > limit:
        half = (limit - 3) // 2
        shown = shown[:half] + "..." + shown[-half:]
    return shown


def decimal(value: float, digits: int = 3) -> str:
    """Return ``value`` with ``digits`` significant digits, as a plain decimal where sane."""
    if not math.isfinite(value):
        return "not measurable"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -3 <= exponent < 6:
        return f"{value:.{max(0, digits - 1 - exponent)}f}"
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(power)}"


def quantity(value: float, unit: str = "") -> str:
    """Return three significant digits and the unit, or "n/a" for NaN."""
    if value != value:
        return "n/a"
    return f"{value:#.3g}".rstrip(".") + unit if unit else f"{value:.3f}"


def span(values: Iterable[float]) -> float:
    """Return the largest of some finite values less the smallest; 0 where only rounding differs.

    A curve that is drawn over this range shows no noise of rounding as if it were a rise.
    """
    values = list(values)
    low, high = min(values), max(values)
    return high - low if high - low > ROUNDING * max(abs(low), abs(high)) else 0.0


def charset(stream: Any) -> str:
    """Return what a stream can show.

    Python writes UTF-8 under LC_ALL=C and LANG=C too, but who says C has an ASCII terminal.
    """
    if (os.environ.get("LC_ALL") or os.environ.get("LANG")) in ("C", "POSIX"):
        return "ascii"
    return (getattr(stream, "encoding", None) or "ascii").lower()


def sparkline(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """Return at most ``width`` characters, lowest to highest, both ends kept; NaN is a gap.

    Values that only rounding tells apart give a flat line.
    """
    ramp = "▁▂▃▄▅▆▇█" if charset(sys.stdout).startswith("utf") else ".:-=+*#@"
    if len(values) > width:
        last = len(values) - 1
        values = [values[round(at * last / (width - 1))] for at in range(width)]
    finite = [v for v in values if v == v]
    if not finite:
        return ""
    low, size = min(finite), span(finite) or math.inf
    return "".join(
        ramp[min(len(ramp) - 1, int((v - low) / size * len(ramp)))] if v == v else " "
        for v in values
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint for a name that is not known: the nearest one, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
