"""The diagnosis during a training run: it changes nothing, and outlives kills as weights do."""

from dataclasses import replace

import pytest

import dar_probe as dp
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.results import store, trajectory
from dar_probe.training.loop import train
from tests.training.test_loop import SMALL, load
from tests.training.test_loop import same as same_state

PROBED = replace(
    SMALL, steps=8, checkpoint_every=4, probe_every=3, probe_samples=2, probe_levels=2,
    routing="dar", seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(PROBED, tmp_path_factory.mktemp("one") / "run").parents[1]


def analyses(folder):
    return dict(trajectory.split(store.read(folder / "trajectory.nc")))


def killed(folder, at, **changes):
    """Train until step ``at`` is done."""

    def stop(progress):
        if progress.step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(replace(PROBED, **changes), folder, on_step=stop)
    return folder


def test_the_diagnosis_changes_no_number_of_the_training(whole, tmp_path):
    plain = train(replace(PROBED, probe_every=0), tmp_path / "run")
    probed = load(whole / "checkpoints" / plain.name)
    for part in ("model", "ema", "opt"):
        assert same_state(load(plain)[part], probed[part])
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert not (tmp_path / "run" / "trajectory.nc").exists()


def test_the_last_step_is_what_analyze_says_of_the_last_checkpoint(whole):
    found = dp.open_analysis(whole / "trajectory.nc")
    assert found.trajectory["step"].values.tolist() == [0, 3, 6, 8]
    assert found.manifest["checkpoint"] == {"name": "run", "weights": "ema"}
    file = whole / "checkpoints" / "step-0000008.pt"
    wanted = dp.analyze(file, data="digits", samples=2, noise_levels=2, seed=3)
    assert found.dataset.drop_attrs().identical(wanted.dataset.drop_attrs())
    for part in ("config", "sites", "seed", "assumptions"):
        assert found.manifest[part] == wanted.manifest[part]


def test_a_killed_run_ends_with_the_trajectory_of_a_whole_one(whole, tmp_path):
    folder = killed(tmp_path / "run", 7).rename(tmp_path / "moved")
    assert list(analyses(folder)) == [0, 3, 6]
    (folder / ".trajectory.nc.7.tmp").write_text("half")
    last = train(PROBED, folder, resume=True)
    assert same_state(load(last), load(whole / "checkpoints" / last.name))
    assert not list(folder.glob(".*"))
    found, wanted = (store.read(run / "trajectory.nc") for run in (folder, whole))
    assert found.drop_attrs().identical(wanted.drop_attrs())


def test_a_run_goes_on_with_another_cadence_or_none_but_not_on_another_grid(tmp_path):
    folder = killed(tmp_path / "run", 7)
    with pytest.raises(UsageError, match="another model or grid: it differs in samples"):
        train(replace(PROBED, probe_samples=3), folder, resume=True)
    assert list(analyses(folder)) == [0, 3]  # 6 was after the checkpoint
    train(replace(PROBED, probe_every=5), folder, resume=True)
    assert list(analyses(folder)) == [0, 3, 5, 8]
    train(replace(PROBED, steps=10, probe_every=0), folder, resume=True)
    assert list(analyses(folder)) == [0, 3, 5, 8]
    (folder / "checkpoints" / "step-0000010.pt").unlink()
    (folder / "checkpoints" / "step-0000008.pt").unlink()
    (folder / "trajectory.nc").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"trajectory\.nc' is not a NetCDF-4 file"):
        train(PROBED, folder, resume=True)


def test_somebody_elses_trajectory_is_left_alone(tmp_path):
    (tmp_path / "trajectory.nc").write_text("precious")
    (tmp_path / ".trajectory.nc.7.tmp").write_text("precious")
    for resume in (False, True):
        with pytest.raises(UsageError, match="not empty"):
            train(PROBED, tmp_path, resume=resume)
    assert (tmp_path / "trajectory.nc").read_text() == "precious"
