"""Tidy frames hold the dataset's numbers: against loops, there and back, and under seaborn."""

import numpy as np
import pytest
import seaborn as sns
import xarray as xr
from matplotlib import pyplot as plt

from dar_probe.errors import UsageError
from dar_probe.results import dataframe, schema
from tests.helpers.synthetic import dataset, trained

DEPTH = {"block", "sublayer", "reader", "source"}


@pytest.fixture(scope="module")
def ds():
    return dataset(blocks=3, samples=3, levels=2, routing="dar", chunk_size=2)


def rows_by_loop(ds, name):
    """Every cell of one variable as a dict, by plain loops; pairs that are NaN left out."""
    array = ds[name]
    for at in np.ndindex(array.shape):
        row = {}
        for dim, index in zip(array.dims, at, strict=True):
            row[dim] = ds[dim].values[index]
            if dim == "noise_level":
                row |= {key: ds[key].values[index] for key in ("timestep", "log_snr")}
            if dim in DEPTH - {"block"}:
                home = "reader" if dim == "sublayer" else dim
                for part in ("name", "kind", "block"):
                    row[f"{dim}_{part}"] = ds[f"{home}_{part}"].values[index]
        row[name] = array.values[at]
        if not ({"reader", "source"} <= set(array.dims) and np.isnan(row[name])):
            yield row


@pytest.mark.parametrize("name", list(schema.VARIABLES))
def test_a_row_is_a_cell(ds, name):
    frame = dataframe.to_dataframe(ds, name)
    expected = list(rows_by_loop(ds, name))
    assert list(frame.columns) == list(expected[0])
    assert len(frame) == len(expected)
    for column in frame.columns:
        want = [row[column] for row in expected]
        if isinstance(want[0], str):
            assert frame[column].tolist() == want, column
        else:
            np.testing.assert_array_equal(frame[column].to_numpy(), np.array(want), column)


@pytest.mark.parametrize("names", [(), ("gate", "route"), ("write_rms",), ("loss",)])
def test_there_and_back(ds, names):
    frame = dataframe.to_dataframe(ds, *names)
    names = names or dataframe.BLOCK_VARIABLES
    dims = list(ds[names[0]].dims)
    back = frame.set_index(dims)[list(names)].to_xarray()
    for name in names:  # pairs without a row come back as NaN
        xr.testing.assert_equal(back[name], ds[name].drop_vars(set(ds[name].coords) - set(dims)))


def test_pooled_is_the_schema_s_average_over_samples(ds):
    level = dataframe.to_dataframe(ds, "rms", "cosine", per="level")
    pooled = dataframe.to_dataframe(ds, "rms", "cosine", per="pooled")
    assert len(level) == 2 * 4 and len(pooled) == 4
    rms, cosine = (ds[name].values.astype(float) for name in ("rms", "cosine"))
    np.testing.assert_allclose(level["rms"], np.sqrt((rms**2).mean(axis=1)).ravel())
    np.testing.assert_allclose(level["cosine"], cosine.mean(axis=1).ravel())
    np.testing.assert_allclose(pooled["rms"], np.sqrt((rms**2).mean(axis=(0, 1))))
    for frame in (level, pooled):
        known = frame.dropna()
        assert (known["rms_low"] <= known["rms"]).all() and (
            known["rms"] <= known["rms_high"]
        ).all()
        assert (known["rms_low"] < known["rms_high"]).any()
    assert level["log_snr"].nunique() == 2 and "noise_level" not in pooled


def test_pooled_pairs_are_those_offered(ds):
    offered = np.isfinite(ds["route"].values).all(axis=(0, 1)).sum()
    assert len(dataframe.to_dataframe(ds, "gate", "route", per="pooled")) == offered
    assert len(dataframe.to_dataframe(ds, "gate", per="level")) == 2 * offered


def test_one_number_is_one_row(ds):
    frame = dataframe.to_dataframe(ds, "loss", per="pooled")
    assert frame.shape == (1, 3)
    assert frame["loss"].item() == pytest.approx(ds["loss"].values.astype(float).mean())


def test_a_trajectory_has_a_column_of_steps():
    whole = trained(steps=2, blocks=3, samples=2, levels=2)
    for per in ("sample", "pooled"):
        frame = dataframe.to_dataframe(whole, "rms", per=per)
        assert frame.columns[0] == "step" and frame["step"].unique().tolist() == [100, 200]
    one = dataframe.to_dataframe(whole, "rms").query("step == 200")["rms"]
    np.testing.assert_array_equal(one, whole["rms"].sel(step=200).values.ravel())


def with_interventions(ds):
    extra = {
        "gate_ablated": (("noise_level", "sample", "ablation"), np.arange(12.0).reshape(2, 3, 2)),
        "gate_linear": (("noise_level", "sample", "ablation"), np.zeros((2, 3, 2))),
        "linearisation_error": (("noise_level", "ablation"), np.ones((2, 2))),
        "rank_correlation": (("noise_level", "intervention"), np.ones((2, 1))),
    }
    coords = {
        "ablation_name": ("ablation", ["a", "b"]),
        "ablation_kind": ("ablation", ["gate", "gate"]),
        "intervention": ["gate"],
    }
    return schema.validate(ds.assign(extra).assign_coords(coords))


def test_interventions(ds):
    ablated = with_interventions(ds)
    frame = dataframe.to_dataframe(ablated, "gate_ablated", "gate_linear")
    assert frame["gate_ablated"].tolist() == list(range(12))
    assert frame["ablation_name"].tolist() == ["a", "b"] * 6
    assert len(dataframe.to_dataframe(ablated, "linearisation_error")) == 4
    assert (
        dataframe.to_dataframe(ablated, "rank_correlation")["intervention"].tolist() == ["gate"] * 2
    )
    with pytest.raises(UsageError, match="not pooled"):
        dataframe.to_dataframe(ablated, "gate_ablated", per="level")


@pytest.mark.parametrize(
    ("names", "settings", "sentence"),
    [
        (("rsm",), {}, "there is no variable 'rsm'"),
        (("gate_ablated",), {}, "there is no variable 'gate_ablated'"),
        (("rms", "gate"), {}, r"'rms' over \(noise_level, sample, block\) and 'gate' over"),
        (("decoded_level", "decodability"), {}, "do not fit into one frame"),
        (("rms",), {"per": "block"}, "per='block' is unknown"),
        (("decodability",), {"per": "level"}, "one number for all noise levels"),
    ],
)
def test_what_does_not_fit_is_told(ds, names, settings, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        dataframe.to_dataframe(ds, *names, **settings)
    assert caught.value.hint


def test_seaborn_takes_one_line(ds):
    grid = sns.relplot(
        dataframe.to_dataframe(ds, "rms"), x="block", y="rms", hue="noise_level", kind="line"
    )
    axis = grid.axes.flat[0]
    drawn = [line for line in axis.get_lines() if len(line.get_xdata())]
    assert len(drawn) == 2 and drawn[0].get_xdata().tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(drawn[0].get_ydata(), ds["rms"].values[0].mean(axis=0), rtol=1e-5)
    plt.close(grid.figure)
