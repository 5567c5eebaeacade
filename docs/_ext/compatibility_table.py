"""The table of what was measured of every family and class, as Markdown, from its JSON file."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tables import table

FILE = Path(__file__).parents[1] / "reference" / "compatibility.json"
HEADER = ["model", "blocks, sublayers", "clock, prediction", "writes", "states", "gradients"]
UNBROKEN = {" ": "&nbsp;", "-": "&#8209;"}  # no line ends at these
ABOUT = """
A plus sign separates the stream of the image from that of the text, where a model has both. The
clock is what the model is told as its time for data and for pure noise. *Writes*: how many of the
sublayers write what their branch returns times its gate, and by how much the largest of these
differs from what the stream gained, as a share of it. *States* and *gradients*: the largest
relative difference between the size (root mean square) of a state between blocks, or of its
gradient, and what hooks on the same module and autograd alone say.
"""
FEWER = """
Where fewer writes agree than there are sublayers, no single module returns what is written: its
gate differs from token to token, its output lies in another layout or ran without autograd, or the
stream has fewer than four tokens, which prove nothing. The output of an analysis says so, too.
"""


def compatibility() -> str:
    """Return a section with one table of the families and one of the classes of diffusers."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    rows, versions = found["rows"], found["versions"]
    shared = Counter(row["class"] for row in rows if row["kind"] != "family")
    parts = [
        "## Measured\n",  # MyST moves what stands before the first heading to the end
        f"Each row is a tiny model with random weights, measured by `{found['command']}` on "
        f"{found['date']} with torch {versions['torch']} and diffusers {versions['diffusers']}. "
        + _granularity(rows),
        ABOUT,
    ]
    for kind, title in (("family", "Families"), ("diffusers class", "Classes of diffusers")):
        own = [row for row in rows if row["kind"] == kind]
        parts.append(f"### {title}, measured\n")
        shown = table(HEADER, [_row(one, shared[one["class"]] > 1) for one in own])
        parts.append(f":::{{div}} small\n\n{shown}\n:::\n")  # else it is wider than a page
    parts.append(FEWER)
    if any(row["clock_assumed"] for row in rows):
        parts.append("*Assumed*: nothing tells the clock of this class, and the output says so.\n")
    return "\n".join(parts)


def _granularity(rows: list[dict[str, Any]]) -> str:
    coarse = [row["name"] for row in rows if row["granularity"] != "sublayer"]
    if not coarse:
        return "All of them are measured sublayer by sublayer."
    return f"All are measured sublayer by sublayer, but these block by block: {', '.join(coarse)}."


def _row(row: dict[str, Any], shared: bool) -> list[str]:
    streams, writes, states = row["streams"].values(), row["writes"], row["states"]
    counts = (" + ".join(str(one[of]) for one in streams) for of in ("blocks", "sublayers"))
    # What is no plain sum has a name: "v" or "edm".
    predicts = (
        row["objective"].rpartition(":")[2] if "at s" in row["prediction"] else row["prediction"]
    )
    agree = f"{writes['agree']} of {writes['sublayers']}"
    return [
        _named(row, shared),
        _broken_at_commas(*counts),
        _broken_at_commas(row["clock"], predicts) + " (*assumed*)" * row["clock_assumed"],
        _broken_at_commas(agree, _number(writes["largest"])),
        _broken_at_commas(_number(states["rms"])),
        _broken_at_commas(_number(states["grad_rms"])),
    ]


def _broken_at_commas(*parts: str) -> str:
    return ", ".join("".join(UNBROKEN.get(c, c) for c in part) for part in parts)


def _named(row: dict[str, Any], shared: bool) -> str:
    """Return a model's name, which may break before the word that ends the names of classes."""
    name = row["name"]
    if row["kind"] != "family":
        name = row["class"].replace("Transformer", "<wbr>Transformer").removeprefix("<wbr>")
    notes = [row["name"]] * shared + ["float32"] * (row["dtype"] == "float32")
    return f"{name} ({', '.join(notes)})" if notes else name


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.0e}".replace("e-0", "e-") if value else "0"
