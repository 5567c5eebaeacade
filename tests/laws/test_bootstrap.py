"""Do the intervals cover, and does chance keep its word? Monte Carlo, seeds fixed."""

import numpy as np
import pytest

from dar_probe.results import bootstrap, metrics
from tests.helpers import synthetic

REPEATS = 2000


def coverage(values: np.ndarray, truth: float, average: str, confidence: float = 0.95) -> float:
    """Share of REPEATS datasets (levels, n, REPEATS) whose interval holds the truth."""
    n = values.shape[1]
    weights = bootstrap.bootstrap(n, 1000, seed=0)
    low, high = metrics.interval(bootstrap.pool(values, weights, average), n, confidence)
    return float(np.mean((low <= truth) & (truth <= high)))


@pytest.mark.parametrize("samples", [8, 16, 64])
def test_the_interval_of_a_mean_covers(samples: int) -> None:
    x = np.random.default_rng(1).normal(3.0, 1.0, size=(1, samples, REPEATS))
    assert 0.93 <= coverage(x, 3.0, "mean") <= 0.97


@pytest.mark.parametrize("samples", [8, 64])
def test_the_interval_of_an_rms_covers(samples: int) -> None:
    """RMS of states scatter by some per cent over samples; here by 10 %."""
    x = np.random.default_rng(2).normal(1.0, 0.1, size=(1, samples, REPEATS))
    assert 0.93 <= coverage(x, 1.01**0.5, "mean_square") <= 0.97


def test_levels_of_one_sample_are_not_taken_for_independent_samples() -> None:
    """Ten levels that repeat the sample's own noise must not make the interval narrower."""
    x = np.random.default_rng(3).normal(0.0, 1.0, size=(1, 16, REPEATS))
    assert 0.93 <= coverage(np.repeat(x, 10, axis=0), 0.0, "mean") <= 0.97


def test_plain_percentiles_would_not_cover_with_eight_samples() -> None:
    """Why the tail is moved out: without that the promise of 95 % is broken."""
    x = np.random.default_rng(1).normal(3.0, 1.0, size=(1, 8, REPEATS))
    pooled = bootstrap.pool(x, bootstrap.bootstrap(8, 1000, seed=0), "mean")
    low, high = np.quantile(pooled[1:], [0.025, 0.975], axis=0)
    assert np.mean((low <= 3.0) & (high >= 3.0)) < 0.92


def test_the_interval_holds_the_value() -> None:
    """A distance or a maximum lies below most of its resamples: noise only enlarges it."""
    column = np.concatenate([[1.0], np.linspace(2, 3, 1000)])
    low, high = metrics.interval(np.stack([column, -column], axis=1), samples=1000)
    assert low[0] == 1 and high[1] == -1
    assert high[0] == pytest.approx(2.975, abs=1e-3)


def test_the_confidence_asked_for_is_the_confidence_given() -> None:
    x = np.random.default_rng(4).normal(0.0, 1.0, size=(1, 32, REPEATS))
    assert 0.78 <= coverage(x, 0.0, "mean", confidence=0.8) <= 0.82


def test_metrics_of_whole_analyses_cover() -> None:
    """End to end, true values known from the plan; 160 analyses of 12 samples."""
    ds = synthetic.dataset(blocks=2, samples=12, levels=2, spread=0.0)
    plan = {"inflation": 5.0, "gradient_decay": 4.0, "redundancy": 0.8}
    held = dict.fromkeys(plan, 0)
    for seed in range(160):
        noise = np.random.default_rng(seed).normal(0, 0.1, size=(3, 1, 12, 3))
        ds["cosine"].values[:] = 0.8 + noise[0]
        ds["rms"].values[:] = np.array([1, 1, 5]) * (1 + noise[1])
        ds["grad_rms"].values[:] = np.array([4, 4, 1]) * (1 + noise[2])
        got = metrics.compute(ds, resamples=300, seed=seed)
        for name, truth in plan.items():
            held[name] += got[name].low <= truth <= got[name].high
    for name, count in held.items():
        assert 0.92 <= count / 160 <= 0.98, name


def test_a_model_against_itself_differs_by_exactly_nothing() -> None:
    ds = synthetic.dataset(routing="dar")
    for a, b in zip(metrics.draws(ds).values(), metrics.draws(ds).values(), strict=True):
        np.testing.assert_array_equal(a - b, 0 * a)


def test_the_paired_difference_is_narrower_than_the_unpaired() -> None:
    """The same samples in two models: draws of one seed pair them."""
    shared = np.random.default_rng(5).normal(0, 0.03, size=(5, 16, 7))
    pair = []
    for own, level in ((6, 0.80), (7, 0.81)):
        ds = synthetic.dataset(samples=16)
        ds["cosine"].values[:] = level + shared
        ds["cosine"].values[:] += np.random.default_rng(own).normal(0, 0.003, size=shared.shape)
        pair.append(ds)
    first, second = (metrics.draws(ds, seed=0)["redundancy"] for ds in pair)
    other = metrics.draws(pair[1], seed=1)["redundancy"]
    paired, unpaired = (np.diff(metrics.interval(x, 16)) for x in (second - first, other - first))
    assert paired[0] < 0.5 * unpaired[0]


def gates_without_shift(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Both levels share half of a sample's noise, as real levels do."""
    own = rng.normal(size=(2, samples, 7, 7))
    return 0.5 * rng.normal(size=(1, samples, 7, 7)) + 0.9 * own


def test_chance_raises_few_false_alarms() -> None:
    ds = synthetic.dataset(blocks=3, samples=8, levels=2)
    offered = np.isfinite(ds["gate"].values)
    rng = np.random.default_rng(8)
    alarms = 0
    for repeat in range(250):
        ds["gate"].values[:] = np.where(offered, gates_without_shift(rng, 8), np.nan)
        alarms += metrics.chance(ds, "importance_shift", resamples=200, seed=repeat) < 0.05
    assert 0.02 <= alarms / 250 <= 0.08


def test_chance_sees_a_planted_shift_and_the_interval_alone_would_lie() -> None:
    ds = synthetic.dataset(blocks=3, samples=12, levels=2)
    offered = np.isfinite(ds["gate"].values)
    rng = np.random.default_rng(9)
    ds["gate"].values[:] = np.where(offered, gates_without_shift(rng, 12), np.nan)
    still = metrics.compute(ds)["importance_shift"]
    assert still.low > 0.02, "noise alone keeps the interval away from zero"
    assert metrics.chance(ds, "importance_shift") > 0.05
    ds["gate"].values[1] *= np.linspace(0.3, 3, 7)
    assert metrics.chance(ds, "importance_shift") < 0.01


def test_chance_is_never_zero() -> None:
    ds = synthetic.dataset(routing="dar", samples=40, levels=2, spread=0.01)
    assert metrics.chance(ds, "selectivity_shift", resamples=99) == 1 / 100


def test_chance_of_nothing() -> None:
    assert metrics.chance(synthetic.dataset(), "selectivity_shift") == 1
    assert metrics.chance(synthetic.dataset(samples=1), "importance_shift") == 1
    assert np.isnan(metrics.chance(synthetic.dataset(levels=1), "importance_shift"))
