"""Every figure as matplotlib draws it, and as plotly does: what tests look at."""

from typing import Any

from dar_probe.reports.draw import matplotlib, plotly
from dar_probe.reports.draw.plotly.texts import unpacked
from dar_probe.reports.figures import (
    decodability,
    differences,
    dilution,
    heatmap,
    interventions,
    matrix,
    reader_maps,
    router_entropy,
    samples,
    sources,
    trajectory,
)

__all__ = ["printed", "screened", "unpacked"]

DESCRIBED = {
    "decodability": decodability.decodability,
    "differences": differences.differences,
    "dilution": dilution.dilution,
    "every_reader": reader_maps.every_reader,
    "heatmap": heatmap.heatmap,
    "interventions": interventions.interventions,
    "matrix": matrix.matrix,
    "one_reader": reader_maps.one_reader,
    "samples": samples.samples,
    "sources": sources.sources,
    "spread": router_entropy.router_entropy,
    "trajectory": trajectory.trajectory,
}


class Drawn:
    """``Drawn(draw).dilution(...)`` describes a figure and draws it."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **options: self._draw(DESCRIBED[name](*given, **options))


printed, screened = Drawn(matplotlib.draw), Drawn(plotly.draw)
