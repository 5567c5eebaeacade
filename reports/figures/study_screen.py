"""The figures of a study for the screen."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from dar_probe.reports.draw import plotly
from dar_probe.reports.figures import interactive
from dar_probe.reports.figures.study_curves import Array, Drawing
from dar_probe.reports.style import palette


def figure(drawing: Drawing) -> go.Figure:
    """Draw the panels, side by side where there is room."""
    drawn, named = plotly.figure(), set()
    for at, panel in enumerate(drawing.panels):
        seen: list[Array] = [np.zeros(1)] if panel.zero else []
        if panel.zero:
            drawn.add_shape(
                type="line", x0=0, x1=1, y0=0, y1=0, line={"color": palette.BLUE, "width": 1},
                xref=f"{plotly.numbered('x', at)} domain", yref=plotly.numbered("y", at),
            )  # fmt: skip
        if panel.marked:
            drawn.add_shape(
                type="rect", x0=panel.marked[0], x1=panel.marked[1], y0=0, y1=1,
                fillcolor=plotly.FAINT, line={"width": 0}, layer="below",
                xref=plotly.numbered("x", at), yref=f"{plotly.numbered('y', at)} domain",
            )  # fmt: skip
        for curve in panel.curves:
            shared = {**plotly.axes(at), "legendgroup": curve.label}
            seen += [curve.value, curve.low, curve.high]
            plotly.band(drawn, curve.x, curve.low, curve.high, curve.colour, **shared)
            dashes, _ = palette.look(curve.look)
            drawn.add_scatter(
                x=curve.x,
                y=curve.value,
                name=plotly.text(curve.label),
                customdata=interactive.intervals(curve.low, curve.high),
                hovertemplate="%{y:.4~g} %{customdata}",
                mode="lines+markers",
                line={"color": curve.colour, "dash": interactive.DASHES[dashes]},
                marker={"size": 4},
                showlegend=curve.label not in named,
                **shared,
            )
            named.add(curve.label)
        plotly.title(drawn, at, f"({'abcd'[at]}) {panel.title}")
        across: dict[str, Any] = {"title": {"text": panel.across, "standoff": 6}}
        if panel.ticks:
            across |= {"type": "log", "tickvals": list(panel.ticks)}
        plotly.axis(drawn, "x", at, **across)
        values = np.concatenate(seen) if seen else np.zeros(0)
        up = {"title": {"text": panel.up, "standoff": 4}}
        plotly.axis(drawn, "y", at, **up, **plotly.value_axis(values, panel.may_log))
    drawn.update_layout(hovermode="x unified", showlegend=True)
    columns = len(drawing.panels)
    placed = plotly.placed(drawn, columns, columns=columns, row=240, room=760, gap=0.085)
    return plotly.with_legend_room(placed)
