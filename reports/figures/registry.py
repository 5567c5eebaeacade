"""Every figure of an analysis by name: which there are, which its data allow, what each shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import xarray as xr

from dar_probe.reports.figures import (
    decodability,
    dilution,
    heatmap,
    interventions,
    matrix,
    router_entropy,
    samples,
    sources,
    trajectory,
)
from dar_probe.reports.figures.arrangement import Width
from dar_probe.reports.figures.description import Figure
from dar_probe.reports.style import palette
from dar_probe.results.trajectory import last_step


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a reader may choose; every figure takes what concerns it.

    Attributes:
        width: "one" column (3.25 in) or "two" (6.75 in).
        noise_level: of the matrix; the middle one where there is none.
        shallow, deep: blocks of the sources figure, B+1 for the head.
        kind: readers of one kind alone, in the figures that keep kinds apart.
        variables: those with a heatmap; where there are none, those of ``palette.HEATMAPS``.
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
    "samples",
    "trajectory",
    "interventions",
    "heatmap",
)
HEATMAP = "heatmap_"
# What an analysis comes with: the figures of a paper, and the maps of the three symptoms. The rest
# is drawn by ``dar-probe figures``, and most of it is on the page.
PAPER = ("dilution", "sources", "matrix", "trajectory", "interventions")
MAIN = (*PAPER, *(HEATMAP + panel.variable for panel in palette.PANELS))


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
        return heatmap.lacks(ds, stem.removeprefix(HEATMAP))
    checks: dict[str, Callable[[xr.Dataset], str]] = {
        "sources": sources.lacks,
        "matrix": lambda one: matrix.lacks(one, options.noise_level),
        "spread": router_entropy.lacks,
        "decodability": decodability.lacks,
        "samples": samples.lacks,
        "trajectory": trajectory.lacks,
        "interventions": interventions.lacks,
    }
    return checks[stem](ds) if stem in checks else ""


def describe(ds: xr.Dataset, stem: str, options: Options, *, name: str) -> Figure:
    """Return what the figure of this name shows, with what it is of as its heading.

    Of a trajectory all but the figure of that name show the last step.

    Args:
        ds: an analysis, or a trajectory.
        stem: one of ``stems(FIGURES, options)``.
        options: what a reader chose.
        name: what the analysis is called.

    Raises:
        UsageError: the data cannot give it, or the options do not fit them.
    """
    width, kind = options.width, options.kind
    ds = ds if stem == "trajectory" else last_step(ds)
    if stem == "dilution":  # its legend says the name
        return dilution.dilution([(name, ds)], width=width)
    calls: dict[str, Callable[[], Figure]] = {
        "sources": lambda: sources.sources(
            ds, shallow=options.shallow, deep=options.deep, width=width
        ),
        "matrix": lambda: matrix.matrix(
            ds, noise_level=options.noise_level, kind=kind, width=width
        ),
        "spread": lambda: router_entropy.router_entropy(ds, kind=kind, width=width),
        "decodability": lambda: decodability.decodability(ds, kind=kind, width=width),
        "samples": lambda: samples.samples(ds, width=width),
        "trajectory": lambda: trajectory.trajectory(ds, width=width),
        "interventions": lambda: interventions.interventions(ds, width=width),
    }
    variable = stem.removeprefix(HEATMAP)
    found = calls[stem]() if stem in calls else heatmap.heatmap(ds, variable, width=width)
    return replace(found, heading=name)
