"""Readers of one kind (attention, mlp, ...), which the printed figures keep apart."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from dar_probe.errors import UsageError
from dar_probe.reports.draw import matplotlib
from dar_probe.reports.style import palette, text_metrics

Array = npt.NDArray[np.floating]

LABEL = "block of the reader"


class Kind(NamedTuple):
    """The readers of one kind.

    Attributes:
        name: cleaned, in words.
        at: their positions along ``reader``.
        blocks: their blocks, B+1 for the head.
    """

    name: str
    at: list[int]
    blocks: Array


def kinds(ds: xr.Dataset, wanted: str | None = None) -> list[Kind]:
    """Return the kinds of readers in the order of their first one, or the wanted kind alone.

    Raises:
        UsageError: there is no reader of the wanted kind.
    """
    every = [str(kind) for kind in ds["reader_kind"].values]
    if wanted is not None and wanted not in every:
        there = ", ".join(dict.fromkeys(palette.clean(kind) for kind in every))
        raise UsageError(f"no reader is of kind {wanted!r}", hint=f"there are {there}")
    found = []
    for kind in dict.fromkeys(every):
        if wanted in (None, kind):
            at = [place for place, other in enumerate(every) if other == kind]
            name = text_metrics.printable(kind.replace("_", " "), 24)
            found.append(Kind(name, at, ds["reader_block"].values[at]))
    return found


def draw(axis: Axes, groups: Sequence[Kind], value: Array, low: Array, high: Array) -> list[Line2D]:
    """Draw one line for each kind over the blocks of its readers; arrays run over ``reader``."""
    lines = []
    for line, kind in enumerate(groups):
        profile = (kind.blocks, value[kind.at], low[kind.at], high[kind.at])
        colour = palette.OTHERS[line % len(palette.OTHERS)]
        lines.append(matplotlib.draw_line(axis, profile, colour, *palette.look(line)))
    return lines


def block_axis(axis: Axes, ds: xr.Dataset) -> None:
    """Let the x axis run over the blocks of the readers, the head one behind the last."""
    last = int(ds["block"].values[-1])
    axis.set(xlabel=LABEL, xlim=(0.5, last + 1.5))
    axis.set_xticks(palette.block_ticks(last))
