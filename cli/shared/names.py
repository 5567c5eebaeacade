"""Lists of names that a user types with commas."""

from collections.abc import Iterable

from dar_probe.errors import UsageError
from dar_probe.files.text import quote


def some_of(text: str, known: Iterable[str], what: str) -> tuple[str, ...]:
    """Return the parts of "a,b", each of them known, in the known order.

    Raises:
        UsageError: a part is not known.
    """
    known = tuple(known)
    asked = [part.strip() for part in text.split(",")]
    for part in asked:
        if part not in known:
            raise UsageError(
                f"there is no {what} {quote(part)}", hint=f"some of {', '.join(known)}"
            )
    return tuple(part for part in known if part in asked)


def formats_of(text: str | None, *, figures: bool) -> tuple[str, ...] | None:
    """Return the formats in which figures are wanted; None: each as it usually is.

    Raises:
        UsageError: there is no such format, or no figures are wanted.
    """
    if text is None:
        return None
    if not figures:
        raise UsageError(
            "--no-figures leaves out what --formats is for", hint="leave out one of the two"
        )
    from dar_probe.reports.draw import matplotlib

    return some_of(text, matplotlib.FORMATS, "format")
