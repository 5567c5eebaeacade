"""Matplotlib's part of a printed figure: style, scales, cells, ticks; pyplot takes no part."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm, Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from dar_probe.reports import style

Array = npt.NDArray[np.floating]

PLAIN = FuncFormatter(lambda value, _: style.tick(value, 6))


@contextmanager
def paper() -> Iterator[None]:
    """Apply matplotlib's own defaults and the paper style; a user's matplotlibrc says nothing."""
    with as_file(files("dar_probe.reports") / "templates" / "paper.mplstyle") as path:
        ours = matplotlib.rc_params_from_file(path, use_default_template=False)
    plain = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    with matplotlib.rc_context({**plain, **ours}):
        yield


class PaperFigure(Figure):
    """A figure that a notebook shows by itself, without pyplot and whatever its backend is."""

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, bytes], dict[str, dict[str, int]]]:
        """Return a PNG, sharp on a fine screen, and the size in pixels that it is shown at."""
        buffer = io.BytesIO()
        with paper():
            self.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
        width, height = (round(96 * side) for side in self.get_size_inches())
        return {"image/png": buffer.getvalue()}, {"image/png": {"width": width, "height": height}}


def figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches, that draws itself without a window."""
    empty = PaperFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(empty)
    return empty


def save(drawn: Figure, path: Path) -> None:
    """Write a figure; the format is the suffix (png, pdf or svg), the bytes carry no date."""
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with paper():
        drawn.savefig(path, metadata=undated.get(path.suffix[1:]))


def printable(name: str, limit: int = 60) -> str:
    """Return ``name`` cleaned and without characters that the figures' font cannot draw."""
    known = _characters()
    return "".join(c if ord(c) in known else style.REPLACEMENT for c in style.clean(name, limit))


@cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=["DejaVu Sans"]))).get_charmap())


def draw_line(
    axis: Axes, profile: tuple[Array, Array, Array, Array], colour: str, dashes: str
) -> None:
    """Draw (position, value, low, high); the band is left out where the interval is NaN."""
    position, value, low, high = profile
    marker = "o" if len(position) <= 40 else ""
    axis.plot(position, value, marker=marker, color=colour, linestyle=dashes)
    known = np.isfinite(low) & np.isfinite(high)
    if known.any():
        axis.fill_between(position, low, high, where=known, color=colour, alpha=0.22, linewidth=0)


def value_axis(axis: Axes, values: Array, may_log: bool) -> None:
    """Choose the y scale from everything drawn: log where it may and spans more than 5x."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", va="center")
        axis.set_yticks([])
        return
    low, high = float(finite.min()), float(finite.max())
    if may_log and style.spans(finite, 5):
        axis.set_yscale("log")
        axis.set_ylim(low / 1.15, high * 1.15)
        axis.yaxis.set_major_locator(FixedLocator(style.log_ticks(low / 1.15, high * 1.15)))
        axis.yaxis.set_minor_locator(NullLocator())
    else:
        pad = max(0.08 * (high - low), 0.005 * abs(high), 1e-12)
        axis.set_ylim(low - pad, high + pad)
        axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_formatter(PLAIN)


def scale(values: Array, *, from_zero: bool = False) -> Normalize:
    """Return the norm that fits: centred where signs differ, log where it spans more than 20x.

    With ``from_zero`` (shares) it is never logarithmic and starts at 0.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Normalize(0, 1)
    low, high = float(finite.min()), float(finite.max())
    if low < 0 < high:
        return CenteredNorm(0, halfrange=max(-low, high))
    if not from_zero and style.spans(finite, 20):
        return LogNorm(low, high)
    if from_zero and low >= 0:
        low = 0.0
    if high <= low:
        low, high = low - (0.5 * abs(low) or 0.5), high + (0.5 * abs(high) or 0.5)
    return Normalize(low, high)


def colour_map(norm: Normalize, wanted: str) -> Colormap:
    """Return the wanted seaborn map, or the diverging one where values take both signs."""
    name = "vlag" if isinstance(norm, CenteredNorm) else wanted
    found: Colormap = sns.blend_palette(style.COLOUR_MAPS[name], as_cmap=True)
    return found


def draw_map(axis: Axes, values: Array, norm: Normalize, colours: Colormap) -> None:
    """Draw (depth, level) cells, shallow at the bottom; NaN cells show the hatched ground."""
    depth, columns = values.shape
    axis.grid(False)
    ground = Rectangle((-0.5, -0.5), columns, depth, facecolor=style.MISSING, linewidth=0)
    ground.set(hatch="////", edgecolor="#9a9a9a")
    axis.add_patch(ground)
    axis.pcolormesh(
        np.arange(columns + 1) - 0.5,
        np.arange(depth + 1) - 0.5,
        np.ma.masked_invalid(values),
        norm=norm,
        cmap=colours,
        rasterized=True,
    )
    axis.set_xlim(-0.5, columns - 0.5)
    axis.set_ylim(-0.5, depth - 0.5)
    sns.despine(ax=axis, left=True, bottom=True)


def draw_dots(
    axis: Axes,
    marked: npt.NDArray[np.bool_],
    values: Array,
    norm: Normalize,
    colours: Colormap,
) -> None:
    """Put a dot into the marked cells of a map (depth, level), light on dark and dark on light."""
    row, column = np.nonzero(marked)
    red, green, blue, _ = np.moveaxis(colours(norm(values[row, column])), -1, 0)
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
    ink = np.where(light, "#303030", "#f4f4f4")
    axis.scatter(column, row, s=2.2, c=ink, linewidths=0)


def ticks(axis: Axes, which: str, positions: Sequence[int], names: Sequence[str]) -> None:
    """Label the cells at ``positions`` of a map along "x" or "y" with their ``names``."""
    labels = [printable(names[position]) for position in positions]
    getattr(axis, f"set_{which}ticks")(positions, labels, parse_math=False)


def colour_bar(
    drawn: Figure, axes: list[Axes], norm: Normalize, colours: Colormap, label: str
) -> None:
    """Add one labelled colour bar for ``axes``, with plain decimals."""
    bar = drawn.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.02, aspect=22)
    bar.set_label(label)
    bar.outline.set_visible(False)
    bar.ax.grid(False)
    if isinstance(norm, LogNorm):
        low, high = bar.ax.get_ylim()
        bar.ax.yaxis.set_major_locator(FixedLocator(style.log_ticks(low, high)))
        bar.ax.yaxis.set_minor_locator(NullLocator())
    else:
        bar.ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    bar.ax.yaxis.set_major_formatter(PLAIN)


def legend(drawn: Figure, handles: Sequence[Line2D | Patch], labels: Sequence[str]) -> None:
    """Put one legend above the panels; the labels are names of anybody's, and are cleaned."""
    texts = [printable(label) for label in labels]
    columns = len(texts) if sum(len(text) + 8 for text in texts) < 125 else 2
    box = drawn.legend(handles, texts, loc="outside upper left", ncols=columns)
    for text in box.get_texts():
        text.set_parse_math(False)


def note(drawn: Figure, sentences: Sequence[str]) -> None:
    """Write under a figure what a reader must know, wrapped to the figure's width."""
    if sentences:
        text = fill(" ".join(sentences), round(20 * drawn.get_figwidth()))
        drawn.supxlabel(text, fontsize=6.5, color="#444444", x=0.01, ha="left")
