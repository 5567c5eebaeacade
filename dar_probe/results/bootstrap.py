"""Arrays of samples to numbers: averages, bootstrap weights, shares."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.results.schema import Average

Array = npt.NDArray[np.float64]


@lru_cache(maxsize=8)  # one analysis asks for the same draws a hundred times
def bootstrap(samples: int, resamples: int, seed: int) -> Array:
    """Row 0 counts every sample once, each further row is one bootstrap draw: (1 + R, n).

    The array cannot be written to.
    """
    if resamples < 1:
        raise UsageError(f"resamples must be at least 1, not {resamples}")
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(samples, np.full(samples, 1 / samples), size=resamples)
    weights = np.concatenate([np.ones((1, samples)), drawn.astype(np.float64)])
    weights.flags.writeable = False
    return weights


def pool(values: Array, weights: Array, average: Average) -> Array:
    """Pool (levels, n, *depth) over levels and weighted samples: (R, *depth).

    NaN entries do not count; NaN where nothing counts.
    """
    return pool_totals(*totals(values, average), weights, average)


def totals(values: Array, average: Average) -> tuple[Array, Array]:
    """Sum (levels, n, *depth) over levels, and count what was summed: two (n, *depth)."""
    finite = np.isfinite(values)
    known = np.where(finite, values, 0.0)
    total = (known**2 if average == "mean_square" else known).sum(axis=0)
    return np.asarray(total), np.asarray(finite.sum(axis=0, dtype=np.float64))


def pool_totals(total: Array, count: Array, weights: Array, average: Average) -> Array:
    """Pool what ``totals`` gave over weighted samples (R, n): (R, *depth).

    Sums and counts are linear in the samples, so every resample is one row of a product.
    """
    sums, counts = (weights @ part.reshape(len(part), -1) for part in (total, count))
    found = divide(sums, counts).reshape(len(weights), *total.shape[1:])
    return np.asarray(np.sqrt(found)) if average == "mean_square" else found


def by_level(values: Array, average: Average) -> Array:
    """Pool (levels, n, *depth) over samples only: (levels, *depth)."""
    once = np.ones((1, values.shape[1]))
    return np.asarray(pool(values.swapaxes(0, 1)[None], once, average)[0])


def shares(size: Array) -> Array:
    """Divide by the sum over the last axis; NaN entries do not count and stay NaN."""
    total = np.where(np.isfinite(size), size, 0.0).sum(axis=-1, keepdims=True)
    return divide(size, np.broadcast_to(total, size.shape))


def divide(top: Array, bottom: Array) -> Array:
    """Divide; NaN where the bottom is zero."""
    out = np.full(top.shape, np.nan)
    return np.asarray(np.divide(top, bottom, out=out, where=bottom > 0))


def values_of(array: xr.DataArray) -> Array:
    """Return the values in float64."""
    return np.asarray(array.values, dtype=np.float64)


def coords_of(ds: xr.Dataset, dims: tuple[str, ...]) -> dict[str, xr.DataArray]:
    """Return the coordinates that lie along some of ``dims``."""
    found = {str(key): ds.variables[key].dims for key in ds.coords}  # the arrays are slow to make
    return {key: ds.coords[key] for key, own in found.items() if own and set(own) <= set(dims)}
