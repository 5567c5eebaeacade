"""What interventions did to the loss beside what gates predicted."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.files.text import decimal
from dar_probe.reports.figures.arrangement import Paper, Screen, Width
from dar_probe.reports.figures.description import Array, Axis, Figure, Panel, Points, Rule
from dar_probe.reports.style import palette
from dar_probe.results import interventions as effects
from dar_probe.results.interventions import KIND_TEXT

LARGEST = 12  # effects that are named
LOOKS = {
    "gate": (palette.BLUE, "o"),
    "source": (palette.ORANGE, "^"),
    "block": (palette.OTHERS[0], "s"),
    "image_block": (palette.OTHERS[5], "P"),
    "text_block": (palette.OTHERS[3], "X"),
    "uniform": (palette.OTHERS[1], "D"),
    "frozen": (palette.OTHERS[2], "v"),
}
NOTE = (
    "Mean over samples and noise levels; whiskers: 95 % bootstrap interval over samples. "
    "Axes are linear near zero and logarithmic beyond. Error: root mean square of prediction "
    "minus truth over that of the truth."
)
TRUE, LINEAR = "true change of the loss", "predicted by gates (first order)"


class Symlog(NamedTuple):
    """An axis that is linear within ``width`` of zero and logarithmic beyond."""

    width: float
    marks: list[float]

    def __call__(self, values: Array) -> Array:
        """Return where values lie on the axis."""
        return np.asarray(np.arcsinh(values / self.width))

    def axis(self, title: str, limits: tuple[float, float]) -> Axis:
        """Return the axis from ``limits`` on, which are places on it."""
        inside = [m for m in self.marks if limits[0] <= float(self(np.array(m))) <= limits[1]]
        return Axis(
            title=title,
            limits=limits,
            ticks=[float(self(np.array(mark))) for mark in inside],
            labels=[palette.tick(mark) for mark in inside],
        )


def interventions(ds: xr.Dataset, *, width: Width = "two") -> Figure:
    """Describe true against predicted loss changes, and the largest ones by name.

    Args:
        ds: an analysis that ``dar-probe ablate`` made.
        width: "one" column (3.25 in, panels stacked) or "two" (6.75 in, side by side).

    Raises:
        UsageError: nothing was intervened on, another width.
    """
    stacked = width == "one"
    paper = Paper(
        width=width,
        height=5.2 if stacked else 2.9,
        across=1 if stacked else 2,
        columns=() if stacked else (1, 0.9),
    )
    if lacks(ds):
        raise UsageError(lacks(ds), hint="dar-probe ablate measures them")
    table = effects.effects(ds)
    at = _symlog(table[["low", "high", "true", "linear"]].to_numpy())
    legend = dict(zip(effects.kinds_of(ds), _legend(ds), strict=True))
    return Figure(
        panels=[
            _every(table, at, legend),
            _largest(table.head(8 if stacked else LARGEST).iloc[::-1], at, legend, width),
        ],
        paper=paper,
        says="What interventions did to the loss, and what gates predicted.",
        screen=Screen(columns=2, row=340, room=900, gap=0.3),
        notes=[NOTE],
    )


def lacks(ds: xr.Dataset) -> str:
    """Say why there is nothing to draw; empty where there is something."""
    return "" if "ablation" in ds.dims else "this analysis has no interventions"


def _every(table: pd.DataFrame, at: Symlog, legend: dict[str, str]) -> Panel:
    """Describe true over predicted changes, one point for each intervention."""
    points = []
    for kind, label in legend.items():
        rows = table[table["kind"] == kind]
        colour, marker = LOOKS[kind]
        columns = (rows[key] for key in ("true", "low", "high", "linear"))
        points.append(
            Points(
                label=label,
                colour=colour,
                marker=marker,
                x=at(rows["linear"].to_numpy()),
                y=at(rows["true"].to_numpy()),
                names=[palette.clean(str(name)) for name in rows["name"]],
                details=[
                    f"loss change {decimal(true)} [{decimal(low)}, {decimal(high)}], "
                    f"predicted {decimal(linear)}"
                    for true, low, high, linear in zip(*columns, strict=True)
                ],
            )
        )
    ends = _ends(at(table[["true", "linear"]].to_numpy()))
    return Panel(
        title="every intervention",
        x=at.axis(LINEAR, ends),
        y=at.axis(TRUE, ends),
        points=points,
        rules=[Rule(dashes="dashed")],
    )


def _largest(top: pd.DataFrame, at: Symlog, legend: dict[str, str], width: Width) -> Panel:
    """Describe the largest effects, with their intervals and predictions, the largest on top."""
    row = np.arange(float(len(top)))
    places = {key: at(top[key].to_numpy()) for key in ("true", "low", "high", "linear")}
    points = []
    for kind, label in legend.items():
        own = (top["kind"] == kind).to_numpy()
        colour, marker = LOOKS[kind]
        true, low, high = (places[key][own] for key in ("true", "low", "high"))
        points.append(
            Points(label=label, colour=colour, marker=marker, x=true, y=row[own], low=low,
                   high=high)
        )  # fmt: skip
    points.append(Points(label="", colour="#555555", marker="x", x=places["linear"], y=row))
    ends = _ends(np.append(np.concatenate(list(places.values())), 0.0))
    return Panel(
        title="the largest (cross: predicted)",
        x=at.axis(TRUE, ends),
        y=Axis(
            names=[palette.clean(str(name)) for name in top["name"]],
            ticks=range(len(top)),
            room=1.1 if width == "one" else 1.7,
            wrapped=True,
        ),
        points=points,
        rules=[Rule(x=0.0)],
    )


def _ends(values: Array) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not known.size:
        return -1.0, 1.0
    pad = 0.05 * (float(np.ptp(known)) or 1.0)
    return float(known.min()) - pad, float(known.max()) + pad


def _legend(ds: xr.Dataset) -> list[str]:
    """Return one line per kind: what was done, how often, and how well gates foretold it."""
    return [
        f"{KIND_TEXT[a.kind]} ({a.count}): rank correlation {_short(a.rank.value)}, "
        f"error {_short(a.error.value)}"
        for a in effects.agreement(ds, resamples=1)
    ]


def _short(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "n/a"


def _symlog(values: Array) -> Symlog:
    sizes = np.abs(values[np.isfinite(values)])
    largest = float(sizes.max(initial=0.0)) or 1.0
    width = max(float(np.median(sizes)) if sizes.size else 0.0, largest / 1e3)
    decades = range(math.ceil(math.log10(width)), math.floor(math.log10(largest)) + 1)
    ups = [10.0**decade for decade in decades][-3:] or [largest]
    return Symlog(width, [*(-up for up in reversed(ups)), 0.0, *ups])
