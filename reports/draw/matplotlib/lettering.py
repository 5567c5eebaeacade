"""Words in the figures' own font: what it can draw, the room that takes, legends and notes."""

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dar_probe.reports.style import palette

NOTE_SIZE, LABEL_SIZE, TITLE_SIZE = 6.5, 7.0, 8.0  # points, those of paper.mplstyle
DPI = 200  # as of the PNG


def printable(name: str, limit: int = 60) -> str:
    """Return ``name`` cleaned and without characters that the figures' font cannot draw."""
    known = _characters()
    return "".join(
        c if ord(c) in known else palette.REPLACEMENT for c in palette.clean(name, limit)
    )


def fitted(name: str, room: float, points: float = LABEL_SIZE, *, lead: str = "") -> str:
    """Return ``lead`` and ``printable(name)``, the name shortened to fit ``room`` inches."""
    for limit in (60, 48, 40, 34, 29, 25, 21, 18, 15, 12, 9):
        text = lead + printable(name, limit)
        if text_width(text, points) <= room:
            break
    return text


@lru_cache(maxsize=4096)
def text_width(text: str, points: float) -> float:
    """Return how many inches a line of text takes, to 3 %: pixels round it either way."""
    font = _font()
    font.set_size(points, DPI)
    font.set_text(text)
    return 1.03 * float(font.get_width_height()[0]) / 64 / DPI


def titled(lead: str, subject: str, room: float) -> str:
    """Return a title whose ``subject``, a name of anybody's, is shortened to fit the last line."""
    if not subject:
        return lead.rstrip(" ,")
    used = text_width(lead.rpartition("\n")[2], TITLE_SIZE) if lead else 0.0
    return lead + fitted(subject, room - used, TITLE_SIZE)


def wrapped(text: str, room: float, points: float) -> str:
    """Break a text into lines of at most ``room`` inches."""
    space = text_width("n n", points) - text_width("nn", points)
    lines: list[str] = []
    used = room
    for word in text.split():
        width = text_width(word, points)
        if lines and used + space + width <= room:
            lines[-1] += f" {word}"
            used += space + width
        else:
            lines.append(word)
            used = width
    return "\n".join(lines)


def heading(drawn: Figure, name: str) -> None:
    """Write what the figure is of above it, over the legend if there is one; it grows as much.

    Like all that writes, it belongs within ``canvas.paper``: a text takes its font when it is
    made.
    """
    _grow(drawn, 1, TITLE_SIZE)
    text = fitted(name, drawn.get_figwidth() - 0.1, TITLE_SIZE)
    if drawn.legends:
        drawn.legends[0].set_title(text)
        drawn.legends[0].get_title().set(parse_math=False, fontsize=TITLE_SIZE)
    else:
        drawn.suptitle(text, parse_math=False, x=0.01, ha="left", fontsize=TITLE_SIZE)


def legend(
    drawn: Figure,
    lines: Sequence[Line2D],
    labels: Sequence[str],
    *,
    bands: bool = False,
    band: str,
) -> None:
    """Put one legend above the panels, in as many columns as there is room for.

    The figure becomes so much higher.

    Args:
        drawn: the figure.
        lines: what is labelled.
        labels: names of anybody's; cleaned, and broken or shortened where they do not fit.
        bands: whether there are intervals to explain.
        band: what they are.
    """
    room, handle, gap = drawn.get_figwidth() - 0.2, 0.33, 0.2  # inches
    texts = [broken(label, room - handle) for label in labels]
    handles: list[Line2D | Patch] = list(lines)
    if bands:
        handles.append(Patch(facecolor="#333333", alpha=0.22, linewidth=0))
        texts.append(band)
    widths = [max(text_width(line, LABEL_SIZE) for line in text.split("\n")) for text in texts]
    sizes = np.array(widths) + handle + gap
    columns = next(
        many
        for many in range(len(texts), 0, -1)
        if many == 1 or sum(part.max() for part in np.array_split(sizes, many)) < room + gap
    )
    rows = max("\n".join(part).count("\n") for part in np.array_split(np.array(texts), columns))
    _grow(drawn, rows + 1, LABEL_SIZE + 1)
    box = drawn.legend(
        handles,
        texts,
        loc="outside upper left",
        ncols=columns,
        alignment="left",
    )
    for text in box.get_texts():
        text.set_parse_math(False)


def broken(label: str, room: float, limit: int = 80) -> str:
    """Return a label, cut to ``limit`` characters, on as few lines as it takes."""
    lines = wrapped(printable(label, limit), room, LABEL_SIZE).split("\n")
    return "\n".join(
        line if text_width(line, LABEL_SIZE) <= room else fitted(line, room) for line in lines
    )


def note(drawn: Figure, sentences: Sequence[str]) -> None:
    """Write under a figure what a reader must know, and make it so much higher."""
    if sentences:
        text = wrapped(" ".join(sentences), 0.97 * drawn.get_figwidth(), NOTE_SIZE)
        _grow(drawn, text.count("\n") + 1, NOTE_SIZE)
        drawn.supxlabel(text, fontsize=NOTE_SIZE, color="#444444", x=0.01, ha="left")


def _grow(drawn: Figure, lines: int, points: float) -> None:
    drawn.set_figheight(drawn.get_figheight() + lines * 1.25 * points / 72)


@cache
def _characters() -> frozenset[int]:
    return frozenset(_font().get_charmap())


def _font() -> FT2Font:
    return get_font(findfont(FontProperties(family=["DejaVu Sans"])))
