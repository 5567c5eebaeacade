"""The printed figures of one analysis, by name: ``analysis.plot.dilution()``."""

from dataclasses import replace
from typing import Protocol

import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.reports.draw import matplotlib
from dar_probe.reports.draw.matplotlib import Figure
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


class Plots:
    """Matplotlib figures of one analysis, "one" column (3.25 in) or "two" (6.75 in) wide."""

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis

    def dilution(self, *others: Analysis, width: Width = "two") -> Figure:
        """RMS, gradient and cosine over the block index, one line per analysis."""
        everything = [(one.name, one.dataset) for one in (self._analysis, *others)]
        return matplotlib.draw(dilution.dilution(everything, width=width))

    def sources(
        self, *, shallow: int | None = None, deep: int | None = None, width: Width = "two"
    ) -> Figure:
        """Importance, and routing weights, of every source at a shallow and a deep block."""
        ds = self._analysis.dataset
        return matplotlib.draw(sources.sources(ds, shallow=shallow, deep=deep, width=width))

    def matrix(
        self,
        *,
        noise_level: float | None = None,
        kind: str | None = None,
        width: Width = "two",
    ) -> Figure:
        """Reader x source maps at the nearest noise level, attention and MLP readers apart."""
        ds = self._analysis.dataset
        return matplotlib.draw(matrix.matrix(ds, noise_level=noise_level, kind=kind, width=width))

    def spread(self, *, kind: str | None = None, width: Width = "two") -> Figure:
        """Routing entropy and effective number of sources over depth, of a model with a router."""
        return matplotlib.draw(
            router_entropy.router_entropy(self._analysis.dataset, kind=kind, width=width)
        )

    def decodability(self, *, kind: str | None = None, width: Width = "two") -> Figure:
        """How well the noise level is decoded from what each reader reads."""
        ds = self._analysis.dataset
        return matplotlib.draw(decodability.decodability(ds, kind=kind, width=width))

    def samples(self, *, width: Width = "two") -> Figure:
        """How far the samples lie apart in the three symptoms, at some depths."""
        found = samples.samples(self._analysis.dataset, width=width)
        return matplotlib.draw(replace(found, heading=self._analysis.name))

    def trajectory(self, *, width: Width = "two") -> Figure:
        """The three symptoms over the training steps, of several checkpoints of one run.

        Raises:
            UsageError: a single checkpoint was analysed.
        """
        if self._analysis.trajectory is None:
            raise UsageError(
                "this analysis has no training steps",
                hint="dar-probe analyze RUN/checkpoints/*.pt makes one that has",
            )
        return matplotlib.draw(trajectory.trajectory(self._analysis.trajectory, width=width))

    def interventions(self, *, width: Width = "two") -> Figure:
        """True against predicted loss changes, of an analysis that ``ablate`` made."""
        found = interventions.interventions(self._analysis.dataset, width=width)
        return matplotlib.draw(replace(found, heading=self._analysis.name))

    def heatmap(self, variable: str, *, width: Width = "two") -> Figure:
        """Depth x noise level map of one variable."""
        return matplotlib.draw(heatmap.heatmap(self._analysis.dataset, variable, width=width))
