"""What is said of interventions, against plain loops; and what is drawn."""

import math

import numpy as np
import pytest

from dar_probe.analysis import Analysis
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.reports.figures import registry
from dar_probe.results import interventions as effects
from dar_probe.results import schema, store
from dar_probe.results.assemble import with_ablation
from tests.helpers import synthetic
from tests.helpers.drawn import screened, unpacked

KINDS = ["gate"] * 5 + ["block"] * 4 + ["uniform"] * 2


def dataset(*, samples=6, seed=0, name="block {} without </script><b>$\\frac{{ x", curve=0.3):
    ds = synthetic.dataset(blocks=3, samples=samples, levels=2)
    rng = np.random.default_rng(seed)
    linear = rng.normal(size=(2, samples, len(KINDS))) * np.geomspace(1e-4, 1, len(KINDS))
    true = linear + curve * np.abs(linear) * rng.random(linear.shape)
    names = [name.format(at) for at in range(len(KINDS))]
    return with_ablation(
        ds, names=names, kinds=KINDS, true=true, linear=linear, wanted={"pairs": 5}, batch_size=4
    )


def ranks(values):
    return [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]


def correlation(a, b):
    a, b = ranks(list(a)), ranks(list(b))
    mean = (len(a) + 1) / 2
    top = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    return top / math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))


def test_arrays_of_the_dataset_equal_loops():
    ds = dataset()
    true, linear = ds["gate_ablated"].values, ds["gate_linear"].values
    for level in range(2):
        for at in range(len(KINDS)):
            error = sum((true[level, s, at] - linear[level, s, at]) ** 2 for s in range(6))
            size = sum(true[level, s, at] ** 2 for s in range(6))
            found = float(ds["linearisation_error"][level, at])
            assert found == pytest.approx(math.sqrt(error / size), rel=2e-15)  # measured: 2e-16
        for column, kind in enumerate(["gate", "block"]):
            own = [at for at, other in enumerate(KINDS) if other == kind]
            expected = correlation(true[level].mean(0)[own], linear[level].mean(0)[own])
            found = float(ds["rank_correlation"].sel(intervention=kind)[level])
            assert found == pytest.approx(expected, abs=2e-15), column  # measured: 2e-16
    assert np.isnan(ds["rank_correlation"].sel(intervention="uniform")).all()  # only two
    assert ds["intervention"].values.tolist() == ["gate", "block", "uniform"]


def test_agreement_and_effects_equal_loops():
    """Over both levels and all samples: levels differ here, so that one alone will not do."""
    ds = dataset(curve=2.0)
    ds["gate_ablated"].values[1] *= 3
    true, linear = (ds[name].values for name in ("gate_ablated", "gate_linear"))
    table = effects.effects(ds).set_index("name")
    for at, name in enumerate(ds["ablation_name"].values):
        row = table.loc[name]
        cells = [(level, s, at) for level in range(2) for s in range(6)]
        assert row["kind"] == KINDS[at]
        assert row["true"] == pytest.approx(sum(true[c] for c in cells) / 12, rel=1e-12)
        assert row["linear"] == pytest.approx(sum(linear[c] for c in cells) / 12, rel=1e-12)
        missed = sum((linear[c] - true[c]) ** 2 for c in cells)
        size = sum(true[c] ** 2 for c in cells)
        assert row["error"] == pytest.approx(math.sqrt(missed / size), rel=1e-12)
    found = {one.kind: one for one in effects.agreement(ds)}
    assert list(found) == ["gate", "block", "uniform"]
    for kind, one in found.items():
        own = [at for at, other in enumerate(KINDS) if other == kind]
        cells = [(level, s, at) for level in range(2) for s in range(6) for at in own]
        missed = sum((linear[c] - true[c]) ** 2 for c in cells)
        size = sum(true[c] ** 2 for c in cells)
        assert one.count == len(own)
        assert one.error.value == pytest.approx(math.sqrt(missed / size), rel=1e-12)
        assert one.error.low < one.error.value < one.error.high
        if len(own) > 2:
            means = [[sum(x[c] for c in cells if c[2] == at) for at in own] for x in (true, linear)]
            assert one.rank.value == pytest.approx(correlation(*means), abs=1e-12)
            assert one.rank.low <= one.rank.value <= one.rank.high
        else:
            assert math.isnan(one.rank.value)


def test_exact_predictions_have_rank_one_in_every_resample():
    """Truth and prediction are drawn alike, over samples: levels differ too much to stand in."""
    ds = dataset(curve=0.0)
    for name in ("gate_ablated", "gate_linear"):
        ds[name].values[1] *= -3
    for one in effects.agreement(ds):
        expected = 1.0 if one.count > 2 else math.nan
        bounds = (one.rank.low, one.rank.value, one.rank.high)
        assert bounds == pytest.approx((expected,) * 3, rel=1e-12, nan_ok=True)
        assert (one.error.low, one.error.value, one.error.high) == (0, 0, 0)


def test_ties_share_their_rank():
    assert effects.spearman(np.array([1.0, 1, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(
        correlation([1, 1, 2, 3], [1, 2, 3, 4]), abs=2e-15
    )
    assert math.isnan(effects.spearman(np.ones(4), np.arange(4.0)))


def test_largest_effect_first_and_intervals_hold_the_value():
    table = effects.effects(dataset())
    assert (table["true"].abs().diff().dropna() <= 0).all()
    assert ((table["low"] <= table["true"]) & (table["true"] <= table["high"])).all()
    one = effects.effects(dataset(samples=1))
    assert one["low"].isna().all() and one["true"].notna().all()


def test_exact_predictions_agree_perfectly():
    for found in effects.agreement(dataset(curve=0.0)):
        assert found.error.value == 0
        assert (
            math.isnan(found.rank.value)
            if found.count < 3
            else found.rank.value == pytest.approx(1)
        )
        assert found.rank.definition == schema.ABLATION["rank_correlation"].definition


def test_dataset_survives_the_file_and_half_of_it_is_refused(tmp_path):
    ds = dataset()
    store.write(ds, tmp_path / "analysis.nc")
    again = store.read(tmp_path / "analysis.nc")
    assert again.equals(ds) and schema.manifest(again)["ablation"] == {"pairs": 5}
    assert schema.manifest(again)["batch_size"] == 4
    with pytest.raises(CheckpointError, match="gate_linear"):
        schema.validate(ds.drop_vars("gate_linear"))
    with pytest.raises(CheckpointError, match="ablation_name"):
        schema.validate(ds.drop_vars("ablation_name"))


def test_figures_are_drawn_with_hostile_names_and_equal_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "MAIN", ("interventions",))  # the others have tests elsewhere
    analysis = Analysis(dataset())
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        analysis.save(folder)
    drawn = [folder / "figures" / "interventions.png" for folder in folders]
    assert drawn[0].stat().st_size > 10_000
    assert drawn[0].read_bytes() == drawn[1].read_bytes()
    page = (folders[0] / "report.html").read_text()
    assert "What interventions did" in page and "without </script>" not in page


def test_every_intervention_is_on_the_screen():
    figure = screened.interventions(dataset())
    points = [trace for trace in figure["data"] if trace["xaxis"] == "x"]
    assert [len(unpacked(trace["x"])) for trace in points] == [5, 4, 2]
    assert "one block skipped (4)" in points[1]["name"]


def test_analyses_without_interventions_say_so():
    with pytest.raises(UsageError, match="no interventions"):
        _ = Analysis(synthetic.dataset()).plot.interventions()
