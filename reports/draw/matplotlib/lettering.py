"""Words in the fonts that are set: what they can draw, the room that takes, legends and notes.

All of it belongs within ``canvas.paper`` or ``canvas.literal``, whose fonts and sizes it takes.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np
from matplotlib import rcParams, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dar_probe.reports.style import palette

SETTING: Any = {"title": "axes.titlesize", "label": "legend.fontsize", "note": "font.size"}
NOTE = 6.5 / 7.5  # of the font's size
DPI = 200  # as of the PNG

Part = Literal["title", "label", "note"]


def size(part: Part) -> float:
    """Return the size in points of titles, of labels and legends, or of notes."""
    points = FontProperties(size=rcParams[SETTING[part]]).get_size_in_points()
    return NOTE * points if part == "note" else points


def ink(usual: str) -> str:
    """Return the colour for words and what explains them: a user's own where one is set."""
    chosen = str(rcParams["text.color"])
    return usual if chosen == str(rcParamsDefault["text.color"]) else chosen


def printable(name: str, limit: int = 60) -> str:
    """Return ``name`` cleaned and without characters that the figures' font cannot draw."""
    known = _characters()
    return "".join(
        c if ord(c) in known else palette.REPLACEMENT for c in palette.clean(name, limit)
    )


def fitted(name: str, room: float, part: Part = "label", *, lead: str = "") -> str:
    """Return ``lead`` and ``printable(name)``, the name shortened to fit ``room`` inches."""
    for limit in (60, 48, 40, 34, 29, 25, 21, 18, 15, 12, 9):
        text = lead + printable(name, limit)
        if text_width(text, part) <= room:
            break
    return text


def text_width(text: str, part: Part) -> float:
    """Return how many inches a line of text takes, to 3 %: pixels round it either way."""
    return _width(text, size(part), _files())


@lru_cache(maxsize=4096)
def _width(text: str, points: float, files: tuple[str, ...]) -> float:
    font = get_font(files)
    font.set_size(points, DPI)
    font.set_text(text)
    return 1.03 * float(font.get_width_height()[0]) / 64 / DPI


def titled(lead: str, subject: str, room: float) -> str:
    """Return a title whose ``subject``, a name of anybody's, is shortened to fit the last line."""
    if not subject:
        title = lead.rstrip(" ,")
        return title if text_width(title, "title") <= room else wrapped(title, room, "title")
    used = text_width(lead.rpartition("\n")[2], "title") if lead else 0.0
    return lead + fitted(subject, room - used, "title")


def wrapped(text: str, room: float, part: Part) -> str:
    """Break a text into lines of at most ``room`` inches."""
    space = text_width("n n", part) - text_width("nn", part)
    lines: list[str] = []
    used = room
    for word in text.split():
        width = text_width(word, part)
        if lines and used + space + width <= room:
            lines[-1] += f" {word}"
            used += space + width
        else:
            lines.append(word)
            used = width
    return "\n".join(lines)


def heading(drawn: Figure, name: str) -> None:
    """Write what the figure is of above it, over the legend if there is one; it grows as much."""
    _grow(drawn, 1, size("title"))
    text = fitted(name, drawn.get_figwidth() - 0.1, "title")
    if drawn.legends:
        drawn.legends[0].set_title(text)
        drawn.legends[0].get_title().set(parse_math=False, fontsize=size("title"))
    else:
        drawn.suptitle(text, parse_math=False, x=0.01, ha="left", fontsize=size("title"))


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
        handles.append(Patch(facecolor=ink("#333333"), alpha=0.22, linewidth=0))
        texts.append(band)
    widths = [max(text_width(line, "label") for line in text.split("\n")) for text in texts]
    sizes = np.array(widths) + handle + gap
    columns = next(
        many
        for many in range(len(texts), 0, -1)
        if many == 1 or sum(part.max() for part in np.array_split(sizes, many)) < room + gap
    )
    rows = max("\n".join(part).count("\n") for part in np.array_split(np.array(texts), columns))
    _grow(drawn, rows + 1, size("label") + 1)
    box = drawn.legend(
        handles,
        texts,
        loc="outside upper left",
        ncols=columns,
        alignment="left",
    )
    for text in box.get_texts():
        text.set_parse_math(False)


def legend_within(axis: Axes, lines: Sequence[Line2D], labels: Sequence[str]) -> None:
    """Put a legend into a panel, where matplotlib finds room; its style is the user's."""
    for text in axis.legend(lines, [printable(label, 80) for label in labels]).get_texts():
        text.set_parse_math(False)


def broken(label: str, room: float, limit: int = 80) -> str:
    """Return a label, cut to ``limit`` characters, on as few lines as it takes."""
    lines = wrapped(printable(label, limit), room, "label").split("\n")
    return "\n".join(
        line if text_width(line, "label") <= room else fitted(line, room) for line in lines
    )


def note(drawn: Figure, sentences: Sequence[str]) -> None:
    """Write under a figure what a reader must know, and make it so much higher."""
    if sentences:
        text = wrapped(" ".join(sentences), 0.97 * drawn.get_figwidth(), "note")
        _grow(drawn, text.count("\n") + 1, size("note"))
        drawn.supxlabel(text, fontsize=size("note"), color=ink("#444444"), x=0.01, ha="left")


def _grow(drawn: Figure, lines: int, points: float) -> None:
    drawn.set_figheight(drawn.get_figheight() + lines * 1.25 * points / 72)


def _characters() -> frozenset[int]:
    return _known(_files())


@cache
def _known(files: tuple[str, ...]) -> frozenset[int]:
    return frozenset(code for file in files for code in get_font(file).get_charmap())


def _files() -> tuple[str, ...]:
    """Return the files of the fonts that are set, in the order in which each character asks."""
    files = []
    for family in FontProperties().get_family():
        with suppress(ValueError):  # it is not installed
            files.append(findfont(FontProperties(family=[family]), fallback_to_default=False))
    return tuple(files) or (findfont(FontProperties(family=["DejaVu Sans"])),)
