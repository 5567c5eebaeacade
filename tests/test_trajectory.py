"""A trajectory: analyses joined along the training steps, and taken apart again."""

import json

import numpy as np
import pytest
import xarray as xr

from dar_probe import schema, store, trajectory
from dar_probe.errors import CheckpointError, UsageError
from tests.synthetic import dataset, trained

SMALL = {"blocks": 3, "samples": 2, "levels": 2}


def test_join_and_split_are_inverse(tmp_path):
    pairs = [(step, dataset(**SMALL, seed=step, name=f"{step}.pt")) for step in (30, 4, 200)]
    joined = trajectory.join(pairs)
    assert joined["step"].values.tolist() == [4, 30, 200]
    assert joined["gate"].dims == ("step", *schema.VARIABLES["gate"].all_dims)
    store.write(joined, tmp_path / "analysis.nc")
    for step, found in trajectory.split(store.read(tmp_path / "analysis.nc")):
        expected = dict(pairs)[step]
        xr.testing.assert_equal(schema.validate(found), expected)
        assert schema.manifest(found) == schema.manifest(expected)
    assert schema.manifest(joined)["checkpoint"]["name"] == "200.pt"


def test_unlike_analyses_are_not_joined():
    with pytest.raises(UsageError, match="two of the checkpoints are of step 7"):
        trajectory.join([(7, dataset(**SMALL)), (7, dataset(**SMALL))])
    for other, name in (({"levels": 3}, "noise_level"), ({"blocks": 4}, "reader_name")):
        with pytest.raises(UsageError, match=f"steps 1 and 2 .* differ in {name}"):
            trajectory.join([(2, dataset(**SMALL)), (1, dataset(**{**SMALL, **other}))])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda ds: ds.isel(step=[1, 0]), "step must rise"),
        (lambda ds: ds.drop_vars("step"), "no index coordinate 'step'"),
        (lambda ds: ds.assign(rms=ds["rms"].isel(step=0, drop=True)), "'rms' has dims"),
        (lambda ds: ds.isel(step=[0]), "does not tell its steps apart"),
    ],
)
def test_damaged_trajectories_are_refused(damage, message):
    with pytest.raises(CheckpointError, match=message):
        schema.validate(damage(trained(**SMALL, steps=2)))


def test_planted_symptoms_grow_over_the_steps():
    grown = trained(blocks=6, samples=2, levels=2, spread=0.0)
    last = np.sqrt((grown["rms"].sel(block=6) ** 2).mean(("noise_level", "sample")))
    assert last.values == pytest.approx(10.0 ** np.array([0.25, 0.5, 0.75, 1.0]), rel=1e-5)
    assert json.loads(grown.attrs["manifest"])["steps"][0]["checkpoint"]["name"] != "synthetic.pt"
