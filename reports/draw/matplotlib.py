"""Matplotlib's part of a printed figure: style, scales, cells, ticks; pyplot takes no part."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm, Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import Formatter, MaxNLocator, NullLocator

from dar_probe.errors import UsageError
from dar_probe.reports.style import palette
from dar_probe.reports.style.text_metrics import fitted

Array = npt.NDArray[np.floating]
Width = Literal["one", "two"]

WIDTHS = {"one": 3.25, "two": 6.75}  # inches: a column of ICML or CVPR, and the text width
UNDATED = {"png": "Software", "pdf": "CreationDate", "svg": "Date"}  # what would change
FORMATS = tuple(UNDATED)
MOST_MARKERS = 40
MANY = 2000  # marks, which are pixels from here on


class Plain(Formatter):
    """Plain decimals, or powers of ten on all ticks of the axis."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Label one tick by itself."""
        return palette.tick(x, 6)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Label all ticks of an axis."""
        return palette.tick_labels(values)


@contextmanager
def paper() -> Iterator[None]:
    """Apply matplotlib's own defaults and the paper style; a user's matplotlibrc says nothing."""
    with matplotlib.rc_context(_settings()):
        yield


@cache
def _settings() -> Any:
    with as_file(files("dar_probe.reports.style") / "paper.mplstyle") as path:
        ours = matplotlib.rc_params_from_file(path, use_default_template=False)
    plain = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    return plain | dict(ours)


def inches(width: Width) -> float:
    """Return the width of a figure of one or of two columns.

    Raises:
        UsageError: another width.
    """
    if width not in WIDTHS:
        raise UsageError(f"there is no width {width!r}", hint=f"one of {', '.join(WIDTHS)}")
    return WIDTHS[width]


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


def save(drawn: Figure, path: Path, *, form: str = "") -> None:
    """Write a figure as png, pdf or svg, by default what the suffix says; no date is in the bytes.

    PDF embeds its fonts (TrueType, type 42). SVG has its text as outlines: matplotlib can embed
    no font there, and one that is only named looks different wherever it is not installed. The
    panels are placed once and for all formats.

    Raises:
        UsageError: another format.
    """
    form = form or path.suffix[1:]
    if form not in FORMATS:
        raise UsageError(f"there is no format {form!r}", hint=f"one of {', '.join(FORMATS)}")
    dpi = drawn.dpi
    with paper():  # what savefig does, but without a first drawing into nothing
        drawn.set_dpi(matplotlib.rcParams["savefig.dpi"])
        write: Any  # some of the three have no types
        try:
            if engine := drawn.get_layout_engine():
                engine.execute(drawn)
                drawn.set_layout_engine("none")
            if form == "png":
                quick = {"compress_level": 2}  # a tenth larger, in half the time
                write = partial(FigureCanvasAgg(drawn).print_png, pil_kwargs=quick)
            elif form == "pdf":
                write = FigureCanvasPdf(drawn).print_pdf
            else:
                write = FigureCanvasSVG(drawn).print_svg
            write(path, metadata={UNDATED[form]: None})
        finally:
            drawn.set_dpi(dpi)
            FigureCanvasAgg(drawn)


def draw_line(
    axis: Axes,
    profile: tuple[Array, Array, Array, Array],
    colour: str,
    dashes: str,
    marker: str = "o",
) -> Line2D:
    """Draw (position, value, low, high); the band is left out where the interval is NaN.

    A line of one point has a whisker in place of a band.
    """
    position, value, low, high = profile
    every = -(-len(position) // MOST_MARKERS)
    (line,) = axis.plot(
        position, value, marker=marker, markevery=every, color=colour, linestyle=dashes
    )
    known = np.isfinite(low) & np.isfinite(high)
    if known.any() and len(position) > 1:
        axis.fill_between(position, low, high, where=known, color=colour, alpha=0.22, linewidth=0)
    elif known.any():
        axis.vlines(position, low, high, color=colour, linewidth=1)
    return line


def value_axis(axis: Axes, values: Array, may_log: bool, which: Literal["x", "y"] = "y") -> None:
    """Choose a scale from everything drawn: log where it may and spans more than 5x."""
    side = axis.xaxis if which == "x" else axis.yaxis
    finite = values[np.isfinite(values)]
    if not finite.size:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", va="center")
        side.set_ticks([])
        return
    low, high = float(finite.min()), float(finite.max())
    if may_log and palette.spans(finite, 5):
        axis.set(**{f"{which}scale": "log", f"{which}lim": (low / 1.15, high * 1.15)})
        marks = palette.log_ticks(low / 1.15, high * 1.15)
        side.set_ticks(marks, palette.tick_labels(marks))
        side.set_minor_locator(NullLocator())
    else:
        pad = max(0.08 * (high - low), 0.005 * abs(high), 1e-12)
        axis.set(**{f"{which}lim": (low - pad, high + pad)})
        side.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        side.set_major_formatter(Plain())


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
    if not from_zero and palette.spans(finite, 20):
        return LogNorm(low, high)
    if from_zero and low >= 0:
        low = 0.0
    if high <= low:
        low, high = low - (0.5 * abs(low) or 0.5), high + (0.5 * abs(high) or 0.5)
    return Normalize(low, high)


def colour_map(norm: Normalize, wanted: str) -> Colormap:
    """Return the wanted seaborn map, or the diverging one where values take both signs."""
    name = "vlag" if isinstance(norm, CenteredNorm) else wanted
    found: Colormap = sns.blend_palette(palette.COLOUR_MAPS[name], as_cmap=True)
    return found


def draw_map(axis: Axes, values: Array, norm: Normalize, colours: Colormap) -> None:
    """Draw (depth, level) cells, shallow at the bottom; NaN cells show the hatched ground.

    Negative cells get a dash where there are both signs, as grey tells the two ends not apart.
    """
    depth, columns = values.shape
    axis.grid(False)
    if np.isnan(values).any():
        ground = Rectangle((-0.5, -0.5), columns, depth, facecolor=palette.MISSING, linewidth=0)
        ground.set(hatch="////", edgecolor="#b9b9b9")
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
    if isinstance(norm, CenteredNorm):
        _draw_marks(axis, values < 0, values, norm, colours, marker="_", s=5, linewidths=0.5)
    sns.despine(ax=axis, left=True, bottom=True)


def draw_dots(
    axis: Axes,
    marked: npt.NDArray[np.bool_],
    values: Array,
    norm: Normalize,
    colours: Colormap,
) -> None:
    """Put a dot into the marked cells of a map (depth, level)."""
    _draw_marks(axis, marked, values, norm, colours, s=2.2, linewidths=0)


def _draw_marks(
    axis: Axes,
    marked: npt.NDArray[np.bool_],
    values: Array,
    norm: Normalize,
    colours: Colormap,
    **look: Any,
) -> None:
    """Mark cells, light on dark and dark on light."""
    row, column = np.nonzero(marked)
    red, green, blue, _ = np.moveaxis(colours(norm(values[row, column])), -1, 0)
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
    ink = np.where(light, "#303030", "#f4f4f4")
    axis.scatter(column, row, c=ink, rasterized=len(row) > MANY, **look)


def ticks(
    axis: Axes, which: str, positions: Sequence[int], names: Sequence[str], *, room: float = 9.0
) -> None:
    """Label the cells at ``positions`` of a map with their ``names``, each within ``room`` inches.

    Args:
        axis: the map.
        which: "x" or "y".
        positions: of the labelled cells.
        names: of all cells.
        room: inches that a label may take.
    """
    labels = [fitted(names[position], room) for position in positions]
    getattr(axis, f"set_{which}ticks")(positions, labels, parse_math=False)


def level_ticks(axis: Axes, ds: xr.Dataset, most: int = 5) -> None:
    """Label the noise levels along the columns of a map."""
    levels = palette.levels(ds)
    ticks(axis, "x", palette.spread(len(levels), most), levels)


def map_notes(values: Array, norm: Normalize) -> list[str]:
    """Return what the marks of ``draw_map`` mean, where there are any."""
    notes = [palette.GAP_NOTE] if np.isnan(values).any() else []
    return [*notes, palette.SIGN_NOTE] if isinstance(norm, CenteredNorm) else notes


def colour_bar(
    drawn: Figure,
    axes: list[Axes],
    norm: Normalize,
    colours: Colormap,
    label: str,
    *,
    below: bool = False,
) -> None:
    """Add one labelled colour bar for ``axes``, to the right or below, with plain decimals."""
    place: dict[str, Any] = {"location": "bottom", "aspect": 26} if below else {"aspect": 22}
    bar = drawn.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.02, **place)
    bar.set_label(label)
    bar.outline.set_visible(False)
    bar.ax.grid(False)
    axis = bar.ax.xaxis if below else bar.ax.yaxis
    if isinstance(norm, LogNorm):
        low, high = bar.ax.get_xlim() if below else bar.ax.get_ylim()
        marks = palette.log_ticks(low, high)
        axis.set_ticks(marks, labels=palette.tick_labels(marks))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(4 if below else 5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(Plain())
