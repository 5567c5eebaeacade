"""The three symptoms over the training steps of one model."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.reports.figures.arrangement import Paper, Screen, Width
from dar_probe.reports.figures.description import (
    BAND,
    Array,
    Axis,
    Cells,
    Curve,
    Field,
    Figure,
    Panel,
    Rule,
    Scale,
    map_notes,
)
from dar_probe.reports.figures.heatmap import columns_of, depth_map
from dar_probe.reports.style import palette
from dar_probe.results import metrics
from dar_probe.results.metrics import Metric
from dar_probe.results.symptoms import SYMPTOMS
from dar_probe.results.trajectory import split
from dar_probe.results.verdict import Thresholds, plain

Step = tuple[int, Mapping[str, Metric]]

MAPS = ("rms", "grad_rms", "cosine")
ONE_STEP = "this is the analysis of one training step, not of a trajectory"
LOOKS = {"warn": ("dotted", "warning limit"), "fail": ("dashed", "failure limit")}
UNEVEN_NOTE = "Columns are training steps, drawn at equal distances."


def trajectory(
    ds: xr.Dataset, *, thresholds: Thresholds | None = None, width: Width = "two"
) -> Figure:
    """Describe depth x training step maps of the three symptoms, and their metrics over the steps.

    Metrics have 95 % bootstrap intervals over samples, and the limits of the verdict beside them.
    Steps stand at equal distances, those of the metrics below those of the maps.

    Args:
        ds: a trajectory, see ``dar_probe.results.trajectory.join``.
        thresholds: the limits; left out, those of ``Thresholds()``.
        width: "one" column (3.25 in, panels stacked) or "two" (6.75 in).

    Raises:
        UsageError: the dataset has no dim ``step``, another width.
    """
    stacked = width == "one"
    paper = Paper(
        width=width, height=7.6 if stacked else 3.6, across=1 if stacked else 3, downwards=True
    )
    if lacks(ds):
        raise UsageError(lacks(ds), hint="dar-probe analyze joins several steps of one run")
    pairs = split(ds)
    numbers = [step for step, _ in pairs]
    steps = [(step, metrics.means(one)) for step, one in pairs]
    axis = _equal_steps(numbers, room=2.2 if stacked else 1.3)
    below = _metric_panels(steps, thresholds or Thresholds(), axis, colour=palette.colours([ds])[0])
    panels, scales, notes = [], [], []
    for at, (panel, metric) in enumerate(zip(palette.PANELS, below, strict=True)):
        profiles = [metrics.profile(one, panel.variable, resamples=1) for _, one in pairs]
        values = columns_of(profiles)[0][1:]
        panels += [_map_panel(panel, values, at, axis), metric]
        scales.append(Scale(label=panel.label, colours="mako_r", values=values))
        notes += [text for text in map_notes(values) if text not in notes]
    uneven = len(set(np.diff(numbers).tolist())) > 1
    return Figure(
        panels=panels,
        paper=paper,
        says="The three symptoms over the training steps: by block, and as single numbers.",
        screen=Screen(columns=2, row=200, room=760, gap=0.2),
        scales=scales,
        notes=[*notes, *([UNEVEN_NOTE] if uneven else [])],
        band=BAND,
    )


def symptoms(steps: Sequence[Step], limits: Thresholds) -> Figure:
    """Describe the three symptoms over the training steps, with bands and limits.

    Args:
        steps: (training step, what ``metrics.means`` gave), in order.
        limits: drawn as lines.
    """
    return Figure(
        panels=_metric_panels(steps, limits, None, colour=palette.BLUE),
        paper=Paper(height=2.0, across=3),
        screen=Screen(columns=3, row=240, room=760, gap=0.085),
    )


def step_map(pairs: Sequence[tuple[int, xr.Dataset]], name: str) -> Figure:
    """Describe one variable over training step and depth, pooled over samples and noise levels."""
    value, low, high = columns_of([metrics.profile(ds, name) for _, ds in pairs])
    names = [f"{step:,}" for step, _ in pairs]
    across = Axis(title="training step", names=names, ticks=palette.thinned(len(names), 5))
    return depth_map(pairs[-1][1], name, value, across, bounds=(low, high))


def lacks(ds: xr.Dataset) -> str:
    """Say why there is nothing to draw; empty where there is something."""
    return "" if "step" in ds.dims else ONE_STEP


def _metric_panels(
    steps: Sequence[Step], limits: Thresholds, axis: Axis | None, *, colour: str
) -> list[Panel]:
    """Return a panel for each symptom, over true steps or over the positions of an axis."""
    x = np.arange(float(len(steps))) if axis else np.array([float(step) for step, _ in steps])
    across = axis or Axis(title="training step")
    panels = []
    for name in SYMPTOMS:
        value, low, high = (
            np.array([getattr(found[name], key) for _, found in steps])
            for key in ("value", "low", "high")
        )
        rules = [
            Rule(y=float(getattr(limits, f"{name}_{key}")), dashes=dashes, label=label)
            for key, (dashes, label) in LOOKS.items()
        ]
        panels.append(
            Panel(
                title=plain(name),
                x=across,
                y=Axis(title=SYMPTOMS[name].axis, fitted=True, may_log=SYMPTOMS[name].ratio),
                curves=[
                    Curve(label="", colour=colour, look=0, x=x, value=value, low=low, high=high)
                ],
                rules=rules,
            )
        )
    return panels


def _map_panel(panel: palette.Panel, values: Array, scale: int, steps: Axis) -> Panel:
    blocks = palette.block_ticks(len(values), 4)
    hover = (
        ("block ", Field.ROW),
        ("training step ", Field.COLUMN),
        (f"{panel.title} ", Field.VALUE),
    )
    return Panel(
        title=panel.title,
        x=steps,
        y=Axis(
            title="block index",
            names=[str(at + 1) for at in range(len(values))],
            ticks=[block - 1 for block in blocks],
        ),
        cells=Cells(values=values, scale=scale, hover=hover),
    )


def _equal_steps(numbers: Sequence[int], *, room: float) -> Axis:
    """Return an axis of steps at equal distances, as many labelled as fit into so many inches."""
    names = [f"{number:,}" for number in numbers]
    widest = 0.062 * max(map(len, names))  # inches that a digit of a label takes, and a little
    most = max(1, int(room / (widest + 0.08)))
    limits = (-0.5, len(names) - 0.5)
    ticks = palette.thinned(len(names), most)
    return Axis(title="training step", names=names, limits=limits, ticks=ticks)
