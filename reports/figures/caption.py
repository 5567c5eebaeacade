"""The caption of a figure as text, and a figure without the words that a caption says."""

from dataclasses import replace

from dar_probe.reports.figures.description import Figure, Panel
from dar_probe.reports.style import palette

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def caption(figure: Figure) -> str:
    """Return what a figure shows, what its panels are, and every note, as plain sentences.

    Args:
        figure: its ``heading`` says what it is of, and comes last.
    """
    parts = [figure.says]
    if figure.lettered and len(figure.panels) > 1:
        named = [
            f"({LETTERS[at % 26]}) {' '.join(title.split())}"
            for at, panel in enumerate(_in_reading_order(figure))
            if (title := f"{panel.title}{panel.subject}".strip(" ,"))
        ]
        parts += [f"{'; '.join(named)}."] if named else []
    parts += [f"Bands: {figure.band}."] if figure.has_bands else []
    parts += figure.notes
    parts += [f"Model: {palette.clean(figure.heading, 80)}."] if figure.heading else []
    return " ".join(part for part in parts if part)


def without(figure: Figure, *, titles: bool, notes: bool) -> Figure:
    """Return a figure without its heading and the titles of its panels, or without its notes."""
    if not titles:
        panels = [replace(panel, title="", subject="") for panel in figure.panels]
        figure = replace(figure, heading="", panels=panels)
    return figure if notes else replace(figure, notes=())


def _in_reading_order(figure: Figure) -> list[Panel]:
    across, panels = figure.paper.across, list(figure.panels)
    if not figure.paper.downwards:
        return panels
    down = -(-len(panels) // across)
    places = sorted(range(len(panels)), key=lambda at: (at % down, at // down))
    return [panels[at] for at in places]
