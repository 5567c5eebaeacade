"""The middle of the samples beside their mean: how much single samples differ from it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import xarray as xr

from dar_probe.reports.draw import plotly
from dar_probe.reports.style import axis_links
from dar_probe.results import metrics

Array = npt.NDArray[np.floating]

SHARE = 0.9


def middle(ds: xr.Dataset, name: str) -> Array:
    """Return between which values the middle 90 % of the samples lie: (2, depth).

    Each sample's value is pooled over the noise levels; NaN where no sample has one.
    """
    values = metrics.per_sample(ds, name).values
    ends = np.full((2, values.shape[1]), np.nan)
    known = np.isfinite(values).any(axis=0)
    tail = (1 - SHARE) / 2
    ends[:, known] = np.nanquantile(values[:, known], [tail, 1 - tail], axis=0)
    return ends


@dataclass
class Spread:
    """Bands that a switch of the page shows and hides.

    Attributes:
        traces: their positions in the figure.
        shown, hidden: how the layout is patched with and without them.
    """

    traces: list[int] = field(default_factory=list)
    shown: dict[str, Any] = field(default_factory=dict)
    hidden: dict[str, Any] = field(default_factory=dict)

    def add(
        self, drawn: go.Figure, position: Array, ends: Array, colour: str, **shared: Any
    ) -> None:
        """Add the hidden band between the two ``ends`` (2, depth) to a figure."""
        before = len(drawn.data)
        plotly.band(drawn, position, ends[0], ends[1], colour, **shared)
        for at in range(before, len(drawn.data)):
            drawn.data[at].update(visible=False, opacity=0.13)
            self.traces.append(at)

    def rescale(self, panel: int, without: dict[str, Any], with_band: dict[str, Any]) -> None:
        """Give a logarithmic axis, which has a fixed range, room for the bands."""
        axis = axis_links.axes(panel)["yaxis"]
        for patch, settings in ((self.hidden, without), (self.shown, with_band)):
            patch |= {
                f"{axis}.{key}": settings[key]
                for key in ("type", "range", "tickvals", "ticktext")
                if key in settings
            }

    @property
    def meta(self) -> dict[str, Any]:
        """What the page's script needs for the switch."""
        return {"traces": self.traces, "shown": self.shown, "hidden": self.hidden}
