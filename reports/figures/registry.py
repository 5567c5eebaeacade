"""Every figure of an analysis by name: which there are, which its data allow, what each shows."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import xarray as xr

from dar_probe.errors import UsageError
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
from dar_probe.results.streams import single


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


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One figure of an analysis.

    Attributes:
        describe: (dataset, options, name of its file) to what it shows.
        lacks: the same to why the data cannot give it, empty if they can.
        by_kind: whether it can show readers of one kind alone.
        whole: whether it shows a whole trajectory, and not its last step.
    """

    describe: Callable[[xr.Dataset, Options, str], Figure]
    lacks: Callable[[xr.Dataset, Options, str], str] = lambda ds, options, stem: ""
    by_kind: bool = False
    whole: bool = False


def _variable(stem: str) -> str:
    return stem.removeprefix(HEATMAP)


HEATMAP = "heatmap_"
FIGURES: dict[str, Entry] = {
    "dilution": Entry(describe=lambda ds, o, _: dilution.dilution([("", ds)], width=o.width)),
    "sources": Entry(
        describe=lambda ds, o, _: sources.sources(
            ds, shallow=o.shallow, deep=o.deep, width=o.width
        ),
        lacks=lambda ds, o, _: sources.lacks(ds),
    ),
    "matrix": Entry(
        describe=lambda ds, o, _: matrix.matrix(
            ds, noise_level=o.noise_level, kind=o.kind, width=o.width
        ),
        lacks=lambda ds, o, _: matrix.lacks(ds, o.noise_level),
        by_kind=True,
    ),
    "spread": Entry(
        describe=lambda ds, o, _: router_entropy.router_entropy(ds, kind=o.kind, width=o.width),
        lacks=lambda ds, o, _: router_entropy.lacks(ds),
        by_kind=True,
    ),
    "decodability": Entry(
        describe=lambda ds, o, _: decodability.decodability(ds, kind=o.kind, width=o.width),
        lacks=lambda ds, o, _: decodability.lacks(ds),
        by_kind=True,
    ),
    "samples": Entry(
        describe=lambda ds, o, _: samples.samples(ds, width=o.width),
        lacks=lambda ds, o, _: samples.lacks(ds),
    ),
    "trajectory": Entry(
        describe=lambda ds, o, _: trajectory.trajectory(ds, width=o.width),
        lacks=lambda ds, o, _: trajectory.lacks(ds),
        whole=True,
    ),
    "interventions": Entry(
        describe=lambda ds, o, _: interventions.interventions(ds, width=o.width),
        lacks=lambda ds, o, _: interventions.lacks(ds),
    ),
    "heatmap": Entry(
        describe=lambda ds, o, stem: heatmap.heatmap(ds, _variable(stem), width=o.width),
        lacks=lambda ds, o, stem: heatmap.lacks(ds, _variable(stem)),
    ),
}
# What an analysis comes with: the figures of a paper, and the maps of the three symptoms. The rest
# is drawn by ``dar-probe figures``, and most of it is on the page.
PAPER = ("dilution", "sources", "matrix", "trajectory", "interventions")
MAIN = (*PAPER, *(HEATMAP + panel.variable for panel in palette.PANELS))


def stems(only: Iterable[str], options: Options) -> list[str]:
    """Return the names of the files for some of ``FIGURES``: one heatmap for each variable."""
    heatmaps = [HEATMAP + name for name in options.variables or palette.HEATMAPS]
    return [stem for name in only for stem in (heatmaps if name == "heatmap" else [name])]


def lacks(ds: xr.Dataset, stem: str, options: Options) -> str:
    """Say why an analysis or a trajectory cannot give the figure of this name; empty if it can.

    Raises:
        UsageError: a variable without a heatmap, a noise level outside [0, 1].
    """
    entry = _entry(stem)
    ds = ds if entry.whole else single(ds)
    if entry.by_kind and options.kind is not None:
        if options.kind not in ds["reader_kind"].values:
            return f"no reader is of kind {options.kind!r}"
    return entry.lacks(ds, options, stem)


def describe(ds: xr.Dataset, stem: str, options: Options, *, name: str) -> Figure:
    """Return what the figure of this name shows, with what it is of as its heading.

    Of a trajectory all but the figure of that name show the last step.

    Args:
        ds: an analysis, or a trajectory.
        stem: one of ``stems(FIGURES, options)``.
        options: what a reader chose.
        name: what the analysis is called.

    Raises:
        UsageError: there is no such figure, the data cannot give it, or the options do not fit.
    """
    entry = _entry(stem)
    ds = ds if entry.whole else single(ds)
    if stem == "dilution":  # its legend says the name
        return dilution.dilution([(name, ds)], width=options.width)
    return replace(entry.describe(ds, options, stem), heading=name)


def _entry(stem: str) -> Entry:
    known = "heatmap" if stem.startswith(HEATMAP) else stem
    if known not in FIGURES or stem == "heatmap":
        names = [HEATMAP + "VARIABLE" if name == "heatmap" else name for name in FIGURES]
        raise UsageError(f"there is no figure {stem!r}", hint=f"one of {', '.join(names)}")
    return FIGURES[known]
