"""What xarray's objects can do by themselves: ``ds.dar.plot.dilution()``, ``ds["rms"].dar.plot()``.

Importing this module registers the accessors; so does whatever ``dar_probe`` itself offers.
"""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import xarray as xr

from dar_probe.analysis import Analysis
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.results.schema import VARIABLES

if TYPE_CHECKING:
    import pandas as pd

    from dar_probe.reports.draw.matplotlib import Figure
    from dar_probe.reports.plots import Plots
    from dar_probe.results.dataframe import Per
    from dar_probe.results.metrics import Metric
    from dar_probe.results.verdict import Verdict


@xr.register_dataset_accessor("dar")  # type: ignore[no-untyped-call]
class DatasetAccessor:
    """``ds.dar``: the analysis that a dataset is, also after levels or samples were selected.

    Select with lists or slices, so that every dim stays: ``ds.isel(noise_level=[0]).dar.verdict``.
    Numbers are those of the dataset when they were first asked for.

    Raises:
        UsageError: by every attribute, where the dataset is no whole analysis.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    @cached_property
    def analysis(self) -> Analysis:
        """The ``Analysis`` of the dataset, with the default thresholds."""
        try:
            return Analysis(self._ds)
        except CheckpointError as error:
            raise UsageError(
                f"this dataset is no whole analysis: {error}",
                hint="keep every variable and every dim: ds.isel(noise_level=[0]) does, "
                "ds.isel(noise_level=0) does not",
            ) from None

    @property
    def metrics(self) -> "dict[str, Metric]":
        """Inflation, gradient decay, redundancy and the rest, see ``Analysis.metrics``."""
        return self.analysis.metrics

    @property
    def verdict(self) -> "Verdict":
        """The judgement by the default thresholds."""
        return self.analysis.verdict

    @property
    def manifest(self) -> dict[str, Any]:
        """Provenance, see ``Analysis.manifest``."""
        return self.analysis.manifest

    @property
    def plot(self) -> "Plots":
        """The figures, see ``Plots``."""
        return self.analysis.plot

    def to_dataframe(self, *names: str, per: "Per" = "sample") -> "pd.DataFrame":
        """Return variables as a tidy frame: one row for every cell of their dims.

        Columns, as far as the variables have the dim: ``step``, ``stream``, ``noise_level`` with
        ``timestep`` and ``log_snr``, ``sample``, then every depth dim with the names, kinds and
        blocks of its positions (``reader_name``, ``source_name``), then one for each variable.

        Args:
            names: variables of the same dims; left out, those over blocks.
            per: "sample" gives the numbers as measured; "level" pools them over samples, "pooled"
                over noise levels too, with ``<name>_low`` and ``<name>_high`` beside them, their
                95 % bootstrap intervals.

        Example:
            >>> frame = ds.sel(noise_level=[0.5], method="nearest").dar.to_dataframe("gate")
            >>> frame[frame.reader_name == "block 3 attention"]

        Raises:
            UsageError: a variable that is not there, or variables of different dims.
        """
        from dar_probe.results import dataframe

        assert self.analysis  # or it says what is missing
        return dataframe.to_dataframe(self._ds, *names, per=per)

    def __repr__(self) -> str:
        return "<ds.dar: analysis, metrics, verdict, manifest, plot, to_dataframe>"


@xr.register_dataarray_accessor("dar")  # type: ignore[no-untyped-call]
class DataArrayAccessor:
    """``ds["rms"].dar``: what one variable over blocks or readers can show by itself."""

    def __init__(self, array: xr.DataArray) -> None:
        self._array = array

    def plot(self) -> "Figure":
        """Return the depth x noise level map, as ``ds.dar.plot.heatmap`` does.

        Raises:
            UsageError: the array is none of the variables that have such a map, or lacks a dim.
        """
        from dar_probe.reports.draw import matplotlib
        from dar_probe.reports.figures import heatmap
        from dar_probe.reports.style import palette

        name = str(self._array.name)
        if palette.depth_dim(name) == "sublayer":
            raise UsageError(
                f"{name!r} alone does not know the names of its sublayers",
                hint=f"ds.dar.plot.heatmap({name!r})",
            )
        if self._array.dims != VARIABLES[name].all_dims:
            raise UsageError(
                f"a map of {name!r} takes the dims {', '.join(VARIABLES[name].all_dims)}, not "
                f"{', '.join(map(str, self._array.dims)) or 'none'}",
                hint="select with lists or slices, so that every dim stays",
            )
        return matplotlib.draw(heatmap.heatmap(self._array.to_dataset(), name))
