"""Which sources matter for which reader, and whether the sign of a gate can be told from chance."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from dar_probe.results.bootstrap import Array, by_level, coords_of, shares, values_of
from dar_probe.results.schema import Average


def importance(ds: xr.Dataset) -> xr.DataArray:
    """Counterfactual importance of every source for every reader: (noise_level, reader, source).

    sqrt(mean over samples of gate^2), divided by its sum over the sources of that reader and
    level. NaN where a pair is not offered, and in rows where every gate is zero.
    """
    dims = ("noise_level", "reader", "source")
    found = shares(by_level(values_of(ds["gate"]), "mean_square"))
    attrs = {"units": "1", "long_name": "counterfactual importance"}
    return xr.DataArray(
        found, dims=dims, coords=coords_of(ds, dims), name="importance", attrs=attrs
    )


def block_importance(ds: xr.Dataset) -> xr.DataArray:
    """Importance on the axes of arXiv 2605.20708, figure 3: (noise_level, reader, source_block).

    Readers are the first reader of each block and the head. The gates of one block's sublayers
    are summed per sample before they are squared: that sum is the gate of the block's output.
    """
    return _by_block(ds, "gate", "mean_square", "counterfactual importance of a block")


def block_routes(ds: xr.Dataset) -> xr.DataArray:
    """Routes on the axes of ``block_importance``: summed within a block, averaged over samples."""
    return _by_block(ds, "route", "mean", "route from a block")


def below_null(
    ds: xr.Dataset, *, flips: int = 1000, seed: int = 0, level: float = 0.95
) -> xr.DataArray:
    """Mark gates without a consistent sign over samples: bool (noise_level, reader, source).

    Importance squares the gates and cannot see their signs. A cell is marked where |mean over
    samples of gate| is smaller than the ``level`` quantile of |mean of e gate| over ``flips``
    random signs e = +-1 per sample, the same for all cells: the test by sign flips (Fisher 1935,
    "The Design of Experiments", section 21). Where gates are symmetric about zero, a share
    ``level`` of the cells is marked. Pairs that are not offered are not marked, and nothing is
    where even gates of one sign could not pass, see ``signs_can_tell``.
    """
    dims = ("noise_level", "reader", "source")
    return xr.DataArray(
        _below_null(ds["gate"].values, flips, seed, level),
        dims=dims,
        coords=coords_of(ds, dims),
        name="below_null",
        attrs={"long_name": "gate without a consistent sign over samples"},
    )


def block_below_null(
    ds: xr.Dataset, *, flips: int = 1000, seed: int = 0, level: float = 0.95
) -> xr.DataArray:
    """Mark the same on the axes of ``block_importance``, the gates of a block summed first."""
    few, sums = _block_sums(ds, "gate")
    return xr.DataArray(
        _below_null(sums, flips, seed, level),
        dims=("noise_level", "reader", "source_block"),
        coords=_block_coords(ds, few),
        name="block_below_null",
        attrs={"long_name": "gate of a block without a consistent sign over samples"},
    )


def signs_can_tell(samples: int, level: float = 0.95) -> bool:
    """Whether sign flips can tell anything: 2^(1-n) of them leave |sum| as large as it can be."""
    return 2.0 ** (1 - samples) <= 1 - level


def _below_null(
    gates: npt.NDArray[np.floating], flips: int, seed: int, level: float
) -> npt.NDArray[np.bool_]:
    """Compare |sum over samples| of gates (levels, n, *pairs) with its quantile under flips."""
    levels, samples, *pairs = gates.shape
    below = np.zeros((levels, *pairs), dtype=np.bool_)
    if not signs_can_tell(samples, level):
        return below
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(samples, flips))
    for at, gate in enumerate(gates):  # one level at a time: bounds the memory
        flat = gate.reshape(samples, -1).T
        offered = np.isfinite(flat).any(axis=1)  # about half of all pairs
        known = np.nan_to_num(flat[offered].astype(np.float64))
        null = np.quantile(np.abs(known @ signs), level, axis=1)
        size = np.abs(known.sum(axis=1))
        below[at].reshape(-1)[offered] = size < null * (1 - 1e-9)  # equal sums round differently
    return below


def _by_block(ds: xr.Dataset, name: str, average: Average, long_name: str) -> xr.DataArray:
    """Sum (reader, source) pairs within source blocks, then pool; gates become shares."""
    few, sums = _block_sums(ds, name)
    pooled = by_level(sums, average)
    return xr.DataArray(
        shares(pooled) if name == "gate" else pooled,
        dims=("noise_level", "reader", "source_block"),
        coords=_block_coords(ds, few),
        name="block_importance" if name == "gate" else "block_routes",
        attrs={"units": "1", "long_name": long_name},
    )


def _block_sums(ds: xr.Dataset, name: str) -> tuple[xr.Dataset, Array]:
    """Keep the first reader of each block and the head; sum its pairs within source blocks.

    Returns the dataset of those readers, and (levels, n, readers, blocks).
    """
    first = np.sort(np.unique(ds["reader_block"].values, return_index=True)[1])
    few = ds.isel(reader=first)
    values = values_of(few[name])
    finite = np.isfinite(values)
    member = ds["source_block"].values[:, None] == ds["block"].values[None, :]
    inside = member.astype(np.float64)
    sums = np.where(finite, values, 0.0) @ inside
    counts = finite.astype(np.float64) @ inside  # of bools it would take ten times as long
    return few, np.where(counts > 0, sums, np.nan)


def _block_coords(ds: xr.Dataset, few: xr.Dataset) -> dict[str, Any]:
    return {**coords_of(few, ("noise_level", "reader")), "source_block": ds["block"].values}
