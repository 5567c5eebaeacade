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
            with plain_fonts():
                write(path, metadata={UNDATED[form]: None})
        finally:
            drawn.set_dpi(dpi)
            FigureCanvasAgg(drawn)
