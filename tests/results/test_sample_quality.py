"""Distances between sets of features, against slow references of their own."""

import math

import numpy as np
import pytest

from dar_probe.results import sample_quality

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(60, 5)) @ RNG.normal(size=(5, 5))
DRAWN = RNG.normal(size=(40, 5)) + 0.5


def test_frechet_against_the_product_of_covariances():
    a, b = np.cov(REAL.T), np.cov(DRAWN.T)
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).sum().real
    shift = REAL.mean(0) - DRAWN.mean(0)
    wanted = shift @ shift + np.trace(a) + np.trace(b) - 2 * root
    assert sample_quality.frechet(REAL, DRAWN) == pytest.approx(wanted, rel=1e-10)
    assert sample_quality.frechet(DRAWN, REAL) == pytest.approx(wanted, rel=1e-10)


def test_frechet_of_known_changes():
    assert sample_quality.frechet(REAL, REAL) == pytest.approx(0, abs=1e-6)
    assert sample_quality.frechet(REAL, REAL + [3, 0, 4, 0, 0]) == pytest.approx(25)
    doubled = REAL.mean(0) + 2 * (REAL - REAL.mean(0))  # (2 - 1)^2 tr(A)
    assert sample_quality.frechet(REAL, doubled) == pytest.approx(np.trace(np.cov(REAL.T)))
    flat = np.hstack([REAL, np.zeros((60, 2))])  # features that never fire
    assert sample_quality.frechet(flat, flat + 1) == pytest.approx(7, rel=1e-5)


def test_frechet_needs_a_covariance():
    with pytest.raises(ValueError, match="two samples"):
        sample_quality.frechet(REAL[:1], DRAWN)


def test_kernel_against_loops(monkeypatch):
    def k(x, y):
        return (x @ y / len(x) + 1) ** 3

    def within(x):
        return np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])

    wanted = within(REAL) + within(DRAWN) - 2 * np.mean([k(a, b) for a in REAL for b in DRAWN])
    for rows in (7, 1024):
        monkeypatch.setattr(sample_quality, "ROWS", rows)
        assert sample_quality.kernel(REAL, DRAWN) == pytest.approx(wanted, rel=1e-10)


def test_kernel_is_unbiased():
    rng = np.random.default_rng(1)
    found = [sample_quality.kernel(*rng.normal(size=(2, 25, 4))) for _ in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(len(found))


def test_precision_and_recall_against_loops(monkeypatch):
    def near(points, others):
        radii = [sorted(np.linalg.norm(others - o, axis=1))[3] for o in others]
        return np.mean([
            any(np.linalg.norm(p - o) <= r for o, r in zip(others, radii, strict=True))
            for p in points
        ])  # fmt: skip

    wanted = near(DRAWN, REAL), near(REAL, DRAWN)
    assert 0 < wanted[0] < 1 and 0 < wanted[1] < 1
    for rows in (7, 1024):
        monkeypatch.setattr(sample_quality, "ROWS", rows)
        assert sample_quality.precision_recall(REAL, DRAWN) == pytest.approx(wanted)


def test_precision_falls_where_samples_stray_and_recall_where_they_gather():
    gathered = np.tile(REAL[:5], (8, 1)) + 1e-3 * RNG.normal(size=(40, 5))
    precision, recall = sample_quality.precision_recall(REAL, gathered)
    assert precision == 1 and recall < 0.3
    strayed, _ = sample_quality.precision_recall(REAL, REAL + 100)
    assert strayed == 0


@pytest.mark.parametrize(
    "freedom, wanted", [(1, 12.706), (9, 2.262), (10, 2.2281), (15, 2.1314), (30, 2.0423)]
)
def test_quantiles_of_student(freedom, wanted):
    assert sample_quality.student(freedom) == pytest.approx(wanted, abs=3e-4)


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(2)
    found = [sample_quality.over_seeds(row) for row in rng.normal(size=(4000, 3))]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert covered == pytest.approx(0.95, abs=0.012)
    share = sample_quality.over_seeds([0.99, 0.9], share=True)
    assert share.high == 1 and 0 < share.low < share.value
    one = sample_quality.over_seeds([2.5])
    assert one.value == 2.5 and math.isnan(one.low) and one.seeds == 1


def below(quantile, freedom):
    """Return the share of Student's t below a quantile, by Simpson's rule over its density."""
    x, step = np.linspace(0, quantile, 200_001, retstep=True)
    log = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    density = math.exp(log) / math.sqrt(freedom * math.pi)
    y = density * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    return 0.5 + step / 3 * (y[0] + y[-1] + 4 * y[1::2].sum() + 2 * y[2:-1:2].sum())


@pytest.mark.parametrize("freedom", range(1, 20))
def test_quantiles_of_student_by_their_definition(freedom):
    """Up to nine degrees three decimals, as tables print them; then a series to 3e-4."""
    found = sample_quality.student(freedom)
    near = 5e-4 if freedom <= 9 else 3e-4
    assert below(found - near, freedom) < 0.975 < below(found + near, freedom)
    assert (found == round(found, 3)) == (freedom <= 9)


def test_the_interval_of_two_seeds_by_hand():
    found = sample_quality.over_seeds([1.0, 3.0])
    half = 12.706 * 2**0.5 / 2**0.5  # the deviation is the root of two, over that of two seeds
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))
    turned = -found
    assert (turned.value, turned.low, turned.high, turned.seeds) == (
        -2.0, -found.high, -found.low, 2
    )  # fmt: skip
    nothing = sample_quality.over_seeds([])
    assert math.isnan(nothing.value) and math.isnan(nothing.low) and nothing.seeds == 0
