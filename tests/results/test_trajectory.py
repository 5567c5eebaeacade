"""A trajectory: analyses joined along the training steps, and taken apart again."""

import argparse
import json

import numpy as np
import pytest
import torch
import xarray as xr

import dar_probe as dp
from dar_probe.analysis import Analysis
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.probe.steps import step_of
from dar_probe.results import schema, store, trajectory
from dar_probe.results.streams import single
from tests.helpers import tiny
from tests.helpers.synthetic import dataset, trained

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


def test_the_last_step_is_the_last_of_any_number_and_one_moment_is_its_own():
    parts = [
        (step, dataset(blocks=2, samples=2, levels=2, seed=step, name=f"{step}.pt"))
        for step in (30, 10, 20, 40)
    ]
    for count in (1, 2, 3, 4):
        joined = trajectory.join(parts[:count])
        last, wanted = max(parts[:count], key=lambda part: part[0])
        found = single(joined)
        xr.testing.assert_equal(found, wanted)
        assert "step" not in found.dims
        assert schema.manifest(found)["checkpoint"]["name"] == f"{last}.pt"
        assert joined["step"].values.tolist() == sorted(step for step, _ in parts[:count])
    assert single(parts[0][1]) is parts[0][1]


def test_unlike_analyses_are_not_joined():
    with pytest.raises(UsageError, match="two of the analyses are of step 7"):
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


def test_a_step_is_the_last_number_of_a_name():
    names = {"step-0000020.pt": 20, "0400000.pt": 400000, "run3/checkpoint-7": 7, "v2-ema.pt": 2}
    for name, step in names.items():
        assert step_of(name) == step
    for name in ("model.pt", "run3/last.safetensors", "x" + "9" * 40):
        with pytest.raises(UsageError, match="tells no training step"):
            step_of(name)


def save(path, **sizes):
    made = tiny.model(size=8, dtype=torch.float32, **sizes)
    args = argparse.Namespace(num_heads=2)
    torch.save({"ema": made.state_dict(), "args": args}, path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three checkpoints as of one run."""
    folder = tmp_path_factory.mktemp("run")
    for step in (5, 10, 20):
        save(folder / f"step-{step:04d}.pt", seed=step)
    return folder


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.usefixtures("undrawn")
def test_checkpoints_of_one_run_give_one_dataset(run, tmp_path):
    paths = sorted(run.glob("*.pt"))
    cells = []
    settings = {"noise_levels": 2, "samples": 2, "data": "digits"}
    found = dp.analyze(
        paths[::-1], **settings, out=tmp_path / "all", on_cells=lambda *a: cells.append(a)
    )
    assert cells[-1] == (12, 12) and cells == sorted(cells)
    for (step, one), path in zip(found.steps, paths, strict=True):
        alone = dp.analyze(path, **settings).dataset
        assert step == step_of(path)
        xr.testing.assert_equal(one.dataset, alone)
    again = dp.open_analysis(tmp_path / "all")
    assert again.trajectory.identical(found.trajectory)
    assert again.dataset.identical(found.steps[-1][1].dataset)
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert [item["step"] for item in summary["steps"]] == [5, 10, 20]
    assert summary["steps"][-1]["metrics"] == summary["metrics"]

    before = files(tmp_path / "all")
    calls = []
    resumed = {"out": tmp_path / "all", "resume": True, "on_cells": lambda *a: calls.append(a)}
    dp.analyze(paths, **settings, **resumed)
    assert files(tmp_path / "all") == before and not calls
    assert not list(tmp_path.glob(".all*"))
    dp.analyze(paths[1:], **settings, **resumed)  # fewer steps: nothing is measured again
    assert not calls
    assert dp.open_analysis(tmp_path / "all").trajectory["step"].values.tolist() == [10, 20]
    dp.analyze(paths, **settings, **resumed)  # one more: it alone is measured
    assert calls == [(4, 12)]
    assert (
        dp.open_analysis(tmp_path / "all")
        .trajectory.drop_attrs()
        .identical(found.trajectory.drop_attrs())
    )


def test_what_is_no_single_run_is_refused_and_nothing_is_written(run, tmp_path):
    two = [run / "step-0005.pt", run / "step-0005.pt"]
    with pytest.raises(UsageError, match="1 different training step"):
        dp.analyze(two, out=tmp_path / "out")
    with pytest.raises(UsageError, match="no checkpoint"):
        dp.analyze([])
    other = tmp_path / "step-0007.pt"
    save(other, depth=3)
    with pytest.raises(UsageError, match="differ in reader_name"):
        dp.analyze(
            [run / "step-0005.pt", other], data="digits", samples=2, noise_levels=2,
            out=tmp_path / "out",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_trajectory_goes_on_where_it_was(run, tmp_path):
    paths = sorted(run.glob("*.pt"))
    settings = {"noise_levels": 2, "samples": 2, "data": "digits", "batch_size": 2}
    seen = []

    def stop(done, cells):
        seen.append(done)
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dp.analyze(paths, **settings, out=tmp_path / "out", on_cells=stop)
    assert not (tmp_path / "out").exists()
    after = []
    whole = dp.analyze(
        paths, **settings, out=tmp_path / "out", resume=True, on_cells=lambda *a: after.append(a[0])
    )
    assert min(after) >= 6  # the first step and the first half of the second are not repeated
    plain = dp.analyze(paths, **settings)
    assert whole.trajectory.drop_attrs().identical(plain.trajectory.drop_attrs())


def test_every_step_is_judged_by_the_users_rule():
    grown = Analysis(trained(blocks=4, samples=2, levels=2, steps=3), fail_on="inflation > 3")
    assert [one.verdict.status for _, one in grown.steps] == ["pass", "fail", "fail"]
    assert all(
        "the rule to fail on inflation > 3" in one.verdict.sentence for _, one in grown.steps
    )
