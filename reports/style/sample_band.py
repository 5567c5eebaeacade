"""The middle of the samples beside their mean: how much single samples differ from it."""

import numpy as np
import numpy.typing as npt
import xarray as xr

from dar_probe.results import metrics

SHARE = 0.9


def middle(ds: xr.Dataset, name: str) -> npt.NDArray[np.floating]:
    """Return between which values the middle 90 % of the samples lie: (2, depth).

    Each sample's value is pooled over the noise levels; NaN where no sample has one.
    """
    values = metrics.per_sample(ds, name).values
    ends = np.full((2, values.shape[1]), np.nan)
    known = np.isfinite(values).any(axis=0)
    tail = (1 - SHARE) / 2
    ends[:, known] = np.nanquantile(values[:, known], [tail, 1 - tail], axis=0)
    return ends
