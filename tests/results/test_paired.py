"""Paired differences: laws of the pairing, an independent reference, and reasons in words."""

import json
import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from dar_probe.errors import UsageError
from dar_probe.results import metrics, schema
from dar_probe.results import paired as pairs
from dar_probe.results.metrics import Metric
from dar_probe.results.paired import NUMBERS, Pair, compare, over_depth
from dar_probe.results.streams import single
from tests.helpers.synthetic import dataset, trained

SMALL = {"blocks": 4, "samples": 6, "levels": 3}


def one(reference: xr.Dataset, other: xr.Dataset, **settings) -> Pair:
    return compare([("first", reference), ("second", other)], **settings)[0]


def by_name(pair: Pair) -> dict[str, pairs.Change]:
    assert tuple(change.name for change in pair.changes) == NUMBERS
    return {change.name: change for change in pair.changes}


def bounds(metric: Metric) -> list[float]:
    return [metric.low, metric.value, metric.high]


def with_manifest(ds: xr.Dataset, **changes) -> xr.Dataset:
    ds = ds.copy()
    whole = schema.manifest(ds)
    config = {**whole["config"], **changes.pop("config", {})}
    ds.attrs["manifest"] = json.dumps({**whole, "config": config, **changes})
    return ds


@pytest.fixture(scope="module")
def routed():
    return dataset(**SMALL, routing="dar", chunk_size=4)


@pytest.fixture(scope="module")
def rerouted():
    """Return another model of the same samples and noise."""
    ds = dataset(**SMALL, routing="dar", chunk_size=4, seed=1, inflation=4.0)
    return with_manifest(ds, seed=0)


# --- laws --------------------------------------------------------------------------------------


def test_a_model_against_itself_differs_by_exactly_nothing(routed):
    for change in by_name(one(routed, routed)).values():
        assert bounds(change.difference) == [0, 0, 0]
        assert change.direction == "same"
        assert "is the same" in change.sentence


def test_swapping_the_two_negates_and_mirrors(routed, rerouted):
    there, back = by_name(one(routed, rerouted)), by_name(one(rerouted, routed))
    for name in NUMBERS:
        mirrored = [-bound for bound in reversed(bounds(back[name].difference))]
        np.testing.assert_allclose(bounds(there[name].difference), mirrored, rtol=1e-9, atol=1e-12)
        assert there[name].reference == back[name].other


def test_each_number_keeps_its_own_interval(routed, rerouted):
    own, found = metrics.compute(rerouted), by_name(one(routed, rerouted))
    for name in NUMBERS[:-1]:
        assert found[name].other == own[name]
        gap = found[name].other.value - found[name].reference.value
        assert found[name].difference.value == pytest.approx(gap, abs=1e-15)
    loss = metrics.profile(rerouted, "loss")
    assert bounds(found["loss"].other) == [float(loss[key]) for key in ("low", "value", "high")]


def test_the_order_of_samples_is_no_part_of_the_comparison(routed, rerouted):
    order = [3, 0, 5, 1, 4, 2]
    plain = one(routed, rerouted)
    assert one(routed, rerouted.isel(sample=order)) == plain
    turned = one(routed.isel(sample=order), rerouted.isel(sample=order))
    for name, change in by_name(turned).items():  # another draw of the bootstrap, no other value
        expected = by_name(plain)[name].difference
        assert change.difference.value == pytest.approx(expected.value, rel=1e-9, abs=1e-12)
        assert change.difference.low != expected.low


@pytest.mark.parametrize("variable", ["rms", "grad_rms", "gate", "decodability"])
def test_over_depth_the_order_of_samples_is_no_part_of_the_comparison(variable, routed, rerouted):
    gone = rerouted.copy(deep=True)
    gone["decoded_level"][:, 3] = np.nan  # a sample that one model alone has not decoded
    turned = gone.isel(sample=[3, 0, 5, 1, 4, 2])
    expected = over_depth(routed, gone, variable)
    xr.testing.assert_identical(over_depth(routed, turned, variable), expected)
    assert np.isfinite(expected["value"]).any()


def test_pairing_narrows_the_interval_where_samples_agree(routed):
    noise = np.random.default_rng(0).normal(size=routed["loss"].shape)
    other = routed.assign(loss=routed["loss"] + 0.1 + 0.001 * noise)
    paired = by_name(one(routed, other))["loss"].difference
    apart = [metrics.profile_draws(ds, "loss", seed=s) for s, ds in enumerate((routed, other))]
    low, high = metrics.interval(apart[1] - apart[0], SMALL["samples"])
    assert paired.high - paired.low < (high - low) / 10
    assert paired.low < 0.1 < paired.high


def test_intervals_hold_the_truth_in_about_95_of_100():
    held = {"inflation": 0, "loss": 0}
    repetitions = 200
    ds = dataset(blocks=2, samples=24, levels=1, spread=0.0, inflation=1.0)
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        common = rng.normal(size=(1, 24))  # what a sample does in both models
        found = []
        for truth in (2.0, 5.0):
            scatter = np.exp(0.2 * common[..., None] + 0.1 * rng.normal(size=(1, 24, 3)))
            rms = scatter * np.array([1.0, 1.0, truth])
            loss = truth + common + 0.5 * rng.normal(size=(1, 24))
            found.append(ds.assign(rms=ds["rms"] * 0 + rms, loss=ds["loss"] * 0 + loss))
        changes = by_name(one(*found, resamples=200))
        for name in held:
            difference = changes[name].difference
            held[name] += difference.low <= 3.0 <= difference.high
    for name, count in held.items():
        assert 0.90 <= count / repetitions <= 0.985, name


def test_a_slow_reference_gives_the_same_inflation(routed, rerouted):
    count, drawn = SMALL["samples"], 50
    rng = np.random.default_rng(7)
    draws = [np.ones(count), *rng.multinomial(count, [1 / count] * count, size=drawn)]

    def inflation(ds, weights):
        squares = {1: 0.0, SMALL["blocks"]: 0.0}
        for level in range(SMALL["levels"]):
            for sample in range(count):
                for block in squares:
                    value = float(ds["rms"].values[level, sample, block])
                    squares[block] += weights[sample] * value**2
        return math.sqrt(squares[SMALL["blocks"]] / squares[1])

    rows = np.array([inflation(rerouted, w) - inflation(routed, w) for w in draws])
    found = by_name(one(routed, rerouted, resamples=drawn, seed=7))["inflation"].difference
    assert found.value == pytest.approx(rows[0], rel=1e-12)
    assert [found.low, found.high] == pytest.approx(
        [float(bound) for bound in metrics.interval(rows, count)], rel=1e-9
    )


# --- over depth ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rms", "grad_rms", "cosine", "write_ratio", "decodability"])
def test_over_depth_is_the_difference_of_the_profiles(routed, rerouted, name):
    gap = over_depth(routed, rerouted, name)
    expected = metrics.profile(rerouted, name)["value"] - metrics.profile(routed, name)["value"]
    np.testing.assert_allclose(gap["value"], expected, rtol=1e-9, atol=1e-12)
    known = np.isfinite(gap["value"].values)
    assert known.any()
    assert (gap["low"] <= gap["value"]).values[known].all()
    assert (gap["value"] <= gap["high"]).values[known].all()
    same = over_depth(routed, routed, name)
    assert (same.to_array().values[:, known] == 0).all()
    assert set(gap.coords) == set(metrics.profile(routed, name).coords)


def test_over_depth_knows_only_the_samples_that_both_decoded(routed, rerouted):
    part = rerouted.copy(deep=True)
    part["decoded_level"][:, 4:] = np.nan
    gap = over_depth(routed, part, "decodability")
    few = slice(None, 4)
    expected = over_depth(routed.isel(sample=few), rerouted.isel(sample=few), "decodability")
    xr.testing.assert_allclose(gap, expected)
    part["decoded_level"][:] = np.nan
    assert np.isnan(over_depth(routed, part, "decodability")["value"]).all()


def test_models_of_other_depth_compare_in_numbers_alone(routed):
    deeper = dataset(**{**SMALL, "blocks": 5}, routing="dar", chunk_size=4)
    assert all(c.direction != "unknown" for c in one(routed, deeper).changes)
    with pytest.raises(UsageError, match="the depths differ: 5 against 4 blocks"):
        over_depth(routed, deeper, "rms")
    with pytest.raises(UsageError, match="the sublayers differ"):
        over_depth(routed, deeper, "write_rms")
    with pytest.raises(UsageError, match="no variable 'speed'"):
        over_depth(routed, routed, "speed")


# --- what cannot be compared ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda ds: dataset(**{**SMALL, "levels": 2}),
            "the noise levels differ: 2 from 0.01 to 0.99 against 3 from 0.01 to 0.99",
        ),
        (
            lambda ds: ds.assign_coords(noise_level=[0.01, 0.45, 0.99]),
            "the noise levels differ: 3 from 0.01 to 0.99, but number 2 is 0.45 against 0.5",
        ),
        (
            lambda ds: ds.isel(noise_level=[1]),
            "the noise levels differ: 1 of 0.5 against 3 from 0.01 to 0.99",
        ),
        (
            lambda ds: ds.isel(sample=[0]),
            "the samples differ: 1 with id 0 against 6 with ids 0 to 5",
        ),
        (
            lambda ds: ds.assign_coords(sample=[0, 1, 2, 4, 4, 5]),
            "the samples differ: 6 with ids 0 to 5, but number 4 is 4 against 3",
        ),
        (
            lambda ds: with_manifest(ds, data={"name": "latents"}),
            "the data differ: latents against digits",
        ),
        (lambda ds: with_manifest(ds, seed=3), "the noise differs: seed 3 against 0"),
    ],
)
def test_unlike_grids_and_data_are_named(change, reason):
    ds = dataset(**SMALL)
    pair = one(ds, change(ds))
    assert (pair.reason, pair.changes) == (reason, [])
    assert pair.sentence == f"second cannot be compared with first because {reason}."
    with pytest.raises(UsageError, match="cannot be compared because"):
        over_depth(ds, change(ds), "rms")


def test_the_hash_decides_where_both_files_have_one(routed):
    first, second = (with_manifest(routed, config={"data_sha256": key}) for key in "ab")
    assert one(first, second).reason == "the data of the name digits differ in content"
    moved = with_manifest(first, data={"name": "the same folder by another path"})
    assert one(first, moved).reason == ""
    assert one(first, moved).notes == ()
    assert one(first, routed).reason == ""
    assert "same by their ids" in one(first, routed).notes[0]
    own = [with_manifest(ds, data={"name": schema.OWN_SAMPLES}) for ds in (first, second)]
    assert one(*own).reason == "each model was measured on samples that it drew itself"


def test_the_name_of_own_samples_is_the_one_that_is_written():
    from dar_probe.probe import samples

    assert samples.OWN_SAMPLES is schema.OWN_SAMPLES


def test_plain_residuals_have_no_selectivity(routed):
    plain = dataset(**SMALL)
    for pair, where in ((one(plain, routed), "first ("), (one(plain, plain), "either (")):
        for name in ("selectivity", "selectivity_shift"):
            change = by_name(pair)[name]
            assert change.direction == "unknown"
            assert math.isnan(change.difference.value) and math.isnan(change.reference.value)
            assert f"not measurable in {where}there is no router" in change.sentence
    assert by_name(one(plain, routed))["selectivity"].other.value > 0


def test_losses_of_two_objectives_are_not_compared(routed, rerouted):
    names = ("sit", "repa")
    two = [with_manifest(ds, config={"objective": o}) for ds, o in zip((routed, rerouted), names)]  # noqa: B905
    found = by_name(one(*two))
    why = "Loss cannot be compared because the objectives differ: repa against sit."
    assert found["loss"].sentence == why
    assert math.isnan(found["loss"].difference.value)
    assert found["loss"].other.value > 0
    assert found["inflation"] == by_name(one(routed, rerouted))["inflation"]
    with pytest.raises(UsageError, match="the objectives differ"):
        over_depth(*two, "loss")
    guessed = with_manifest(routed, config={"stand_in_loss": "a mean square"})
    assert "stand in" in by_name(one(routed, guessed))["loss"].sentence


def test_unmeasured_and_single_samples_have_sentences(routed, rerouted):
    empty = routed.copy(deep=True)
    for name in schema.VARIABLES:
        empty[name][:] = np.nan
    pair = one(routed, empty)
    assert all(change.direction == "unknown" for change in pair.changes)
    assert all("not measurable in second (" in change.sentence for change in pair.changes)
    assert "cannot be compared" in pair.sentence
    single = one(routed.isel(sample=[0]), rerouted.isel(sample=[0]))
    for change in single.changes:
        assert math.isnan(change.difference.low)
        assert change.sentence.endswith("(one sample, no interval).")
        assert change.direction == ("rises" if change.difference.value > 0 else "falls")
    assert "nan" not in " ".join(c.sentence for c in [*pair.changes, *single.changes]).lower()


def test_of_a_training_run_the_last_step_is_compared():
    run = trained(**SMALL, steps=2)
    last = single(run)
    assert schema.manifest(last)["checkpoint"]["name"] == "step-0000200.pt"
    plain = dataset(**SMALL, seed=2)  # the seed of the last step
    pair = one(plain, run)
    assert "second is a training run: its last step, 200, is compared." in pair.notes
    assert repr(pair.changes) == repr(one(plain, last).changes)  # NaN equals nothing
    xr.testing.assert_equal(over_depth(plain, run, "rms"), over_depth(plain, last, "rms"))


def test_settings_that_make_no_sense_are_refused(routed):
    with pytest.raises(UsageError, match="two analyses"):
        compare([("alone", routed)])
    with pytest.raises(UsageError, match="confidence"):
        one(routed, routed, confidence=1.0)
    with pytest.raises(UsageError, match="resamples"):
        one(routed, routed, resamples=0)


# --- words ---------------------------------------------------------------------------------------


def difference(value: float, low: float, high: float, name: str = "loss") -> Metric:
    return Metric(name=name, value=value, low=low, high=high, definition="")


@given(st.lists(st.sampled_from(["a", "b", "a (1)", "a (1) (1)", ""]), min_size=1, max_size=8))
def test_names_become_distinct(names):
    found = pairs.distinct(names)
    assert len(set(found)) == len(found) == len(names)
    for before, after in zip(names, found, strict=True):
        assert after.startswith(before)
        assert after == before or names.count(before) > 1


def test_equal_names_are_numbered(routed):
    assert pairs.distinct(["a", "b", "a"]) == ["a (1)", "b", "a (2)"]
    pair = compare([("a", routed), ("a", routed)])[0]
    assert (pair.reference, pair.other) == ("a (1)", "a (2)")


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((-1.6123, -1.6211, -1.5934), "-1.61 [-1.62, -1.59]"),
        ((0.0012, -0.01, 0.0123), "+0.0012 [-0.0100, +0.0123]"),
        ((12345.6, 12000, 12999.9), "+12346 [+12000, +13000]"),
        ((3e-12, 1e-12, 4e-12), "+3.00e-12 [+1.00e-12, +4.00e-12]"),
        ((0.0, 0.0, 0.0), "+0 [+0, +0]"),
        ((0.5, math.nan, math.nan), "+0.500"),
        ((math.nan, math.nan, math.nan), "not measurable"),
    ],
)
def test_differences_are_written_with_three_digits(numbers, expected):
    assert pairs.signed(difference(*numbers)) == expected


def test_sentences_show_what_changed():
    changed = pairs._sentence(
        difference(1.8912, 1.8, 1.9, "inflation"),
        difference(0.2764, 0.2, 0.3, "inflation"),
        difference(-1.6148, -1.62, -1.59, "inflation"),
    )
    assert changed == "Inflation falls by 1.61 [1.59, 1.62], from 1.89x to 0.276x."
    close = pairs._sentence(
        difference(0.35401, 0.3, 0.4), difference(0.35432, 0.3, 0.4), difference(31e-5, 2e-5, 6e-4)
    )
    assert close == "Loss rises by 0.000310 [0.000020, 0.000600], from 0.3540 to 0.3543."
    open_ = pairs._sentence(
        difference(0.35, 0.3, 0.4), difference(0.36, 0.3, 0.4), difference(0.01, -0.01, 0.03)
    )
    assert open_ == (
        "No difference in loss can be told: +0.0100 [-0.0100, +0.0300], from 0.350 to 0.360."
    )


def test_a_pair_is_one_sentence(routed, rerouted):
    assert one(routed, routed).sentence == (
        "Between second and first inflation, gradient decay, redundancy, selectivity, "
        "selectivity shift, importance shift and loss are the same."
    )
    sentence = one(routed, rerouted).sentence
    assert sentence.startswith("Against first, second has ") and sentence.endswith(".")
    for change in one(routed, rerouted).changes:
        assert change.name.replace("_", " ") in sentence


@pytest.mark.parametrize(
    ("bounds", "direction"),
    [
        ((0.0, 1.0, 2.0), "open"),
        ((-2.0, -1.0, 0.0), "open"),
        ((-1.0, 0.0, 1.0), "open"),
        ((0.0, 0.0, 0.0), "same"),
        ((1e-9, 1.0, 2.0), "rises"),
        ((-2.0, -1.0, -1e-9), "falls"),
        ((math.nan, 2.0, math.nan), "rises"),
        ((math.nan, -2.0, math.nan), "falls"),
        ((math.nan, 0.0, math.nan), "same"),
        ((math.nan, math.nan, math.nan), "unknown"),
    ],
)
def test_an_interval_that_touches_zero_tells_no_direction(bounds, direction):
    low, value, high = bounds
    metric = Metric(name="loss", value=value, low=low, high=high, definition="")
    change = pairs.Change(
        name="loss", reference=metric, other=metric, difference=metric, sentence=""
    )
    assert change.direction == direction
