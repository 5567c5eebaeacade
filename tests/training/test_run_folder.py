"""A run's folder belongs to one process, and a full disk costs it nothing that was saved."""

import os
import resource
from dataclasses import replace

import pytest
import torch

from dar_probe.errors import CheckpointError, UsageError
from dar_probe.training.loop import COLUMNS, train
from dar_probe.training.run_folder import RunFolder
from tests.training.test_loop import SMALL, load, same


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(SMALL, tmp_path_factory.mktemp("one") / "run").parents[1]


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    folder = RunFolder(tmp_path / "run", COLUMNS)
    with folder.held(), pytest.raises(UsageError, match="written by another process"):
        train(SMALL, tmp_path / "run", resume=True)
    assert files(tmp_path) == []
    assert train(SMALL, tmp_path / "run", resume=True).is_file()


@pytest.mark.parametrize("full", ["checkpoint", "table"])
def test_what_a_full_disk_stops_is_continued(whole, full, tmp_path):
    size = os.path.getsize(whole / "checkpoints" / "step-0000002.pt")
    room = size - 1000 if full == "checkpoint" else 200  # the table's first row ends at 241 bytes
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(UsageError, match="cannot be written: File too large"):
            train(SMALL, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path / "run") == ["metrics.csv"]
    last = train(SMALL, tmp_path / "run", resume=True)
    assert same(load(last), load(whole / "checkpoints" / last.name))
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.mark.parametrize("name", ["file", "file/run", "a" * 256, "nul\0"])
def test_a_folder_that_cannot_be(name, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="cannot be written|is no name"):
        train(SMALL, tmp_path / name)
    assert files(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("args"),
        lambda state: state.update(step=4),
        lambda state: state["args"].update(train=7),
        lambda state: state.pop("opt"),
        lambda state: state["ema"].popitem(),
        lambda state: state["opt"]["param_groups"].pop(),
    ],
    ids=["no args", "another step", "no settings", "no optimiser", "less ema", "other groups"],
)
def test_a_changed_checkpoint_is_named(whole, change, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "step-0000002.pt"
    path.parent.mkdir(parents=True)
    (tmp_path / "run" / "metrics.csv").write_text("step\n")
    state = load(whole / "checkpoints" / path.name)
    change(state)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="step-0000002.pt"):
        train(SMALL, tmp_path / "run", resume=True)


def test_a_setting_that_did_not_exist_was_at_its_default(whole, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "step-0000006.pt"
    path.parent.mkdir(parents=True)
    (tmp_path / "run" / "metrics.csv").write_bytes((whole / "metrics.csv").read_bytes())
    state = load(whole / "checkpoints" / path.name)
    del state["args"]["train"]["accumulate"]
    torch.save(state, path)
    assert train(SMALL, tmp_path / "run", resume=True) == path
    with pytest.raises(UsageError, match="accumulate is 1 there and 2 here"):
        train(replace(SMALL, accumulate=2), tmp_path / "run", resume=True)
