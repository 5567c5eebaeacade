"""The symptoms over training: lines over the steps with their limits, and step x depth maps."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from dar_probe.reports.draw import plotly
from dar_probe.reports.figures import interactive
from dar_probe.reports.pages import alt_text
from dar_probe.reports.style import palette
from dar_probe.results import metrics
from dar_probe.results.metrics import Metric
from dar_probe.results.symptoms import SYMPTOMS
from dar_probe.results.verdict import Thresholds

MAPS = ("rms", "grad_rms", "cosine")
Step = tuple[int, Mapping[str, Metric]]


def symptoms(steps: Sequence[Step], limits: Thresholds) -> go.Figure:
    """Draw the three symptoms over the training steps, with bands and limits.

    Args:
        steps: (training step, what ``metrics.means`` gave), in order.
        limits: drawn as lines where they lie near the values.
    """
    drawn = plotly.figure()
    at_step = np.array([step for step, _ in steps], dtype=np.float64)
    for at, name in enumerate(SYMPTOMS):
        parts = np.array(
            [[getattr(m[name], k) for _, m in steps] for k in ("value", "low", "high")]
        )
        value, low, high = parts
        warn, fail = (float(getattr(limits, f"{name}_{kind}")) for kind in ("warn", "fail"))
        plotly.band(drawn, at_step, low, high, palette.BLUE, **plotly.axes(at))
        drawn.add_scatter(
            x=at_step,
            y=value,
            name=SYMPTOMS[name].title,
            customdata=interactive.intervals(low, high),
            hovertemplate="%{y:.4~g} %{customdata}<extra></extra>",
            mode="lines+markers",
            line={"color": palette.BLUE},
            marker={"size": 5},
            **plotly.axes(at),
        )
        for limit, dash, word in ((warn, "dash", "warning"), (fail, "dot", "failure")):
            drawn.add_scatter(
                x=[at_step[0], at_step[-1]],
                y=[limit, limit],
                name=f"{word} limit",
                hovertemplate=f"{word} above %{{y:.4~g}}<extra></extra>",
                mode="lines",
                line={"color": plotly.INK, "dash": dash, "width": 1.3},
                **plotly.axes(at),
            )
        plotly.title(drawn, at, f"({'abc'[at]}) {SYMPTOMS[name].title.lower()}")
        plotly.axis(drawn, "x", at, title={"text": "training step", "standoff": 6}, nticks=5)
        values = plotly.value_axis(np.append(parts, [warn, fail]), SYMPTOMS[name].ratio)
        label = "ratio" if SYMPTOMS[name].ratio else "cosine"
        plotly.axis(drawn, "y", at, title={"text": label, "standoff": 4}, **values)
    drawn.update_layout(hovermode="x unified", showlegend=False, margin={"t": 30})
    return plotly.placed(drawn, 3, columns=3, row=240, room=760, gap=0.085)


def heatmap(pairs: Sequence[tuple[int, xr.Dataset]], name: str) -> go.Figure:
    """Draw one variable over training step and depth, pooled over samples and noise levels."""
    profiles = [metrics.profile(ds, name) for _, ds in pairs]
    across = [f"{step:,}" for step, _ in pairs]
    return interactive.depth_map(pairs[-1][1], name, profiles, across, "training step")


def describe(steps: Sequence[Step]) -> str:
    """Say the figure over steps with its main numbers."""
    parts = []
    for name in SYMPTOMS:
        ends = [
            f"{palette.number(found[name].value)} at step {step:,}"
            for step, found in (steps[0], steps[-1])
        ]
        parts.append(f"{SYMPTOMS[name].title}: from {' to '.join(ends)}.")
    return f"Three line charts over the training steps. {' '.join(parts)}"


def describe_map(pairs: Sequence[tuple[int, xr.Dataset]], name: str) -> str:
    """Say one map over steps with its main numbers."""
    profiles = [metrics.profile(ds, name, resamples=1)["value"].values for _, ds in pairs]
    rows = [f"block {block}" for block in pairs[-1][1]["block"].values]
    across = [f"step {step:,}" for step, _ in pairs]
    return alt_text.of_map(palette.axis_label(name), np.stack(profiles, axis=1), rows, across)
