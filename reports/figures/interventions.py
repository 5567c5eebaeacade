"""What interventions did to the loss beside what gates predicted, for print and for the screen."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dar_probe.errors import UsageError
from dar_probe.reports.draw import matplotlib, plotly
from dar_probe.reports.style import palette, text_metrics
from dar_probe.results import interventions
from dar_probe.results.interventions import KIND_TEXT

Array = npt.NDArray[np.floating]

LARGEST = 12  # effects that are named
# Colour, and the same marker in the words of matplotlib and of plotly.
LOOKS = {
    "gate": (palette.BLUE, "o", "circle"),
    "source": (palette.ORANGE, "^", "triangle-up"),
    "block": (palette.OTHERS[0], "s", "square"),
    "uniform": (palette.OTHERS[1], "D", "diamond"),
    "frozen": (palette.OTHERS[2], "v", "triangle-down"),
}
NOTE = (
    "Mean over samples and noise levels; whiskers: 95 % bootstrap interval over samples. "
    "Axes are linear near zero and logarithmic beyond. Error: root mean square of prediction "
    "minus truth over that of the truth."
)
TRUE, LINEAR = "true change of the loss", "predicted by gates (first order)"


class Scale(NamedTuple):
    """An axis that is linear within ``width`` of zero and logarithmic beyond."""

    width: float
    marks: list[float]

    def __call__(self, values: Array) -> Array:
        """Return where values lie on the axis."""
        return np.asarray(np.arcsinh(values / self.width))


def figure(ds: xr.Dataset, *, name: str, width: matplotlib.Width = "two") -> Figure:
    """Draw true against predicted loss changes, and the largest ones by name.

    Args:
        ds: an analysis that ``dar-probe ablate`` made.
        name: what to call it.
        width: "one" column (3.25 in, panels stacked) or "two" (6.75 in, side by side).

    Raises:
        UsageError: nothing was intervened on, another width.
    """
    inches = matplotlib.inches(width)
    if lacks(ds):
        raise UsageError(lacks(ds), hint="dar-probe ablate measures them")
    table = interventions.effects(ds)
    at = _scale(np.concatenate([table["low"], table["high"], table["true"], table["linear"]]))
    legend = dict(zip(interventions.kinds_of(ds), _legend(ds), strict=True))
    with matplotlib.paper():
        stacked = width == "one"
        drawn = matplotlib.figure(inches, 5.2 if stacked else 2.9)
        left, right = (
            drawn.subplots(2, 1) if stacked else drawn.subplots(1, 2, width_ratios=[1, 0.9])
        )
        for kind in legend:
            rows = table[table["kind"] == kind]
            colour, marker, _ = LOOKS[kind]
            true, linear = at(rows["true"].to_numpy()), at(rows["linear"].to_numpy())
            left.plot(
                linear, true, linestyle="", marker=marker, markersize=3, color=colour, alpha=0.75,
                markeredgewidth=0, label=legend[kind],
            )  # fmt: skip
        ends = [min(*left.get_xlim(), *left.get_ylim()), max(*left.get_xlim(), *left.get_ylim())]
        left.plot(ends, ends, color="#777777", linewidth=0.8, linestyle="dashed", zorder=0)
        left.set(xlabel=LINEAR, ylabel=TRUE, xlim=ends, ylim=ends)
        left.set_title("(a) every intervention")
        _ticks(left, "x", at)
        _ticks(left, "y", at)
        top = table.head(8 if stacked else LARGEST).iloc[::-1]
        for row, effect in enumerate(top.itertuples()):
            colour, marker, _ = LOOKS[str(effect.kind)]
            right.plot(at(np.array([effect.low, effect.high])), [row, row], color=colour)
            right.plot(at(np.array([effect.true])), [row], marker=marker, color=colour)
            right.plot(
                at(np.array([effect.linear])), [row], marker="x", markersize=4, color="#555555"
            )
        right.axvline(0, color="#777777", linewidth=0.8)
        right.set_title("(b) the largest (cross: predicted)")
        right.set_xlabel(TRUE)
        _ticks(right, "x", at)
        room = 1.1 if stacked else 1.7
        names = [text_metrics.broken(str(effect), room, 40) for effect in top["name"]]
        right.set_yticks(range(len(top)), names, parse_math=False)
        lines = left.get_lines()[: len(legend)]
        text_metrics.legend(drawn, lines, list(legend.values()))
        text_metrics.heading(drawn, name)
        text_metrics.note(drawn, [NOTE])
    return drawn


def lacks(ds: xr.Dataset) -> str:
    """Say why there is nothing to draw; empty where there is something."""
    return "" if "ablation" in ds.dims else "this analysis has no interventions"


def interactive(ds: xr.Dataset) -> go.Figure:
    """Draw the same for the screen, with names and values under the pointer."""
    table = interventions.effects(ds)
    at = _scale(np.concatenate([table["low"], table["high"], table["true"], table["linear"]]))
    legend = dict(zip(interventions.kinds_of(ds), _legend(ds), strict=True))
    drawn = plotly.figure()
    drawn.update_layout(margin={"t": 30})
    for kind in legend:
        rows = table[table["kind"] == kind]
        colour, _, marker = LOOKS[kind]
        true, linear = rows["true"].to_numpy(), rows["linear"].to_numpy()
        drawn.add_scatter(
            x=at(linear),
            y=at(true),
            name=legend[kind],
            text=[plotly.text(str(name)) for name in rows["name"]],
            customdata=[
                f"{palette.number(t)} [{palette.number(low)}, {palette.number(high)}], "
                f"predicted {palette.number(p)}"
                for t, low, high, p in zip(true, rows["low"], rows["high"], linear, strict=True)
            ],
            hovertemplate="%{text}<br>loss change %{customdata}<extra></extra>",
            mode="markers",
            marker={"color": colour, "symbol": marker, "size": 6, "opacity": 0.8},
            **plotly.axes(0),
        )
    every = at(np.concatenate([table["true"], table["linear"]]))
    pad = 0.05 * (float(every.max() - every.min()) or 1.0)
    ends = [float(every.min()) - pad, float(every.max()) + pad]
    drawn.add_scatter(
        x=ends,
        y=ends,
        mode="lines",
        line={"color": plotly.INK, "dash": "dash", "width": 1},
        hoverinfo="skip",
        showlegend=False,
        **plotly.axes(0),
    )
    marks = {"tickvals": at(np.array(at.marks)).tolist(), "ticktext": _texts(at)}
    plotly.axis(drawn, "x", 0, title={"text": LINEAR, "standoff": 6}, range=ends, **marks)
    plotly.axis(drawn, "y", 0, title={"text": TRUE, "standoff": 4}, range=ends, **marks)
    drawn.update_layout(showlegend=True)
    return plotly.placed(drawn, 1, columns=1, row=340)


def _legend(ds: xr.Dataset) -> list[str]:
    """Return one line per kind: what was done, how often, and how well gates foretold it."""
    return [
        f"{KIND_TEXT[a.kind]} ({a.count}): rank correlation {_short(a.rank.value)}, "
        f"error {_short(a.error.value)}"
        for a in interventions.agreement(ds, resamples=1)
    ]


def _short(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "n/a"


def _scale(values: Array) -> Scale:
    sizes = np.abs(values[np.isfinite(values)])
    largest = float(sizes.max()) or 1.0
    width = max(float(np.median(sizes)), largest / 1e3)
    decades = range(math.ceil(math.log10(width)), math.floor(math.log10(largest)) + 1)
    ups = [10.0**decade for decade in decades][-3:] or [largest]
    return Scale(width, [*(-up for up in reversed(ups)), 0.0, *ups])


def _texts(at: Scale) -> list[str]:
    return [palette.tick(mark) for mark in at.marks]


def _ticks(axis: Axes, which: str, at: Scale) -> None:
    low, high = getattr(axis, f"get_{which}lim")()
    inside = [mark for mark in at.marks if low <= at(np.array(mark)) <= high]
    places = [float(at(np.array(mark))) for mark in inside]
    getattr(axis, f"set_{which}ticks")(places, [palette.tick(mark) for mark in inside])
