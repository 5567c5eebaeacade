"""The printed figures by name: ``analysis.plot.dilution()``, ``comparison.plot.differences()``."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypedDict, Unpack

import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.reports import text_tables
from dar_probe.reports.draw import matplotlib
from dar_probe.reports.draw.matplotlib import Axes, Figure
from dar_probe.reports.figures import (
    decodability,
    description,
    differences,
    dilution,
    heatmap,
    interventions,
    matrix,
    registry,
    router_entropy,
    samples,
    sources,
    trajectory,
)
from dar_probe.reports.figures.arrangement import Width
from dar_probe.reports.figures.caption import caption, without


class Analysis(Protocol):
    """What is drawn: an analysis by its name and data."""

    @property
    def name(self) -> str:
        """As legends show it."""

    @property
    def dataset(self) -> xr.Dataset:
        """Of one training step, see ``dar_probe.results.schema``."""

    @property
    def trajectory(self) -> xr.Dataset | None:
        """The dataset over training steps, where there are several."""


class Look(TypedDict, total=False):
    """What every figure takes, whatever it shows.

    Attributes:
        ax: axes of the user's to draw into, as many as the figure has panels; a single one stands
            for itself. The figure then has the style of those axes, the legend stands in the first
            of them, and heading and notes are left to the user.
        titles: False leaves out the heading and the titles of the panels.
        notes: False leaves out the sentences below; ``caption`` says them all the same.
    """

    ax: Axes | Sequence[Axes] | None
    titles: bool
    notes: bool


class Plots:
    """Matplotlib figures of one analysis, "one" column (3.25 in) or "two" (6.75 in) wide.

    Where your ``matplotlib.rcParams`` (fonts, sizes, grids) differ from matplotlib's defaults, they
    come on top of the style of the paper. Every method also takes ``ax``, ``titles`` and
    ``notes``, see ``Look``.

    Example:
        ``analysis.plot.heatmap("rms", ax=axes[0])`` draws into a panel of your own figure, and
        ``analysis.plot.caption("heatmap_rms", latex=True)`` returns the words for below it.
    """

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis

    def dilution(self, *others: Analysis, width: Width = "two", **look: Unpack[Look]) -> Figure:
        """RMS, gradient and cosine over the block index, one line per analysis."""
        everything = [(one.name, one.dataset) for one in (self._analysis, *others)]
        return _drawn(dilution.dilution(everything, width=width), look)

    def sources(
        self,
        *,
        shallow: int | None = None,
        deep: int | None = None,
        width: Width = "two",
        **look: Unpack[Look],
    ) -> Figure:
        """Importance, and routing weights, of every source at a shallow and a deep block."""
        found = sources.sources(self._ds, shallow=shallow, deep=deep, width=width)
        return _drawn(found, look)

    def matrix(
        self,
        *,
        noise_level: float | None = None,
        kind: str | None = None,
        width: Width = "two",
        **look: Unpack[Look],
    ) -> Figure:
        """Reader x source maps at the nearest noise level, attention and MLP readers apart."""
        found = matrix.matrix(self._ds, noise_level=noise_level, kind=kind, width=width)
        return _drawn(found, look)

    def spread(
        self, *, kind: str | None = None, width: Width = "two", **look: Unpack[Look]
    ) -> Figure:
        """Routing entropy and effective number of sources over depth, of a model with a router."""
        return _drawn(router_entropy.router_entropy(self._ds, kind=kind, width=width), look)

    def decodability(
        self, *, kind: str | None = None, width: Width = "two", **look: Unpack[Look]
    ) -> Figure:
        """How well the noise level is decoded from what each reader reads."""
        return _drawn(decodability.decodability(self._ds, kind=kind, width=width), look)

    def samples(self, *, width: Width = "two", **look: Unpack[Look]) -> Figure:
        """How far the samples lie apart in the three symptoms, at some depths."""
        found = samples.samples(self._ds, width=width)
        return _drawn(replace(found, heading=self._analysis.name), look)

    def trajectory(self, *, width: Width = "two", **look: Unpack[Look]) -> Figure:
        """The three symptoms over the training steps, of several checkpoints of one run.

        Raises:
            UsageError: a single checkpoint was analysed.
        """
        if self._analysis.trajectory is None:
            raise UsageError(
                "this analysis has no training steps",
                hint="dar-probe analyze RUN/checkpoints/*.pt makes one that has",
            )
        return _drawn(trajectory.trajectory(self._analysis.trajectory, width=width), look)

    def interventions(self, *, width: Width = "two", **look: Unpack[Look]) -> Figure:
        """True against predicted loss changes, of an analysis that ``ablate`` made."""
        found = interventions.interventions(self._ds, width=width)
        return _drawn(replace(found, heading=self._analysis.name), look)

    def heatmap(self, variable: str, *, width: Width = "two", **look: Unpack[Look]) -> Figure:
        """Depth x noise level map of one variable."""
        return _drawn(heatmap.heatmap(self._ds, variable, width=width), look)

    def caption(
        self,
        name: str,
        *,
        latex: bool = False,
        noise_level: float | None = None,
        shallow: int | None = None,
        deep: int | None = None,
        kind: str | None = None,
    ) -> str:
        """Return what a figure shows, what its panels are, and its notes, in sentences.

        Args:
            name: of its file, such as "dilution", "matrix" or "heatmap_rms".
            latex: whether characters that are commands of LaTeX are escaped.
            noise_level: as given to the figure.
            shallow: the same.
            deep: the same.
            kind: the same.

        Raises:
            UsageError: there is no such figure, or the data cannot give it.
        """
        options = registry.Options(noise_level=noise_level, shallow=shallow, deep=deep, kind=kind)
        whole = self._analysis.trajectory
        ds = self._ds if whole is None else whole
        text = caption(registry.describe(ds, name, options, name=self._analysis.name))
        return text_tables.escaped(text) if latex else text

    @property
    def _ds(self) -> xr.Dataset:
        return self._analysis.dataset


class ComparisonPlots:
    """Matplotlib figures of a comparison; they take what those of one analysis take.

    Args:
        named: (name, dataset) pairs, the reference first.
    """

    def __init__(self, named: Sequence[tuple[str, xr.Dataset]]) -> None:
        self._named = named

    def dilution(self, *, width: Width = "two", **look: Unpack[Look]) -> Figure:
        """RMS, gradient and cosine over the block index, one line per model."""
        return _drawn(dilution.dilution(self._named, width=width), look)

    def differences(self, *, width: Width = "two", **look: Unpack[Look]) -> Figure:
        """The same, each other model minus the reference, with paired intervals.

        Raises:
            UsageError: no model has the reference's samples and depth.
        """
        return _drawn(differences.differences(self._named, width=width), look)


def _drawn(figure: description.Figure, look: Look) -> Figure:
    figure = without(figure, titles=look.get("titles", True), notes=look.get("notes", True))
    if (axes := look.get("ax")) is not None:
        return matplotlib.draw_into(axes, figure)
    return matplotlib.draw(figure, personal=True)
