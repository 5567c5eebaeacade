"""A trajectory on disk: it grows, goes back, and belongs to one run of one model."""

import json

import pytest
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.results import schema, store, trajectory
from dar_probe.results.trajectory_store import TrajectoryFile
from tests.helpers import synthetic

SMALL = {"blocks": 2, "samples": 2, "levels": 2}


def analysis(step):
    """Return an analysis as it stands in a trajectory, where a seed tells the steps apart."""
    ds = synthetic.dataset(**SMALL, seed=step, name=f"step-{step}.pt")
    whole = schema.manifest(ds)
    whole["seed"] = 0
    ds.attrs["manifest"] = json.dumps(whole)
    return ds


def steps_in(path):
    return [step for step, _ in trajectory.split(store.read(path))]


def test_it_grows_and_is_continued(tmp_path):
    path = tmp_path / "trajectory.nc"
    file = TrajectoryFile(path)
    assert file.steps == [] and not path.exists()
    for step in (10, 20):
        file.add(step, analysis(step))
        assert file.steps == steps_in(path)
    again = TrajectoryFile(str(path))
    assert again.steps == [10, 20]
    again.add(30, analysis(30))
    assert steps_in(path) == [10, 20, 30]
    for step, ds in trajectory.split(store.read(path)):
        xr.testing.assert_equal(ds, analysis(step))
        assert schema.manifest(ds)["checkpoint"]["name"] == f"step-{step}.pt"


def test_training_that_went_back_drops_what_came_after(tmp_path):
    path = tmp_path / "trajectory.nc"
    file = TrajectoryFile(path)
    for step in (10, 20, 30):
        file.add(step, analysis(step))
    file.add(20, analysis(25))  # the same step again takes the place of the first one
    assert file.steps == steps_in(path) == [10, 20]
    xr.testing.assert_equal(trajectory.split(store.read(path))[1][1], analysis(25))
    before = path.stat().st_mtime_ns
    file.rewind(20)  # nothing is after it: the file stays as it is
    assert path.stat().st_mtime_ns == before
    file.rewind(15)
    assert file.steps == steps_in(path) == [10]
    file.rewind(9)
    assert file.steps == [] and not path.exists()
    file.rewind(9)
    file.add(10, analysis(10))
    assert steps_in(path) == [10]


def test_another_process_at_the_same_file_is_noticed(tmp_path):
    path = tmp_path / "trajectory.nc"
    one, other = TrajectoryFile(path), TrajectoryFile(path)
    one.add(10, analysis(10))
    for act in (
        lambda: other.add(20, analysis(20)),
        lambda: TrajectoryFile.add(other, 5, analysis(5)),
    ):
        with pytest.raises(UsageError, match="changed by another process"):
            act()
    assert steps_in(path) == [10]
    path.unlink()  # removed by hand: nothing is lost by writing it anew
    one.add(20, analysis(20))
    assert steps_in(path) == [10, 20]


def test_the_analysis_of_one_moment_is_no_trajectory(tmp_path):
    store.write(analysis(1), tmp_path / "analysis.nc")
    with pytest.raises(UsageError, match="analysis of one moment"):
        TrajectoryFile(tmp_path / "analysis.nc")


def test_a_place_where_no_file_can_be_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        TrajectoryFile(tmp_path / "file" / "trajectory.nc")


LASTING = {
    "seed": (lambda m: m.update(seed=1), "seed"),
    "sites": (lambda m: m.update(sites=["other"]), "sites"),
    "depth": (lambda m: m["model"].update(depth=3), "depth"),
    "routing": (lambda m: m["model"].update(routing="dar"), "routing"),
    "samples": (lambda m: m["config"].update(samples=9), "samples"),
    "data": (lambda m: m["config"].update(data_sha256="f" * 64), "data_sha256"),
    # Of data and samples, which both change the hash, the number is the better word.
    "both": (lambda m: m["config"].update(data_sha256="f" * 64, samples=9), "samples"),
    "new": (lambda m: m["config"].update(unheard_of=1), "unheard_of"),
    "gone": (lambda m: m["model"].pop("width"), "width"),
}


@pytest.mark.parametrize("change", LASTING)
def test_another_model_or_grid_is_named_by_what_differs(tmp_path, change):
    file = TrajectoryFile(tmp_path / "trajectory.nc")
    other = schema.manifest(analysis(1))
    act, name = LASTING[change]
    act(other)
    file.check(other)  # nothing is there that it could differ from
    file.add(10, analysis(10))
    with pytest.raises(UsageError, match=rf"of another model or grid: it differs in {name}\n"):
        file.check(other)
    with pytest.raises(UsageError, match=rf"it differs in {name}\n"):
        TrajectoryFile(tmp_path / "trajectory.nc").check(other)


def test_what_passes_while_a_model_is_trained_makes_no_other_model(tmp_path):
    file = TrajectoryFile(tmp_path / "trajectory.nc")
    file.add(10, analysis(10))
    other = schema.manifest(analysis(1))
    other["model"].update(name="other", fresh=True)
    other["config"].update(batch_size=3)
    other.update(device="cuda", created="later", assumptions=["more"], checkpoint={"name": "x"})
    file.check(other)
