"""Figures of an analysis as matplotlib figures and as files."""

from collections.abc import Callable, Sequence
from pathlib import Path

import xarray as xr

from dar_probe.reports.draw import matplotlib
from dar_probe.reports.draw.matplotlib import Figure, save
from dar_probe.reports.figures import registry
from dar_probe.reports.figures.registry import Options

__all__ = ["OnFigure", "draw", "save", "write_all"]

OnFigure = Callable[[int, int, str], None]


def draw(ds: xr.Dataset, stem: str, options: Options, *, name: str) -> Figure:
    """Draw the figure of this name, with what it is of above it.

    Raises:
        UsageError: the data cannot give it, or the options do not fit them.
    """
    return matplotlib.draw(registry.describe(ds, stem, options, name=name))


def write_all(
    ds: xr.Dataset,
    folder: Path,
    *,
    name: str,
    only: Sequence[str] | None = None,
    formats: Sequence[str] | None = None,
    on_figure: OnFigure | None = None,
) -> list[Path]:
    """Write all figures that an analysis comes with into ``folder``.

    What was measured nowhere is skipped. Equal datasets give equal bytes.

    Args:
        ds: an analysis, or a trajectory.
        folder: made if it is missing.
        name: what to call the analysis; drawn, never used in a file name.
        only: the names of the figures, see ``registry.stems``; left out: ``registry.MAIN``.
        formats: some of ``matplotlib.FORMATS``; left out: PNG (200 dpi), of the paper's figures
            PDF as well.
        on_figure: called with (done, all, name of the next one) before each figure, and at the end.

    Returns:
        The paths written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, options = [], Options()
    asked = registry.MAIN if only is None else only
    stems = [stem for stem in asked if not registry.lacks(ds, stem, options)]
    for done, stem in enumerate(stems):
        if on_figure:
            on_figure(done, len(stems), stem)
        figure = draw(ds, stem, options, name=name)
        usual = ("png", "pdf") if stem in registry.PAPER else ("png",)
        for suffix in usual if formats is None else formats:
            paths.append(folder / f"{stem}.{suffix}")
            save(figure, paths[-1])
    if on_figure:
        on_figure(len(stems), len(stems), "")
    return paths
