import math
import tracemalloc

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from dar_probe.errors import UsageError
from dar_probe.results import bootstrap, importance, metrics
from dar_probe.results.schema import VARIABLES
from tests.helpers import synthetic

ORDER = [
    "inflation",
    "gradient_decay",
    "redundancy",
    "selectivity",
    "selectivity_shift",
    "importance_shift",
    "gate_conservation",
    "read_residual",
    "write_lost",
]


def values(ds: xr.Dataset) -> dict[str, float]:
    return {name: m.value for name, m in metrics.compute(ds, resamples=1).items()}


def planted(**options) -> xr.Dataset:
    return synthetic.dataset(blocks=12, spread=0.0, **options)


# --- an independent, slow reference: plain loops over plain numbers -----------------------------


def slow_mean(numbers) -> float:
    known = [float(x) for x in numbers if x == x]
    return sum(known) / len(known) if known else float("nan")


def slow_rms(numbers) -> float:
    return slow_mean([float(x) ** 2 for x in numbers]) ** 0.5


def slow_shift(ds: xr.Dataset, share) -> float:
    """``share(level, reader)`` gives {source: share}."""
    distances = []
    for reader in range(ds.sizes["reader"]):
        low, high = share(0, reader), share(ds.sizes["noise_level"] - 1, reader)
        if len(low) >= 2:
            distances.append(sum(abs(low[i] - high[i]) for i in low) / 2)
    return slow_mean(distances)


def slow(ds: xr.Dataset) -> dict[str, float]:
    v = {name: ds[name].values for name in VARIABLES}
    blocks = ds.sizes["block"] - 1
    deep = [k for k in range(1, blocks + 1) if k > blocks / 2]
    rms = [slow_rms(v["rms"][:, :, k].ravel()) for k in range(blocks + 1)]
    grad = [slow_rms(v["grad_rms"][:, :, k].ravel()) for k in range(blocks + 1)]
    early = [grad[k] for k in range(1, 6) if k <= blocks / 2]
    middle = sorted(grad[k] for k in deep)
    half = len(middle) // 2
    median = middle[half] if len(middle) % 2 else (middle[half - 1] + middle[half]) / 2
    offered = np.isfinite(v["route"]).any((0, 1))
    used = [
        slow_mean(v["route_entropy"][:, :, r].ravel()) / np.log(offered[r].sum())
        for r in range(len(offered))
        if offered[r].sum() >= 2
    ]

    def routes(level: int, reader: int) -> dict[int, float]:
        rows = np.abs(v["route"][level, :, reader])
        sources = np.flatnonzero(offered[reader])
        return {i: slow_mean([row[i] / sum(row[sources]) for row in rows]) for i in sources}

    def importances(level: int, reader: int) -> dict[int, float]:
        sources = np.flatnonzero(offered[reader])
        size = {i: slow_rms(v["gate"][level, :, reader, i]) for i in sources}
        total = sum(size.values())
        return {i: size[i] / total for i in sources} if total else {}

    def worst(name: str) -> float:
        averages = [slow_mean(v[name][:, :, r].ravel()) for r in range(v[name].shape[2])]
        return max(a for a in averages if a == a)

    chosen = any(w == w and w != 1 for w in v["route"].ravel())
    return {
        "inflation": rms[blocks] / rms[1],
        "gradient_decay": slow_mean(early) / median,
        "redundancy": slow_mean(slow_mean(v["cosine"][:, :, k].ravel()) for k in deep),
        "selectivity": 1 - slow_mean(used) if chosen else math.nan,
        "selectivity_shift": slow_shift(ds, routes) if chosen else math.nan,
        "importance_shift": slow_shift(ds, importances),
        "gate_conservation": worst("gate_conservation"),
        "read_residual": worst("read_residual"),
        "write_lost": worst("write_lost"),
    }


@pytest.mark.parametrize(
    "options",
    [
        {"blocks": 2, "samples": 2, "levels": 2},
        {"blocks": 3, "samples": 5, "levels": 3, "routing": "dar", "spread": 0.6},
        {"blocks": 6, "samples": 4, "levels": 2, "routing": "dar", "chunk_size": 4},
        {"blocks": 11, "samples": 3, "levels": 2, "spread": 0.9},
    ],
)
def test_every_metric_equals_the_slow_reference(options) -> None:
    ds = synthetic.dataset(**options)
    expected = slow(ds)
    assert list(metrics.compute(ds, resamples=1)) == ORDER
    for name, value in values(ds).items():
        assert value == pytest.approx(expected[name], rel=1e-9, abs=1e-7, nan_ok=True), name


@pytest.mark.parametrize("routing", ["residual", "dar"])
def test_missing_entries_do_not_count(routing) -> None:
    ds = synthetic.dataset(blocks=4, samples=5, levels=3, spread=0.5, routing=routing)
    for name in ("rms", "grad_rms", "cosine", "route_entropy", "write_lost"):
        ds[name].values[1, 2, 1:] = np.nan
    ds["gate"].values[0, 3] = np.nan
    ds["gate_conservation"].values[:, :, 2] = np.nan
    expected = slow(ds)
    for name, value in values(ds).items():
        assert value == pytest.approx(expected[name], rel=1e-9, abs=1e-7, nan_ok=True), name


def test_each_bootstrap_draw_equals_the_metric_of_the_resampled_dataset() -> None:
    ds = synthetic.dataset(blocks=4, samples=5, levels=3, routing="dar", spread=0.5)
    draws = metrics.draws(ds, resamples=7, seed=3)
    counts = bootstrap.bootstrap(5, 7, 3)
    assert (counts.sum(axis=1) == 5).all() and (counts[0] == 1).all()
    for row, count in enumerate(counts):
        again = ds.isel(sample=np.repeat(np.arange(5), count.astype(int)))
        for name, value in slow(again).items():
            assert draws[name][row] == pytest.approx(value, rel=1e-9, abs=1e-7), (name, row)


# --- planted models -----------------------------------------------------------------------------


def test_planted_symptoms_are_recovered() -> None:
    got = values(planted(inflation=7.0, decay=20.0, cosine=0.93))
    assert got["inflation"] == pytest.approx(7.0, rel=1e-6)
    assert got["gradient_decay"] == pytest.approx(20.0, rel=1e-6)
    assert got["redundancy"] == pytest.approx(0.93, rel=1e-6)


def test_pooled_rms_is_the_root_of_the_mean_square() -> None:
    ds = planted(samples=2, levels=1)
    ds["rms"].values[:] = 1
    ds["rms"].values[0, :, -1] = [3, 4]
    got = values(ds)["inflation"]
    assert got == pytest.approx((12.5) ** 0.5)
    assert got != pytest.approx(3.5, abs=0.01)


def test_block_0_and_the_shallow_half_do_not_enter_redundancy() -> None:
    ds = planted(cosine=0.5)
    ds["cosine"].values[..., :7] = np.nan
    assert values(ds)["redundancy"] == pytest.approx(0.5, rel=1e-6)


def test_uniform_and_one_hot_routers() -> None:
    ds = synthetic.dataset(routing="dar")
    offered = np.isfinite(ds["route"].values)
    count = offered.sum(-1)
    ds["route"].values[:] = np.where(offered, 1 / count[..., None], np.nan)
    ds["route_entropy"].values[:] = np.log(count)
    assert values(ds)["selectivity"] == pytest.approx(0, abs=1e-6)
    first = np.zeros_like(ds["route"].values)
    first[..., 0] = 1
    ds["route"].values[:] = np.where(offered, first, np.nan)
    ds["route_entropy"].values[:] = 0
    assert values(ds)["selectivity"] == 1
    assert values(ds)["selectivity_shift"] == 0


def test_without_a_choice_there_is_no_selectivity() -> None:
    got = metrics.compute(synthetic.dataset())
    for name in ("selectivity", "selectivity_shift"):
        assert all(np.isnan([got[name].value, got[name].low, got[name].high]))


def test_a_router_that_changes_its_mind_shifts_by_one() -> None:
    ds = synthetic.dataset(routing="dar", levels=3)
    offered = np.isfinite(ds["route"].values)
    route = np.zeros_like(ds["route"].values)
    route[0, ..., 0] = 1
    route[1] = 0.25  # levels between the ends do not count
    route[2, :, np.arange(13), np.arange(13)] = 1  # each reader's latest source
    ds["route"].values[:] = np.where(offered, route, np.nan)
    got = metrics.compute(ds)["selectivity_shift"]
    assert (got.value, got.low, got.high) == (1, 1, 1)


def test_negative_routes_count_by_size() -> None:
    ds = synthetic.dataset(routing="dar")
    flipped = ds.copy(deep=True)
    flipped["route"].values[..., 0] *= -1
    assert values(flipped)["selectivity_shift"] == pytest.approx(values(ds)["selectivity_shift"])


@pytest.mark.parametrize(
    ("options", "unknown"),
    [
        ({"levels": 1}, {"selectivity", "selectivity_shift", "importance_shift"}),
        ({"levels": 1, "routing": "dar"}, {"selectivity_shift", "importance_shift"}),
        ({"blocks": 1}, {"inflation", "gradient_decay", "selectivity", "selectivity_shift"}),
        ({"blocks": 1, "routing": "dar"}, {"inflation", "gradient_decay"}),
    ],
)
def test_what_cannot_be_measured_is_nan(options, unknown) -> None:
    got = metrics.compute(synthetic.dataset(**options), resamples=20)
    assert {name for name, m in got.items() if np.isnan(m.value)} == unknown
    assert all(np.isnan(got[name].low) and np.isnan(got[name].high) for name in unknown)


def test_a_model_without_gates_and_routes_is_no_error() -> None:
    ds = synthetic.dataset()
    for name in ("gate", "route", "route_entropy", "gate_conservation", "write_lost"):
        ds[name].values[:] = np.nan
    got = values(ds)
    known = {name for name, value in got.items() if not np.isnan(value)}
    assert known == {"inflation", "gradient_decay", "redundancy", "read_residual"}
    assert importance.importance(ds).isnull().all()
    assert importance.block_routes(ds).isnull().all()


def test_zero_states_are_nan_not_infinite() -> None:
    ds = synthetic.dataset()
    ds["rms"].values[:] = 0
    ds["grad_rms"].values[:] = 0
    got = metrics.compute(ds, resamples=5)
    assert np.isnan(got["inflation"].value) and np.isnan(got["gradient_decay"].high)


# --- laws ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    blocks=st.integers(1, 7),
    samples=st.integers(2, 6),
    levels=st.integers(1, 3),
    routing=st.sampled_from(["residual", "dar"]),
    spread=st.floats(0, 1.5),
)
def test_laws_of_every_analysis(seed, blocks, samples, levels, routing, spread) -> None:
    ds = synthetic.dataset(
        blocks=blocks, samples=samples, levels=levels, routing=routing, spread=spread, seed=seed
    )
    got = metrics.compute(ds, resamples=40, seed=seed)
    for m in got.values():
        assert np.isnan(m.value) or m.low <= m.value <= m.high
    for name in ("selectivity", "selectivity_shift", "importance_shift"):
        assert np.isnan(got[name].value) or -1e-9 <= got[name].value <= 1 + 1e-9
    order = np.random.default_rng(seed).permutation(samples)
    shuffled = values(ds.isel(sample=order))
    scaled = ds.copy(deep=True)
    scaled["rms"] = ds["rms"] * 8
    scaled["grad_rms"] = ds["grad_rms"] / 8
    scaled["gate"] = ds["gate"] * 8
    rescaled = values(scaled)
    for name, m in got.items():
        assert shuffled[name] == pytest.approx(m.value, rel=1e-9, abs=1e-12, nan_ok=True), name
        assert rescaled[name] == pytest.approx(m.value, rel=1e-9, abs=1e-12, nan_ok=True), name


def test_one_sample_has_no_interval() -> None:
    for m in metrics.compute(synthetic.dataset(samples=1, routing="dar")).values():
        assert np.isfinite(m.value) and np.isnan(m.low) and np.isnan(m.high)


def test_the_seed_decides_everything() -> None:
    ds = synthetic.dataset(routing="dar")
    assert metrics.compute(ds, seed=1) == metrics.compute(ds, seed=1)
    assert metrics.compute(ds, seed=1) != metrics.compute(ds, seed=2)
    assert metrics.chance(ds, "importance_shift") == metrics.chance(ds, "importance_shift")


@pytest.mark.parametrize("options", [{"resamples": 0}, {"confidence": 1.0}, {"confidence": 0.0}])
def test_settings_that_make_no_sense_are_refused(options) -> None:
    with pytest.raises(UsageError):
        metrics.compute(synthetic.dataset(samples=2), **options)


def test_a_large_analysis_stays_small_in_memory() -> None:
    ds = synthetic.dataset(blocks=28, samples=64, levels=10, routing="dar")
    tracemalloc.start()
    metrics.compute(ds)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6, f"{peak / 1e6:.0f} MB"


# --- arrays for figures -------------------------------------------------------------------------


def test_profile_pools_as_the_schema_says() -> None:
    ds = synthetic.dataset(spread=0.8, samples=4, levels=2)
    for name in ("rms", "cosine", "write_ratio", "gate_conservation", "query_share"):
        got = metrics.profile(ds, name, resamples=50)
        pool = slow_rms if VARIABLES[name].average == "mean_square" else slow_mean
        column = ds[name].values.reshape(8, -1).T
        np.testing.assert_allclose(got["value"], [pool(x) for x in column], rtol=1e-9)
        assert got["value"].dims == VARIABLES[name].dims
        known = np.isfinite(got["value"].values)
        assert (got["low"] <= got["value"]).values[known].all()
        assert (got["value"] <= got["high"]).values[known].all()
    got = metrics.profile(ds, "gate_conservation")
    assert str(got["reader_name"].values[-1]) == "head"
    assert got["value"].attrs["long_name"] == "error bar of the gates"


def test_profile_agrees_with_the_metric() -> None:
    ds = synthetic.dataset()
    rms = metrics.profile(ds, "rms")["value"].values
    assert rms[-1] / rms[1] == pytest.approx(metrics.compute(ds)["inflation"].value)


def test_over_noise_keeps_the_levels() -> None:
    ds = synthetic.dataset(spread=0.8, samples=4, levels=3)
    got = metrics.over_noise(ds, "rms")
    assert got.dims == ("block", "noise_level")
    assert float(got[2, 1]) == pytest.approx(slow_rms(ds["rms"].values[1, :, 2]))
    np.testing.assert_array_equal(got["noise_level"], ds["noise_level"])
    assert metrics.over_noise(ds, "loss").dims == ("noise_level",)


def test_unknown_variables_are_named() -> None:
    ds = synthetic.dataset(samples=2)
    for call in (metrics.profile, metrics.over_noise):
        with pytest.raises(UsageError, match="entropyy"):
            call(ds, "entropyy")


def test_what_has_no_noise_levels_is_not_shown_over_them() -> None:
    with pytest.raises(UsageError, match="'decodability' is one number for all noise levels"):
        metrics.over_noise(synthetic.dataset(samples=2), "decodability")


def test_importance_rows_are_shares_of_root_mean_squares() -> None:
    ds = synthetic.dataset(routing="dar", chunk_size=4, samples=3)
    ds["gate"].values[1, :, 5] = np.where(np.isfinite(ds["gate"].values[1, :, 5]), 0, np.nan)
    got = importance.importance(ds)
    size = {i: slow_rms(ds["gate"].values[2, :, 7, i]) for i in range(8)}
    total = sum(x for x in size.values() if x == x)
    for i, x in size.items():
        assert float(got[2, 7, i]) == pytest.approx(x / total, nan_ok=True)
    assert got[1, 5].isnull().all(), "a reader whose gates are all zero has no preference"
    rows = got.sum("source").values
    np.testing.assert_allclose(np.delete(rows[1], [0, 5]), 1)
    assert got[:, 0].isnull().all(), "the first reader's only source cannot matter: gate 0"
    offered = np.isfinite(ds["gate"].values).any((0, 1))
    assert (np.isfinite(got.values[0]) == offered)[1:].all()


def test_block_importance_sums_gates_before_squaring() -> None:
    ds = synthetic.dataset(blocks=3, samples=4)
    gate = np.full_like(ds["gate"].values, np.nan)
    gate[:, :, 4, :5] = [0.0, 1.0, -1.0, 1.0, 1.0]  # attention of block 3
    ds["gate"].values[:] = gate
    got = importance.block_importance(ds)
    assert got.dims == ("noise_level", "reader", "source_block")
    assert [str(x) for x in got["reader_name"].values] == [
        "block 1 attention",
        "block 2 attention",
        "block 3 attention",
        "head",
    ]
    np.testing.assert_array_equal(got["source_block"], [0, 1, 2, 3])
    np.testing.assert_allclose(got.values[0, 2], [0, 0, 1, np.nan])


def test_block_importance_squares_within_each_sample() -> None:
    ds = synthetic.dataset(blocks=2, samples=2, levels=1)
    gate = np.full_like(ds["gate"].values, np.nan)
    gate[0, 0, 2, :3] = [1.0, 2.0, 1.0]
    gate[0, 1, 2, :3] = [1.0, -2.0, -1.0]  # cancels over samples, not in the square
    ds["gate"].values[:] = gate
    np.testing.assert_allclose(importance.block_importance(ds).values[0, 1], [0.25, 0.75, np.nan])


def test_block_routes() -> None:
    residual = importance.block_routes(synthetic.dataset(blocks=3)).values[0]
    x = np.nan
    expected = [[1, x, x, x], [1, 2, x, x], [1, 2, 2, x], [1, 2, 2, 2]]
    np.testing.assert_array_equal(residual, expected)
    ds = synthetic.dataset(blocks=4, routing="dar", chunk_size=4)
    chunked = importance.block_routes(ds)
    np.testing.assert_allclose(chunked.sum("source_block"), 1, rtol=1e-6)
    offered = np.isfinite(chunked.values[0])
    assert offered[2].tolist() == [True, False, True, False, False], "block 1 is in no summary"
    assert offered[4].tolist() == [True, False, True, True, True]


# --- the planted dataset itself -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunk_size", "pairs"), [(1, 1653), (2, 870), (4, 522), (7, 435), (14, 522), (56, 1653)]
)
def test_synthetic_offers_what_chunked_dar_offers(chunk_size, pairs) -> None:
    """Source reads of SiT-XL/2 with 56 sublayers: see routing.md 3.3."""
    offered = synthetic.offered_pairs(56, chunk_size)
    assert offered.sum() == pairs
    assert offered.any(axis=1).all()
    assert not np.triu(offered, 1).any()


def test_synthetic_gates_cancel_and_routes_sum_to_one() -> None:
    ds = synthetic.dataset(routing="dar", chunk_size=4)
    total, size = ds["gate"].sum("source"), abs(ds["gate"]).max("source")
    assert float(abs(total).max()) < 1e-5 * float(size.max())
    np.testing.assert_allclose(ds["route"].sum("source"), 1, rtol=1e-5)


def test_intervals_are_of_95_percent_from_a_thousand_resamples_of_seed_0() -> None:
    ds = synthetic.dataset(samples=5, levels=3, blocks=3, routing="dar")
    said = {"resamples": 1000, "seed": 0}
    assert metrics.compute(ds) == metrics.compute(ds, confidence=0.95, **said)
    assert metrics.means(ds) == metrics.means(ds, confidence=0.95, **said)
    for name, rows in metrics.draws(ds).items():
        np.testing.assert_array_equal(rows, metrics.draws(ds, **said)[name])
    xr.testing.assert_identical(
        metrics.profile(ds, "rms"), metrics.profile(ds, "rms", confidence=0.95, **said)
    )
    assert metrics.profile_draws(ds, "rms").shape == (1001, 4)
    np.testing.assert_array_equal(
        metrics.profile_draws(ds, "rms"), metrics.profile_draws(ds, "rms", **said)
    )
    name = "importance_shift"
    assert metrics.chance(ds, name) == metrics.chance(ds, name, **said)
    values = np.random.default_rng(0).normal(size=(1001, 2))
    for one, other in zip(
        metrics.interval(values, 5), metrics.interval(values, 5, 0.95), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    loss = metrics.profile(ds, "loss")
    assert metrics.mean_loss(ds).low == float(loss["low"])


def test_means_are_the_first_four_of_all() -> None:
    ds = synthetic.dataset(samples=5, levels=3, blocks=3, routing="dar")
    whole = metrics.compute(ds)
    assert metrics.means(ds) == {name: whole[name] for name in list(whole)[:4]}


def test_an_interval_needs_the_value_and_takes_the_resamples_that_are_known() -> None:
    rows = np.random.default_rng(0).normal(size=(401, 4))
    rows[0, 1] = np.nan  # no value: no interval, whatever the resamples say
    rows[1, 2] = np.nan  # a resample that happens to have nothing to measure
    rows[1:, 3] = np.nan
    low, high = metrics.interval(rows, 6)
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [False, True, False, True]
    few = metrics.interval(np.delete(rows[:, 2], 1), 6)
    assert (low[2], high[2]) == pytest.approx((float(few[0]), float(few[1])), rel=1e-12)


def test_what_was_not_decoded_does_not_count() -> None:
    rng = np.random.default_rng(0)
    levels = np.array([0.1, 0.5, 0.8])
    decoded = levels[:, None, None] + 0.1 * rng.normal(size=(3, 4, 2))
    decoded[1, 2, 0] = decoded[0, 0, 1] = np.nan
    decoded[:, 3] = np.nan
    weights = np.array([[1.0, 1, 1, 1], [2, 0, 1, 1], [0, 0, 0, 4]])
    found = metrics.decodability(decoded, levels, weights)
    for w, row in enumerate(weights):
        for r in range(2):
            missed = total = 0.0
            for s in range(3):
                for n in range(4):
                    if np.isfinite(decoded[s, n, r]):
                        missed += row[n] * (decoded[s, n, r] - levels[s]) ** 2
                        total += row[n] * (levels[s] - levels.mean()) ** 2
            expected = 1 - missed / total if total else np.nan
            np.testing.assert_allclose(found[w, r], expected, rtol=1e-12)
    np.testing.assert_array_equal(metrics.decodability(decoded, levels)[0], found[0])


@pytest.mark.parametrize("blocks", [2, 3, 4, 6, 9, 10, 12])
def test_early_and_deep_blocks_of_a_shallow_model_are_not_the_same(blocks):
    """A gradient that rises with depth has a decay far below one, in four blocks as in twelve."""
    ds = synthetic.dataset(blocks=blocks, samples=4, levels=2).copy(deep=True)
    ds["grad_rms"].values[:] = 10.0 ** np.arange(blocks + 1)
    found = metrics.compute(ds)["gradient_decay"].value
    deep = np.median(10.0 ** np.arange(blocks // 2 + 1, blocks + 1))
    early = np.mean(10.0 ** np.arange(1, min(5, blocks // 2) + 1))
    assert found == pytest.approx(early / deep, rel=1e-5) and found < 0.2
