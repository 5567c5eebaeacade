"""The folder of an analysis: nothing in it before the end, nothing lost, one writer."""

import json
import os

import numpy as np
import pytest

from dar_probe.analysis import Analysis, open_analysis
from dar_probe.errors import UsageError
from dar_probe.files import analysis_folder
from dar_probe.files.analysis_folder import OutputFolder
from dar_probe.runtime import system
from tests.helpers import synthetic

ARRAYS = {"loss": np.arange(3.0)}


def fill(folder):
    (folder / "summary.json").write_text("{}")


@pytest.mark.parametrize("swap", [True, False], ids=["exchange", "two renames"])
def test_publish_replaces_the_earlier_analysis(tmp_path, monkeypatch, swap):
    if not swap:
        monkeypatch.setattr(system, "RENAME_EXCHANGE", 1 << 20)  # no such flag: the call fails
    for text in ("first", "second"):
        with OutputFolder(tmp_path / "out", key={}) as folder:
            folder.publish(lambda f, text=text: (f / "report.html").write_text(text) and None)
    assert (tmp_path / "out" / "report.html").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failing_write_leaves_the_earlier_analysis(tmp_path):
    with OutputFolder(tmp_path / "out", key={}) as folder:
        folder.publish(fill)
    with pytest.raises(ZeroDivisionError), OutputFolder(tmp_path / "out", key={}) as folder:
        folder.publish(lambda f: 1 / 0)
    assert (tmp_path / "out" / "summary.json").read_text() == "{}"


def test_shards_are_kept_for_resume_and_for_nothing_else(tmp_path):
    with OutputFolder(tmp_path / "out", key={"seed": 0}) as folder:
        folder.save(4, ARRAYS)
    with OutputFolder(tmp_path / "out", key={"seed": 0}, resume=True) as folder:
        assert np.array_equal(folder.load(4)["loss"], ARRAYS["loss"])
        assert folder.load(5) is None
    with (
        pytest.raises(UsageError, match="other settings"),
        OutputFolder(tmp_path / "out", key={"seed": 1}, resume=True),
    ):
        pass
    with OutputFolder(tmp_path / "out", key={"seed": 1}) as folder:
        assert folder.load(4) is None


@pytest.mark.parametrize("name", ["pipe", "bomb"])
def test_hostile_shard_is_refused(tmp_path, name):
    with OutputFolder(tmp_path / "out", key={}) as folder:
        shard = folder.work / "000000.npz"
        if name == "pipe":
            os.mkfifo(shard)
        else:
            np.savez_compressed(shard, loss=np.zeros(2**22))
        with pytest.raises(UsageError, match="'000000.npz' of .* is damaged"):
            folder.load(0)


def test_damaged_shard_is_refused(tmp_path):
    with OutputFolder(tmp_path / "out", key={}) as folder:
        folder.save(0, ARRAYS)
        shard = folder.work / "000000.npz"
        shard.write_bytes(shard.read_bytes()[:-30])
        with pytest.raises(UsageError, match="damaged"):
            folder.load(0)


def test_one_writer_at_a_time(tmp_path):
    with (
        OutputFolder(tmp_path / "out", key={}),
        pytest.raises(UsageError, match="another process"),
        OutputFolder(tmp_path / "out", key={}),
    ):
        pass


def test_saving_beside_an_unfinished_analysis_keeps_its_shards(tmp_path):
    with OutputFolder(tmp_path / "out", key={"seed": 0}) as folder:
        folder.save(0, ARRAYS)
    with OutputFolder(tmp_path / "out") as folder:
        folder.publish(fill)
    with OutputFolder(tmp_path / "out", key={"seed": 0}, resume=True) as folder:
        assert folder.load(0) is not None


def test_target_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError), OutputFolder(tmp_path / "file", key={}):
        pass
    with pytest.raises(UsageError), OutputFolder(tmp_path / "file" / "below", key={}):
        pass


def test_a_folder_that_is_or_holds_the_current_one_is_not_replaced(tmp_path, monkeypatch):
    target = tmp_path / "out"
    (target / "figures").mkdir(parents=True)
    (tmp_path / "link").symlink_to(target)
    analysis_folder.check_target(target)
    for place in (target, target / "figures"):
        monkeypatch.chdir(place)
        for path in (target, tmp_path / "link"):
            with pytest.raises(UsageError, match="is or holds the current folder"):
                analysis_folder.check_target(path)
    monkeypatch.chdir(tmp_path)
    analysis_folder.check_target(target)


def test_analysis_saves_and_opens(tmp_path):
    analysis = Analysis(synthetic.dataset(routing="dar", chunk_size=4))
    analysis.save(tmp_path / "out")
    again = open_analysis(tmp_path / "out")
    assert again.metrics == analysis.metrics and again.verdict == analysis.verdict
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == analysis.summary
    assert analysis.name in repr(again) and again.verdict.sentence in repr(again)
    assert again.plot.dilution(analysis) is not None
    assert again.plot.heatmap("rms") is not None
