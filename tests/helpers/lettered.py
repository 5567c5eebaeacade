"""What is written in a drawn figure, and where."""

from itertools import combinations

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from dar_probe.reports.draw import matplotlib

DPI = 200
Written = tuple[str, Bbox, float]


def texts(figure: Figure) -> list[Written]:
    """Return (text, box in pixels, points) of every text that is drawn."""
    with matplotlib.paper():
        figure.set_dpi(DPI)
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        ticks = [tick for axes in figure.axes for tick in _ticks(axes)]
        labels = {label for tick in ticks for label in (tick.label1, tick.label2)}
        drawn = [tick.label1 for axes in figure.axes for tick in _drawn(axes)]
        others = [text for text in figure.findobj(Text) if text not in labels]
        return [
            (text.get_text(), text.get_window_extent(renderer), text.get_fontsize())
            for text in [*drawn, *others]
            if text.get_visible() and text.get_text().strip()
        ]


def clipped(figure: Figure, found: list[Written]) -> list[str]:
    """Return the texts that leave the figure."""
    page = figure.bbox
    return [
        text
        for text, box, _ in found
        if box.x0 < -1 or box.y0 < -1 or box.x1 > page.x1 + 1 or box.y1 > page.y1 + 1
    ]


def overlapping(found: list[Written]) -> list[tuple[str, str]]:
    """Return the pairs of texts that lie on each other."""
    return [
        (one, other)
        for (one, a, _), (other, b, _) in combinations(found, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 2 and min(a.y1, b.y1) - max(a.y0, b.y0) > 2
    ]


def _ticks(axes):
    return [
        tick
        for axis in (axes.xaxis, axes.yaxis)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    ]


def _drawn(axes):
    """Ticks within the view: matplotlib keeps others without drawing them."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        slack = 1e-9 * (high - low)
        yield from (
            tick
            for tick in axis.get_major_ticks()
            if low - slack <= tick.get_loc() <= high + slack and axis.get_visible()
        )
