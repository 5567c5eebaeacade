"""What a figure says of its axes, so that the page's script marks one block in all of them."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from dar_probe.reports.draw import plotly


def link(
    drawn: go.Figure, panel: int, last: int, **runs: tuple[str, Sequence[float] | None]
) -> None:
    """Say which axes of a panel run over blocks or noise levels, so that the page links them.

    Args:
        drawn: the figure; its ``layout.meta`` is changed.
        panel: 0, 1, ...
        last: the number of the last block; larger ones are the head's.
        runs: for "x" and "y" the dim, "block" or "noise_level", and what each position along a
            named axis is; None for an axis of block numbers.
    """
    meta = dict(drawn.layout.meta or {})
    entry: dict[str, Any] = {**axes(panel), "last": last}
    for letter, (dim, values) in runs.items():
        listed = None if values is None else [float(f"{value:.12g}") for value in values]
        entry[letter] = {"dim": dim, "values": listed}
    meta["panels"] = [*meta.get("panels", []), entry]
    drawn.update_layout(meta=meta)


def axes(panel: int) -> dict[str, str]:
    """Return what the axes of a panel are called in the layout."""
    return {f"{letter}axis": plotly.numbered(f"{letter}axis", panel) for letter in "xy"}
