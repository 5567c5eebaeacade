"""What the measurements mean: pooled numbers with bootstrap intervals over samples."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.results.bootstrap import (
    Array,
    bootstrap,
    by_level,
    coords_of,
    divide,
    pool,
    pool_totals,
    shares,
    totals,
    values_of,
)
from dar_probe.results.intervals import Estimate, student
from dar_probe.results.schema import VARIABLES, Average, Variable
from dar_probe.results.symptoms import SYMPTOMS

DEFINITIONS = {
    **{symptom.name: symptom.definition for symptom in SYMPTOMS.values()},
    "selectivity": "1 - mean over readers with two or more sources of "
    "route_entropy / log(number of sources offered)",
    "selectivity_shift": "total-variation distance between the routes |w| / sum|w| of the lowest "
    "and of the highest noise level, mean over readers with two or more sources",
    "importance_shift": "total-variation distance between the importances of the lowest and of "
    "the highest noise level, mean over readers with two or more sources",
    "gate_conservation": "largest reader's average of |sum of gates| / largest |gate|",
    "read_residual": "largest reader's average of |sum of w v - h| / |h|",
    "write_lost": "largest sublayer's average share of a write lost to rounding",
}

LOSS_TEXT = "mean loss over samples and noise levels"


@dataclass(frozen=True, kw_only=True, repr=False)
class Metric(Estimate):
    """One number of an analysis, with its bootstrap interval over samples.

    Attributes:
        name: a key of ``DEFINITIONS``, or "loss".
        definition: the formula in words.
    """

    name: str
    definition: str

    def __repr__(self) -> str:
        """Return "<inflation 1.892 [1.879, 1.907]>"; the attributes hold every digit."""
        return f"<{self.name} {self.value:.4g} [{self.low:.4g}, {self.high:.4g}]>"


def compute(
    ds: xr.Dataset, *, resamples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> dict[str, Metric]:
    """Reduce an analysis to its nine numbers, in the order of ``DEFINITIONS``.

    Raises UsageError where ``resamples`` is below 1 or ``confidence`` outside (0, 1).
    """
    found = draws(ds, resamples=resamples, seed=seed)
    return _metrics(found, ds.sizes["sample"], confidence)


def means(
    ds: xr.Dataset, *, resamples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> dict[str, Metric]:
    """Return the first four numbers of ``compute`` alone: the others take 30 times as long."""
    weights = bootstrap(ds.sizes["sample"], resamples, seed)
    return _metrics(_means(ds, weights), ds.sizes["sample"], confidence)


def draws(ds: xr.Dataset, *, resamples: int = 1000, seed: int = 0) -> dict[str, Array]:
    """Evaluate every metric on all samples (row 0) and on each bootstrap resample: (1 + R,).

    Whole samples are resampled, the same draw at every noise level: the levels of one sample
    share its noise and are not independent.
    """
    weights = bootstrap(ds.sizes["sample"], resamples, seed)
    bars = ("gate_conservation", "read_residual", "write_lost")
    return {
        **_means(ds, weights),
        "selectivity_shift": np.full(len(weights), np.nan)
        if no_choice(ds)
        else _shift(ds, "selectivity_shift", weights, weights),
        "importance_shift": _shift(ds, "importance_shift", weights, weights),
        **{name: np.asarray(_measured(_pooled(ds, name, weights)).max(axis=1)) for name in bars},
    }


def interval(values: Array, samples: int, confidence: float = 0.95) -> tuple[Array, Array]:
    """Expanded percentile interval of rows 1.. for each column; NaN with fewer than two samples.

    Percentiles of a bootstrap over n samples are too narrow by sqrt((n-1)/n) and by the normal
    in place of Student's t; the tail is moved out accordingly (Hesterberg 2015, "What Teachers
    Should Know About the Bootstrap"). The interval is widened to hold the value, which a
    resampled maximum or distance can leave, because noise only ever enlarges those.
    """
    if not 0 < confidence < 1:
        raise UsageError(f"confidence must lie between 0 and 1, not {confidence}")
    flat = values.reshape(len(values), -1)
    bounds = np.full((2, flat.shape[1]), np.nan)
    usable = np.isfinite(flat[0]) & np.isfinite(flat[1:]).any(axis=0)
    if samples > 1 and usable.any():
        free = samples - 1
        tail = NormalDist().cdf(-((samples / free) ** 0.5) * student(free, confidence))
        drawn = flat[1:, usable]
        quantile = np.nanquantile if np.isnan(drawn).any() else np.quantile  # 10x as fast
        low, high = quantile(drawn, [tail, 1 - tail], axis=0)
        bounds[:, usable] = np.minimum(low, flat[0, usable]), np.maximum(high, flat[0, usable])
    return bounds[0].reshape(values.shape[1:]), bounds[1].reshape(values.shape[1:])


def resampled(values: Array, *, resamples: int, seed: int) -> Array:
    """Mean over samples (n, *depth) in row 0, and over bootstrap draws in the rest: (1+R, ...)."""
    weights = bootstrap(len(values), resamples, seed)
    means = weights @ values.reshape(len(values), -1) / len(values)
    return np.asarray(means.reshape(len(weights), *values.shape[1:]))


def chance(ds: xr.Dataset, name: str, *, resamples: int = 1000, seed: int = 0) -> float:
    """Probability that chance alone gives one of the two shifts; NaN where not measurable.

    Few noisy samples shift by themselves, so the interval of a shift never reaches zero. Here
    the lowest and the highest noise level of each sample are swapped by the toss of a coin (a
    paired permutation test); 1 with one sample, and never below 2^(1-n) with n.
    """
    once = np.ones((1, ds.sizes["sample"]))
    coin = np.random.default_rng(seed).integers(0, 2, size=(resamples, once.size))
    kept = coin.astype(np.float64)
    tossed = _shift(ds, name, np.hstack([kept, 1 - kept]), np.hstack([1 - kept, kept]), swap=True)
    value = float(_shift(ds, name, once, once)[0])
    as_large = tossed >= value * (1 - 1e-9)  # sums in another order round differently
    return float((1 + as_large.sum()) / (1 + resamples)) if value == value else value


def mean_loss(ds: xr.Dataset) -> Metric:
    """Return the mean loss over samples and noise levels, with its bootstrap interval."""
    found = profile(ds, "loss")
    value, low, high = (float(found[key]) for key in ("value", "low", "high"))
    return Metric(name="loss", value=value, low=low, high=high, definition=LOSS_TEXT)


def profile_draws(ds: xr.Dataset, name: str, *, resamples: int = 1000, seed: int = 0) -> Array:
    """Pool one variable as ``profile`` does, on all samples (row 0) and on each bootstrap resample.

    Returns (1 + R, *depth). Datasets of the same samples are resampled alike, row by row.
    """
    spec, weights = _spec(name), bootstrap(ds.sizes["sample"], resamples, seed)
    if name == "decodability":
        return decodability(values_of(ds["decoded_level"]), ds["noise_level"].values, weights)
    return pool(values_of(ds[name]), weights, spec.average)


def profile(
    ds: xr.Dataset, name: str, *, resamples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> xr.Dataset:
    """Pool one variable over samples and noise levels; ``value``, ``low``, ``high`` over depth.

    Pooling is the mean, or sqrt(mean of squares) where the schema says ``mean_square``;
    ``decodability`` is the R2 of ``decoded_level``, its resamples without a new fit. Raises
    UsageError for an unknown variable and for settings that ``compute`` refuses.
    """
    spec = _spec(name)
    if name == "decodability":
        known = np.isfinite(ds["decoded_level"].values).any(axis=(0, 2))
        ds = ds.isel(sample=known | ~known.any())
    pooled = profile_draws(ds, name, resamples=resamples, seed=seed)
    low, high = interval(pooled, ds.sizes["sample"], confidence)
    parts = {"value": pooled[0], "low": low, "high": high}
    return xr.Dataset(
        {key: (spec.dims, part, ds[name].attrs) for key, part in parts.items()},
        coords=coords_of(ds, spec.dims),
        attrs={"variable": name, "confidence": confidence},
    )


def per_sample(ds: xr.Dataset, name: str) -> xr.DataArray:
    """Pool one variable over noise levels only, as ``profile`` does: (sample, depth dim).

    Raises UsageError for a variable that is unknown or has no noise_level axis.
    """
    if not _spec(name).grid:
        raise UsageError(f"{name!r} is one number for all noise levels")
    dims = ("sample", *_spec(name).dims)
    pooled = _pooled(ds, name, np.eye(ds.sizes["sample"]))
    return xr.DataArray(
        pooled, dims=dims, coords=coords_of(ds, dims), name=name, attrs=ds[name].attrs
    )


def over_noise(ds: xr.Dataset, name: str) -> xr.DataArray:
    """Pool one variable over samples only: (depth dim, noise_level).

    Raises UsageError for a variable that is unknown or has no noise_level axis.
    """
    if not _spec(name).grid:
        raise UsageError(f"{name!r} is one number for all noise levels")
    dims = (*_spec(name).dims, "noise_level")
    pooled = np.moveaxis(by_level(values_of(ds[name]), _spec(name).average), 0, -1)
    attrs = ds[name].attrs
    return xr.DataArray(pooled, dims=dims, coords=coords_of(ds, dims), name=name, attrs=attrs)


def level_intervals(ds: xr.Dataset, name: str) -> tuple[Array, Array]:
    """Return the ends of the 95 % interval of every number of ``over_noise``: two (depth, level).

    Equal to what ``profile`` gives for each noise level alone.
    """
    samples, spec, ends = ds.sizes["sample"], _spec(name), []
    weights = bootstrap(samples, 1000, 0)
    for values in values_of(ds[name]):
        ends.append(interval(pool(values[None], weights, spec.average), samples))
    low, high = (np.stack(column, axis=-1) for column in zip(*ends, strict=True))
    return low, high


def decodability(decoded: Array, levels: Array, weights: Array | None = None) -> Array:
    """R2 with which the noise level is decoded, see the schema: (W, R), NaN where nothing was.

    Args:
        decoded: ``decoded_level`` (levels, n, R); NaN entries do not count.
        levels: the noise levels (levels,).
        weights: how often each sample counts (W, n); left out, once: (1, n).
    """
    level = np.asarray(levels, dtype=np.float64)[:, None, None]
    error = np.square(np.asarray(decoded, dtype=np.float64) - level)
    known = np.isfinite(error)
    total = np.where(known, np.square(level - level.mean()), 0.0).sum(axis=0)
    weights = np.ones((1, len(total))) if weights is None else weights
    return 1 - divide(weights @ np.where(known, error, 0.0).sum(axis=0), weights @ total)


def staged(ds: xr.Dataset) -> bool:
    """Whether a new stream begins on the way: somewhere two states have no cosine between them."""
    known = np.asarray(np.isfinite(ds["cosine"].values).any(axis=(0, 1)))
    there = np.asarray((ds["rms"].values > 0).all(axis=(0, 1)))
    return bool((there[:-1] & there[1:] & ~known[1:]).any())


def no_choice(ds: xr.Dataset) -> str:
    """Say why the routes hold no choice, so that nothing can be selective; empty where they do."""
    route = ds["route"].values
    known = route[np.isfinite(route)]
    if not known.size:
        return "this routing has no scalar routes"
    return "" if (known != 1).any() else "there is no router, all sources are added with weight 1"


def _metrics(draws: dict[str, Array], samples: int, confidence: float) -> dict[str, Metric]:
    """Turn draws, the value in row 0, into values with intervals."""
    found = {}
    for name, values in draws.items():
        low, high = (float(bound) for bound in interval(values, samples, confidence))
        found[name] = Metric(
            name=name, value=float(values[0]), low=low, high=high, definition=DEFINITIONS[name]
        )
    return found


def early_blocks(block: Array) -> Array:
    """Return which blocks 0..B the gradient decay takes for the early ones: 1..min(5, B/2).

    In a shallow model five blocks would reach into the deep half, and the ratio be bound to it.
    """
    return np.asarray((block >= 1) & (block <= min(5, block.max() // 2)))


def _means(ds: xr.Dataset, weights: Array) -> dict[str, Array]:
    block = ds["block"].values
    deep = block > block.max() / 2
    rms, grad = (_pooled(ds, name, weights) for name in ("rms", "grad_rms"))
    early = _measured(grad[:, early_blocks(block)]).mean(axis=1)
    offered = np.isfinite(ds["route"].values).any(axis=(0, 1)).sum(axis=1)
    entropy = _pooled(ds, "route_entropy", weights)[:, offered >= 2]
    spread = _measured(entropy / np.log(offered[offered >= 2])).mean(axis=1)
    growth = divide(rms[:, block == block.max()], rms[:, block == min(1, block.max())])[:, 0]
    decay = divide(early, np.median(_measured(grad[:, deep]), axis=1))
    # One block has no growth over depth; nor do states of different streams compare.
    comparable = block.max() >= 2 and not staged(ds)
    return {
        "inflation": np.where(comparable, growth, np.nan),
        "gradient_decay": np.where(comparable, decay, np.nan),
        "redundancy": np.asarray(_measured(_pooled(ds, "cosine", weights)[:, deep]).mean(axis=1)),
        # float32 rounds log n to either side
        "selectivity": np.where(bool(no_choice(ds)), np.nan, np.maximum(1 - spread, 0.0)),
    }


def _shift(ds: xr.Dataset, name: str, low: Array, high: Array, *, swap: bool = False) -> Array:
    """Total variation between the lowest and the highest noise level under two weightings: (R,).

    Weights are (R, n), one set for each end; with ``swap`` each end draws from both levels'
    samples, the lowest level first, and weights are (R, 2 n).
    """
    if ds.sizes["noise_level"] < 2:
        return np.full(len(low), np.nan)
    routes = name == "selectivity_shift"
    ends = values_of(ds["route" if routes else "gate"][[0, -1]])
    ends = ends[:, :, np.isfinite(ends).any(axis=1).all(axis=0).sum(axis=1) >= 2]
    if routes:
        ends = shares(np.abs(ends))
    if swap:
        ends = np.broadcast_to(np.concatenate(ends), (2, 2 * ends.shape[1], *ends.shape[2:]))
    average: Average = "mean" if routes else "mean_square"
    first, last = totals(ends[:1], average), totals(ends[1:], average)
    parts = []
    for start in range(0, len(low), 128):  # a few resamples at once: bounds the memory
        rows = slice(start, start + 128)
        pair = [
            pool_totals(*first, low[rows], average),
            pool_totals(*last, high[rows], average),
        ]
        gap = np.abs(np.subtract(*pair) if routes else np.subtract(*map(shares, pair)))
        parts.append(np.where(np.isfinite(gap).any(axis=2), np.nansum(gap, axis=2) / 2, np.nan))
    return np.asarray(_measured(np.concatenate(parts)).mean(axis=1))


def _pooled(ds: xr.Dataset, name: str, weights: Array) -> Array:
    return pool(values_of(ds[name]), weights, _spec(name).average)


def _measured(values: Array) -> Array:
    """Keep the columns whose value (row 0) is known; one NaN column where none is."""
    kept = values[:, np.isfinite(values[0])]
    return kept if kept.shape[1] else np.full((len(values), 1), np.nan)


def _spec(name: str) -> Variable:
    if name not in VARIABLES:
        raise UsageError(f"no variable {name!r}", hint=f"one of {', '.join(VARIABLES)}")
    return VARIABLES[name]
