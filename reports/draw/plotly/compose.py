"""A whole figure for the screen from its description."""

import numpy as np

from dar_probe.reports.draw.plotly import layout, traces
from dar_probe.reports.draw.plotly.layout import Spec
from dar_probe.reports.draw.plotly.texts import FAINT, GROUNDS, coded, escaped, numbered, text
from dar_probe.reports.figures.description import Axis, Figure, Frames, Link, Panel, drawn

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def draw(figure: Figure) -> Spec:
    """Return a figure as plotly's JSON has it: "data" and "layout".

    ``layout.meta`` says to the page's script how the figure changes with the page's width, and
    what its axes run over.

    Args:
        figure: what it shows.
    """
    labels = _Labels()
    parts: Spec = {"data": [], "shapes": [], "dots": []}
    titles: list[str] = []
    for at, panel in enumerate(figure.panels):
        _draw_panel(parts, labels, figure, at, panel)
        titles.append(_title(figure, at, panel))
    maps = len(parts["data"])
    parts["data"] += parts["dots"]  # last, so that the page's script finds the maps by number
    made = layout.ground(legend=bool(labels.shown))
    if any(panel.cells for panel in figure.panels):
        made["plot_bgcolor"] = GROUNDS["light"]
    for at, panel in enumerate(figure.panels):
        if titles[at]:
            layout.title(made, at, titles[at])
        for letter in "xy":
            words = _axis_title(figure, at, letter)
            made[numbered(f"{letter}axis", at)] = layout.axis(
                letter, at, panel, words, most=figure.screen.ticks
            )
    bars = []
    for at, scale in enumerate(figure.scales):
        label = "" if _is_one_map(figure) else escaped(scale.label)
        made[numbered("coloraxis", at)] = layout.colour_axis(scale, label)
        panels = enumerate(figure.panels)
        bars.append([own for own, panel in panels if panel.cells and panel.cells.scale == at])
    if parts["shapes"]:
        made["shapes"] = parts["shapes"]
    if _along_x(figure):
        made["hovermode"] = "x unified"
    made["meta"] = _meta(figure, parts["data"])
    if figure.scales:
        made["meta"]["schemes"] = layout.schemes(figure.scales)
    if parts["dots"]:
        made["meta"]["dots"] = list(range(maps, len(parts["data"])))
    layout.place(made, figure.screen, bars, len(figure.panels))
    if labels.shown and figure.screen.room:
        layout.make_legend_room(made, labels.shown)
    return {"data": parts["data"], "layout": made}


class _Labels:
    """The labels that are in the legend already."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()
        self.shown: list[str] = []

    def first(self, label: str, colour: str) -> bool:
        """Whether this is the first of its label and colour."""
        if not label or (label, colour) in self._seen:
            return False
        self._seen.add((label, colour))
        self.shown.append(label)
        return True


def _draw_panel(parts: Spec, labels: _Labels, figure: Figure, at: int, panel: Panel) -> None:
    data, shapes = parts["data"], parts["shapes"]
    x, y = numbered("x", at), numbered("y", at)
    if panel.shaded:
        low, high = panel.shaded
        shapes.append(
            {"type": "rect", "x0": low, "x1": high, "y0": 0, "y1": 1, "xref": x,
             "yref": f"{y} domain", "fillcolor": FAINT, "line": {"width": 0}, "layer": "below"}
        )  # fmt: skip
    for curve in panel.curves:
        if curve.middle is not None:
            ends = (curve.middle[0], curve.middle[1])
            data += traces.band(at, curve, ends, visible=False, opacity=0.13)
        first = labels.first(curve.label, curve.colour)
        data += traces.curve(at, panel, curve, first=first)
    for rule in panel.rules:
        place, made = traces.rule(at, panel, rule)
        parts[place].append(made)
    data += [traces.distribution(at, panel, one) for one in panel.distributions]
    for points in panel.points:
        first = bool(len(points.x)) and labels.first(points.label, points.colour)
        data.append(traces.points(at, panel, points, first=first))
    if cells := panel.cells:
        level = figure.frames.levels[0] if figure.frames else ""
        data.append(traces.cells(at, panel, cells, figure.scales[cells.scale], level=level))
        if cells.marked is not None and traces.has_dots(cells):
            parts["dots"].append(traces.dots(at, panel, cells.marked))


def _title(figure: Figure, at: int, panel: Panel) -> str:
    """Return the title of a panel; the only map of a figure has its colours' label there."""
    if _is_one_map(figure):
        return escaped(figure.scales[0].label)
    words = escaped(panel.title) + (text(panel.subject) if panel.subject else "")
    letter = f"({LETTERS[at % 26]}) " if figure.lettered and words else ""
    return letter + words.replace("\n", " ").rstrip(" ,")


def _axis_title(figure: Figure, at: int, letter: str) -> str:
    """Return the title of an axis; maps side by side share that of the first."""
    panel = figure.panels[at]
    axis: Axis = panel.x if letter == "x" else panel.y
    inner = letter == "y" and bool(panel.cells) and at % figure.screen.columns > 0
    return "" if inner else escaped(axis.title.replace("\n", " "))


def _is_one_map(figure: Figure) -> bool:
    panel = figure.panels[0]
    return len(figure.panels) == 1 and bool(panel.cells) and not panel.title and not panel.subject


def _along_x(figure: Figure) -> bool:
    """Whether all curves of a panel have the same places, so that one pointer reads them all."""
    curves = [curve for panel in figure.panels for curve in panel.curves]
    others = any(panel.points or panel.cells for panel in figure.panels)
    return bool(curves) and not others and not any(curve.names for curve in curves)


def _meta(figure: Figure, data: list[Spec]) -> Spec:
    """Return what the page's script needs besides the two arrangements."""
    meta: Spec = {}
    linked = [
        _links(figure, at, panel)
        for at, panel in enumerate(figure.panels)
        if panel.x.link or panel.y.link
    ]
    if linked:
        meta["panels"] = linked
    hidden = [at for at, trace in enumerate(data) if trace.get("visible") is False]
    if hidden:
        meta["spread"] = {"traces": hidden, **_rescaled(figure)}
    if figure.frames:
        meta["frames"] = _frames(figure.frames)
    if figure.reader is not None:
        meta["reader"] = figure.reader
    return meta


def _links(figure: Figure, at: int, panel: Panel) -> Spec:
    """Say which axes of a panel run over blocks or noise levels."""
    entry: Spec = {f"{letter}axis": numbered(f"{letter}axis", at) for letter in "xy"}
    entry["last"] = figure.last
    for letter, link in (("x", panel.x.link), ("y", panel.y.link)):
        if link:
            entry[letter] = _link(link)
    return entry


def _link(link: Link) -> Spec:
    values = None if link.values is None else [float(f"{value:.12g}") for value in link.values]
    return {"dim": link.dim, "values": values}


def _rescaled(figure: Figure) -> Spec:
    """Return patches that give logarithmic axes, whose range is fixed, room for hidden bands."""
    patches: Spec = {"shown": {}, "hidden": {}}
    for at, panel in enumerate(figure.panels):
        without = drawn(panel)
        bands = [curve.middle.ravel() for curve in panel.curves if curve.middle is not None]
        if not panel.y.fitted or "range" not in layout.value_axis(without, panel.y.may_log):
            continue
        both = np.concatenate([without, *bands])
        for name, values in (("hidden", without), ("shown", both)):
            for key, value in layout.value_axis(values, True).items():
                patches[name][f"{numbered('yaxis', at)}.{key}"] = value
    return patches


def _frames(frames: Frames) -> Spec:
    """Return every level of every map, as bytes: little-endian float32, and one bit per dot."""
    return {
        "levels": list(frames.levels),
        "values": list(frames.values),
        "dot": traces.DOT,
        "maps": [
            {
                "quantity": quantity,
                "z": coded(values.astype("<f4")),
                "marks": coded(np.packbits(marked)) if marked.any() else "",
            }
            for quantity, values, marked in frames.maps
        ],
    }
