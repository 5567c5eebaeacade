"""Draws figures for the screen, as the JSON that plotly.js reads."""

from dar_probe.reports.draw.plotly.compose import draw
from dar_probe.reports.draw.plotly.texts import text
from dar_probe.reports.draw.plotly.traces import DOT

__all__ = ["DOT", "draw", "script", "text"]


def script() -> str:
    """Return plotly.js, the only code besides our own that a page runs."""
    from plotly.offline import get_plotlyjs  # figures alone need no plotly

    found: str = get_plotlyjs()
    return found
