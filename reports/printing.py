"""Figures of an analysis as matplotlib figures and as files."""

from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from dar_probe.reports.draw import matplotlib
from dar_probe.reports.draw.matplotlib import Figure, save
from dar_probe.reports.figures import registry
from dar_probe.reports.figures.registry import Options

__all__ = ["draw", "save", "write_all"]


def draw(ds: xr.Dataset, stem: str, options: Options, *, name: str) -> Figure:
    """Draw the figure of this name, with what it is of above it.

    Raises:
        UsageError: the data cannot give it, or the options do not fit them.
    """
    return matplotlib.draw(registry.describe(ds, stem, options, name=name))


def write_all(
    ds: xr.Dataset, folder: Path, *, name: str, only: Sequence[str] | None = None
) -> list[Path]:
    """Write all figures that an analysis comes with as PNG (200 dpi) into ``folder``.

    Those of the paper are written as PDF as well. What was measured nowhere is skipped. Equal
    datasets give equal bytes.

    Args:
        ds: an analysis, or a trajectory.
        folder: made if it is missing.
        name: what to call the analysis; drawn, never used in a file name.
        only: the names of the figures, see ``registry.stems``; left out: ``registry.MAIN``.

    Returns:
        The paths written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, options = [], Options()
    for stem in registry.MAIN if only is None else only:
        if registry.lacks(ds, stem, options):
            continue
        figure = draw(ds, stem, options, name=name)
        for suffix in ("png", "pdf") if stem in registry.PAPER else ("png",):
            paths.append(folder / f"{stem}.{suffix}")
            save(figure, paths[-1])
    return paths
