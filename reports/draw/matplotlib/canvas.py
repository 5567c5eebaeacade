"""A printed figure without its contents: the paper's style and files; pyplot takes no part."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from dar_probe.errors import UsageError
from dar_probe.reports.draw.matplotlib.fonts import plain_fonts

UNDATED = {"png": "Software", "pdf": "CreationDate", "svg": "Date"}  # what would change
FORMATS = tuple(UNDATED)


# Names of anybody's are drawn as they are: "$", "_" and "%" in them are no commands.
LITERAL: Any = {
    "text.usetex": False,
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
}
SIZES = (
    "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize",
    "figure.titlesize",
)  # fmt: skip


@contextmanager
def paper(*, personal: bool = False) -> Iterator[None]:
    """Apply matplotlib's own defaults and the paper style.

    Args:
        personal: whether what a user has set in ``matplotlib.rcParams`` comes on top. Files that a
            command writes do without: they are the same on every machine.
    """
    settings = _settings()
    if personal:
        mine = _changed()
        if "font.size" in mine:  # other sizes keep their proportion to it
            factor = float(mine["font.size"]) / float(settings["font.size"])
            settings = settings | {name: factor * float(settings[name]) for name in SIZES}
        settings = settings | mine
    with matplotlib.rc_context(settings | LITERAL):
        yield


@contextmanager
def literal() -> Iterator[None]:
    """Keep every setting of the user's except those that make commands of names."""
    with matplotlib.rc_context(LITERAL):
        yield


def _changed() -> dict[str, Any]:
    """Return the settings in which a user's differ from matplotlib's own."""
    usual = matplotlib.rcParamsDefault
    now = dict.copy(matplotlib.rcParams)  # of a dict: its own copy resolves the backend
    return {
        name: value
        for name, value in now.items()
        if not name.startswith("backend") and value != usual.get(name)
    }


@cache
def _settings() -> Any:
    with as_file(files("dar_probe.reports.style") / "paper.mplstyle") as path:
        ours = matplotlib.rc_params_from_file(path, use_default_template=False)
    plain = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    return plain | dict(ours)


class PaperFigure(Figure):
    """A figure that a notebook shows by itself, without pyplot and whatever its backend is."""

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, bytes], dict[str, dict[str, int]]]:
        """Return a PNG, sharp on a fine screen, and the size in pixels that it is shown at."""
        buffer = io.BytesIO()
        with paper():
            self.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
        width, height = (round(96 * side) for side in self.get_size_inches())
        return {"image/png": buffer.getvalue()}, {"image/png": {"width": width, "height": height}}


def enlarged() -> float:
    """Return how many times as large as the paper's the letters are; at least 1."""
    return max(1.0, float(matplotlib.rcParams["font.size"]) / float(_settings()["font.size"]))


def figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches, that draws itself without a window.

    Under larger letters than the paper's it is so much higher.
    """
    empty = PaperFigure(figsize=(width, enlarged() * height), layout="constrained")
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
            with plain_fonts():
                write(path, metadata={UNDATED[form]: None})
        finally:
            drawn.set_dpi(dpi)
            FigureCanvasAgg(drawn)
