"""Readers of one kind (attention, mlp, ...), which figures keep apart."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.reports.style import palette

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
    blocks: npt.NDArray[np.floating]


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
            name = palette.clean(kind.replace("_", " "), 24)
            found.append(Kind(name, at, ds["reader_block"].values[at]))
    return found
