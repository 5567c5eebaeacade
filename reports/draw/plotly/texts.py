"""Names, colours and arrays in plotly's notation."""

import base64
import html
import textwrap
from typing import Any

import numpy as np
import numpy.typing as npt

from dar_probe.reports.style import palette

INK = "#747b85"  # readable on white and on black; the page sets its own
FAINT = "rgba(128,128,128,0.25)"  # grid lines
# The ground under cells that do not exist, on a light and on a dark page.
GROUNDS = {"light": FAINT, "dark": "rgba(128,128,128,0.1)"}
CLEAR = "rgba(0,0,0,0)"
ENTRY = 40  # letters of a line of the legend
TYPES = {"float64": "f8", "float32": "f4"}


def text(name: str, limit: int = 60) -> str:
    """Return a name cleaned and escaped: plotly reads HTML and %{...} in every text."""
    return escaped(palette.clean(name, limit))


def entry(name: str, limit: int = 60) -> str:
    """Return a name of the legend, in lines that the narrowest page has room for."""
    name = palette.clean(name, limit)
    parts = name.split(": ") if len(name) > ENTRY else [name]  # "what was done: how well foretold"
    ends = [":"] * (len(parts) - 1) + [""]
    pieces = [part + end for part, end in zip(parts, ends, strict=True)]
    return "<br>".join(escaped(line) for one in pieces for line in textwrap.wrap(one, ENTRY))


def escaped(words: str) -> str:
    """Return words of ours, with what they quote of others, as plotly shows them unchanged."""
    return html.escape(words, quote=False).replace("%", "&#37;")


def numbered(word: str, at: int) -> str:
    """Return plotly's name of the at-th axis: "x", "x2", ..."""
    return word if at == 0 else f"{word}{at + 1}"


def axes(panel: int) -> dict[str, str]:
    """Return what puts a trace into panel 0, 1, ..."""
    return {"xaxis": numbered("x", panel), "yaxis": numbered("y", panel)}


def packed(values: npt.NDArray[Any]) -> Any:
    """Return an array of plotly's JSON: little-endian bytes; whole numbers as a list."""
    if values.dtype.name not in TYPES:
        return values.tolist()
    kind = TYPES[values.dtype.name]
    found = {"dtype": kind, "bdata": coded(values.astype(f"<{kind}"))}
    if values.ndim > 1:
        found["shape"] = ", ".join(str(size) for size in values.shape)
    return found


def unpacked(values: Any) -> npt.NDArray[np.float64]:
    """Return what ``packed`` was given, one number after the other."""
    if not isinstance(values, dict):
        return np.asarray(values, dtype=np.float64)
    kind = np.dtype(f"<{values['dtype']}")
    return np.frombuffer(base64.b64decode(values["bdata"]), kind).astype(np.float64)


def coded(values: npt.NDArray[Any]) -> str:
    """Return the bytes of an array as text."""
    return base64.b64encode(values.tobytes()).decode("ascii")
