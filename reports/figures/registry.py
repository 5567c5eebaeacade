"""Every printed figure of an analysis: which there are, which its data allow, and their files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from dar_probe.reports.draw import matplotlib
from dar_probe.reports.draw.matplotlib import Width, save
from dar_probe.reports.figures import (
    decodability as decodability_figure,
)
from dar_probe.reports.figures import (
    heatmap as heatmap_figure,
)
from dar_probe.reports.figures import (
    interventions,
    router_entropy,
)
from dar_probe.reports.figures import (
    matrix as matrix_figure,
)
from dar_probe.reports.figures import (
    sources as sources_figure,
)
from dar_probe.reports.figures import (
    trajectory as trajectory_figure,
)
from dar_probe.reports.figures.decodability import decodability
from dar_probe.reports.figures.dilution import dilution
from dar_probe.reports.figures.heatmap import heatmap
from dar_probe.reports.figures.matrix import matrix
from dar_probe.reports.figures.router_entropy import spread
from dar_probe.reports.figures.sources import sources
from dar_probe.reports.figures.trajectory import trajectory
from dar_probe.reports.style import palette, text_metrics
from dar_probe.results.trajectory import last_step

__all__ = [
    "FIGURES",
    "HEATMAP",
    "Options",
    "decodability",
    "dilution",
    "draw",
    "heatmap",
    "lacks",
    "matrix",
    "save",
    "sources",
    "spread",
    "stems",
    "trajectory",
    "write_all",
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a reader may choose; every figure takes what concerns it.

    Attributes:
        width: "one" column (3.25 in) or "two" (6.75 in).
        noise_level: of the matrix; the middle one where there is none.
        shallow, deep: blocks of the sources figure, B+1 for the head.
        kind: readers of one kind alone, in the figures that keep kinds apart.
        variables: those with a heatmap; where there are none, those of ``style.HEATMAPS``.
    """

    width: Width = "two"
    noise_level: float | None = None
    shallow: int | None = None
    deep: int | None = None
    kind: str | None = None
    variables: tuple[str, ...] = ()


FIGURES = (
    "dilution",
    "sources",
    "matrix",
    "spread",
    "decodability",
    "trajectory",
    "interventions",
    "heatmap",
)
HEATMAP = "heatmap_"


def stems(only: Sequence[str], options: Options) -> list[str]:
    """Return the names of the files for some of ``FIGURES``: one heatmap for each variable."""
    heatmaps = [HEATMAP + name for name in options.variables or palette.HEATMAPS]
    return [stem for name in only for stem in (heatmaps if name == "heatmap" else [name])]


def lacks(ds: xr.Dataset, stem: str, options: Options) -> str:
    """Say why an analysis or a trajectory cannot give the figure of this name; empty if it can.

    Raises:
        UsageError: a variable without a heatmap, a noise level outside [0, 1].
    """
    ds = ds if stem == "trajectory" else last_step(ds)
    if options.kind is not None and stem in ("matrix", "spread", "decodability"):
        if options.kind not in ds["reader_kind"].values:
            return f"no reader is of kind {options.kind!r}"
    if stem.startswith(HEATMAP):
        return heatmap_figure.lacks(ds, stem.removeprefix(HEATMAP))
    checks: dict[str, Callable[[xr.Dataset], str]] = {
        "sources": sources_figure.lacks,
        "matrix": lambda one: matrix_figure.lacks(one, options.noise_level),
        "spread": router_entropy.lacks,
        "decodability": decodability_figure.lacks,
        "trajectory": trajectory_figure.lacks,
        "interventions": interventions.lacks,
    }
    return checks[stem](ds) if stem in checks else ""


def draw(ds: xr.Dataset, stem: str, options: Options, *, name: str) -> Figure:
    """Draw the figure of this name, with what it is of above it.

    Of a trajectory all but the figure of that name show the last step.

    Raises:
        UsageError: the data cannot give it, or the options do not fit them.
    """
    width, kind = options.width, options.kind
    ds = ds if stem == "trajectory" else last_step(ds)
    if stem == "dilution":
        return dilution([(name, ds)], width=width)
    if stem == "interventions":
        return interventions.figure(ds, name=name, width=width)
    calls: dict[str, Callable[[], Figure]] = {
        "sources": lambda: sources(ds, shallow=options.shallow, deep=options.deep, width=width),
        "matrix": lambda: matrix(ds, noise_level=options.noise_level, kind=kind, width=width),
        "spread": lambda: spread(ds, kind=kind, width=width),
        "decodability": lambda: decodability(ds, kind=kind, width=width),
        "trajectory": lambda: trajectory(ds, width=width),
    }
    heat = stem.removeprefix(HEATMAP)
    drawn = calls[stem]() if stem in calls else heatmap(ds, heat, width=width)
    with matplotlib.paper():
        text_metrics.heading(drawn, name)
    return drawn


def write_all(ds: xr.Dataset, folder: Path, *, name: str) -> list[Path]:
    """Write every figure of one analysis as PNG (200 dpi) and PDF into ``folder``.

    What was measured nowhere is skipped. Equal datasets give equal bytes.

    Args:
        ds: an analysis, or a trajectory.
        folder: made if it is missing.
        name: what to call the analysis; drawn, never used in a file name.

    Returns:
        The paths written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, options = [], Options()
    for stem in stems(FIGURES, options):
        if lacks(ds, stem, options):
            continue
        figure = draw(ds, stem, options, name=name)
        for suffix in ("png", "pdf"):
            paths.append(folder / f"{stem}.{suffix}")
            save(figure, paths[-1])
        figure.clear()
    return paths
