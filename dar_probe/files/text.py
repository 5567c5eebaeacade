"""Names and numbers as text: safe for a terminal, and as people read them."""

import math


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
