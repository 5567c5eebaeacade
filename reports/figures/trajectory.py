"""The three symptoms over the training steps of one model, for print."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dar_probe.errors import UsageError
from dar_probe.reports.draw import matplotlib
from dar_probe.reports.style import palette, text_metrics
from dar_probe.results import metrics
from dar_probe.results.metrics import Metric
from dar_probe.results.symptoms import SYMPTOMS
from dar_probe.results.trajectory import split
from dar_probe.results.verdict import Thresholds, plain

Array = npt.NDArray[np.floating]

ONE_STEP = "this is the analysis of one training step, not of a trajectory"
LOOKS = {"warn": ("dotted", "warning limit"), "fail": ("dashed", "failure limit")}
INK = "#555555"
UNEVEN_NOTE = "Columns are training steps, drawn at equal distances."


class Steps(NamedTuple):
    """What is drawn along the steps of a trajectory: maps by variable, metrics by name."""

    numbers: list[int]
    maps: dict[str, Array]
    metrics: dict[str, list[Metric]]


def trajectory(
    ds: xr.Dataset, *, thresholds: Thresholds | None = None, width: matplotlib.Width = "two"
) -> Figure:
    """Draw depth x training step maps of the three symptoms, and their metrics over the steps.

    Metrics have 95 % bootstrap intervals over samples, and the limits of the verdict beside them.

    Args:
        ds: a trajectory, see ``dar_probe.results.trajectory.join``.
        thresholds: the limits; left out, those of ``Thresholds()``.
        width: "one" column (3.25 in, panels stacked) or "two" (6.75 in).

    Raises:
        UsageError: the dataset has no dim ``step``, another width.
    """
    inches = matplotlib.inches(width)
    if lacks(ds):
        raise UsageError(lacks(ds), hint="dar-probe analyze joins several steps of one run")
    steps = _steps(ds)
    limits, colour = thresholds or Thresholds(), palette.colours([ds])[0]
    with matplotlib.paper():
        stacked = width == "one"
        figure = matplotlib.figure(inches, 7.6 if stacked else 3.6)
        grid = figure.subplots(6, 1) if stacked else figure.subplots(2, 3).T.ravel()
        lines: list[Line2D] = []
        notes: list[str] = []
        for at, (panel, name) in enumerate(zip(palette.PANELS, SYMPTOMS, strict=True)):
            above, below = grid[2 * at : 2 * at + 2]
            values = steps.maps[panel.variable]
            norm = matplotlib.scale(values)
            colours = matplotlib.colour_map(norm, "mako_r")
            matplotlib.draw_map(above, values, norm, colours)
            matplotlib.colour_bar(figure, [above], norm, colours, panel.label)
            notes += [text for text in matplotlib.map_notes(values, norm) if text not in notes]
            _block_ticks(above, len(values))
            above.set_ylabel("block index")
            lines = _draw_metric(below, steps.metrics[name], limits, colour)
            below.set_ylabel(SYMPTOMS[name].axis)
            below.set_xlim(above.get_xlim())
            first, second = ("ace"[at], "bdf"[at]) if stacked else ("abc"[at], "def"[at])
            above.set_title(f"({first}) {panel.title}")
            below.set_title(f"({second}) {plain(name)}")
            for axis in (above, below):
                _step_ticks(axis, steps.numbers, 2.2 if stacked else 1.3)
            below.set_xlabel("training step" if not stacked or at == 2 else "")
        gaps = np.diff(steps.numbers)
        notes += [UNEVEN_NOTE] if len(set(gaps.tolist())) > 1 else []
        bands = any(np.isfinite(metric.low) for metric in steps.metrics["inflation"])
        text_metrics.legend(figure, lines, [text for _, text in LOOKS.values()], bands=bands)
        text_metrics.note(figure, notes)
    return figure


def lacks(ds: xr.Dataset) -> str:
    """Say why there is nothing to draw; empty where there is something."""
    return "" if "step" in ds.dims else ONE_STEP


def _steps(ds: xr.Dataset) -> Steps:
    pairs = split(ds)
    maps = {
        panel.variable: np.stack(
            [
                metrics.profile(one, panel.variable, resamples=1)["value"].values[1:]
                for _, one in pairs
            ],
            axis=1,
        )
        for panel in palette.PANELS
    }
    means = [metrics.means(one) for _, one in pairs]
    numbers = {name: [found[name] for found in means] for name in SYMPTOMS}
    return Steps([step for step, _ in pairs], maps, numbers)


def _draw_metric(axis: Axes, found: list[Metric], limits: Thresholds, colour: str) -> list[Line2D]:
    """Draw one metric and return the lines of its limits."""
    value, low, high = (
        np.array([getattr(metric, key) for metric in found]) for key in ("value", "low", "high")
    )
    marks = {key: float(getattr(limits, f"{found[0].name}_{key}")) for key in LOOKS}
    lines = [
        axis.axhline(marks[key], color=INK, linewidth=0.9, linestyle=dashes)
        for key, (dashes, _) in LOOKS.items()
    ]
    if not np.isfinite(value).any():
        matplotlib.value_axis(axis, value, may_log=False)
        return lines
    matplotlib.draw_line(axis, (np.arange(float(len(value))), value, low, high), colour, "solid")
    every = np.concatenate([value, low, high, list(marks.values())])
    matplotlib.value_axis(axis, every, may_log=SYMPTOMS[found[0].name].ratio)
    return lines


def _step_ticks(axis: Axes, numbers: list[int], room: float) -> None:
    """Label as many steps as there is room for in so many inches."""
    labels = [f"{number:,}" for number in numbers]
    widest = max(text_metrics.text_width(label, text_metrics.LABEL_SIZE) for label in labels)
    at = palette.thinned(len(labels), max(1, int(room / (widest + 0.08))))
    axis.set_xticks(at, [labels[place] for place in at])


def _block_ticks(axis: Axes, last: int) -> None:
    ticks = palette.block_ticks(last, 4)
    axis.set_yticks([tick - 1 for tick in ticks], [str(tick) for tick in ticks])
