"""What interventions did to the loss, beside what gradients predicted. Runs without torch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from dar_probe.results import metrics
from dar_probe.results.metrics import Metric
from dar_probe.results.schema import ABLATION

Array = npt.NDArray[np.float64]
FEWEST = 3  # interventions that can be ranked at all


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well first-order predictions agree with the interventions of one kind.

    Attributes:
        kind: see ``KIND_TEXT``.
        count: how many interventions there were.
        rank: Spearman's correlation of mean true and mean predicted changes over them.
        error: root mean square of (predicted - true) over that of the true changes.
    """

    kind: str
    count: int
    rank: Metric
    error: Metric


KIND_TEXT = {
    "gate": "one source taken from one reader",
    "source": "one source taken from all readers",
    "block": "one block skipped",
    "image_block": "one block skipped for the image alone",
    "text_block": "one block skipped for the text alone",
    "uniform": "one router's weights made equal",
    "frozen": "one router's weights taken from another noise level",
}


def effects(ds: xr.Dataset, *, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Return one row per intervention, the largest true change first.

    Columns: name, kind, true (the loss change, mean over levels and samples), low and high (its
    95 % bootstrap interval over samples), linear (the prediction), error (root mean square of
    prediction minus truth over that of the truth).
    """
    true, linear = ds["gate_ablated"].values, ds["gate_linear"].values
    mean = metrics.resampled(true.mean(0), resamples=resamples, seed=seed)
    low, high = metrics.interval(mean, true.shape[1], 0.95)
    table = pd.DataFrame(
        {
            "name": ds["ablation_name"].values,
            "kind": ds["ablation_kind"].values,
            "true": mean[0],
            "low": low,
            "high": high,
            "linear": linear.mean((0, 1)),
            "error": linearisation_error(true, linear, (0, 1)),
        }
    )
    return table.sort_values("true", key=np.abs, ascending=False, ignore_index=True)


def agreement(ds: xr.Dataset, *, resamples: int = 1000, seed: int = 0) -> list[Agreement]:
    """Return how well predictions and interventions agree, kind by kind, with intervals."""
    kinds = ds["ablation_kind"].values.astype(str)
    true, linear = ds["gate_ablated"].values, ds["gate_linear"].values
    samples = true.shape[1]
    found = []
    for kind in kinds_of(ds):
        own_true, own_linear = true[..., kinds == kind], linear[..., kinds == kind]
        parts = [own_true.mean(0), own_linear.mean(0)]
        parts += [np.square(own_linear - own_true).mean((0, 2))[:, None]]
        parts += [np.square(own_true).mean((0, 2))[:, None]]
        means = [metrics.resampled(part, resamples=resamples, seed=seed) for part in parts]
        ranks = np.array([spearman(t, p) for t, p in zip(*means[:2], strict=True)])
        errors = np.sqrt(means[2] / np.where(means[3] > 0, means[3], np.nan))[:, 0]
        found.append(
            Agreement(
                kind=kind,
                count=int((kinds == kind).sum()),
                rank=_metric("rank_correlation", ranks, samples),
                error=_metric("linearisation_error", errors, samples),
            )
        )
    return found


def _metric(name: str, values: Array, samples: int) -> Metric:
    """Row 0 of ``values`` (1+R,) and its interval."""
    low, high = metrics.interval(values[:, None], samples, 0.95)
    return Metric(
        name=name,
        value=float(values[0]),
        low=float(low[0]),
        high=float(high[0]),
        definition=ABLATION[name].definition,
    )


def kinds_of(ds: xr.Dataset) -> list[str]:
    """Return the kinds of intervention in a dataset, in the order of ``KIND_TEXT``."""
    present = set(ds["ablation_kind"].values.astype(str))
    return [kind for kind in KIND_TEXT if kind in present]


def linearisation_error(true: Array, linear: Array, axis: int | tuple[int, ...]) -> Array:
    """Root mean square of (linear - true) over that of true, over ``axis``; NaN where true is 0."""
    size = np.square(true, dtype=np.float64).mean(axis)
    error = np.square(linear - true, dtype=np.float64).mean(axis)
    return np.asarray(np.sqrt(error / np.where(size > 0, size, np.nan)))


def spearman(a: Array, b: Array) -> float:
    """Spearman's rank correlation of two vectors; NaN for fewer than three or equal values."""
    if len(a) < FEWEST:
        return float("nan")
    return float(pd.Series(a).rank().corr(pd.Series(b).rank()))
