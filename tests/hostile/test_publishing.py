"""What writes a folder, stopped at every line, met by others, and read meanwhile."""

import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dar_probe.analysis import open_analysis
from dar_probe.errors import UsageError
from dar_probe.files import analysis_folder, atomic
from dar_probe.files.analysis_folder import OutputFolder
from dar_probe.probe import runner
from dar_probe.probe.options import OutputOptions
from dar_probe.results import store
from dar_probe.runtime import system
from tests.helpers import synthetic
from tests.hostile.commands import files as contents
from tests.hostile.commands import forked, hidden

TRACED = {analysis_folder.__file__, atomic.__file__}
OLD, NEW = {"summary.json": b"old"}, {"summary.json": b"new", "report.html": b"new"}


def fill(folder, what=NEW):
    for name, content in what.items():
        atomic.write_atomically(
            folder / name, lambda path, content=content: path.write_bytes(content)
        )


def work(out):
    """What a command does: shards, some of them there before, and then the whole."""
    with OutputFolder(out, key={}, resume=True) as folder:
        for index in range(2):
            if folder.load(index) is None:
                folder.save(index, {"loss": np.zeros(1)})
        folder.publish(fill)


def interrupted(call, at: int) -> bool:
    """Raise KeyboardInterrupt at the ``at``-th line; False where there are fewer lines."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            count += 1
            if count == at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before, open_before = sys.gettrace(), descriptors()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
        # Between two lines of Python nobody owns a descriptor; the end of a process closes it.
        for left in descriptors() - open_before:
            os.close(left)
    return False


def descriptors() -> set[int]:
    listed = os.listdir("/proc/self/fd")
    return {int(name) for name in listed if os.path.lexists(f"/proc/self/fd/{name}")}


@pytest.mark.parametrize("swap", [True, False], ids=["exchange", "two renames"])
def test_ctrl_c_at_every_line(tmp_path, monkeypatch, swap):
    """The target is whole, and the next run finishes."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a kill of the process needs no disk
    if not swap:
        # No such flag: the call fails.
        monkeypatch.setattr(system, "RENAME_EXCHANGE", 1 << 20)

    def body() -> None:
        found, at = [], 0
        while True:
            at += 1
            out = tmp_path / str(at) / "out"
            out.mkdir(parents=True)
            fill(out, OLD)
            if not interrupted(lambda out=out: work(out), at):
                break
            found.append(contents(out) if out.exists() else None)
            assert found[-1] in ((OLD, NEW) if swap else (OLD, NEW, None)), at
            assert hidden(out.parent) <= {".out.partial"}, at
            work(out)
            assert contents(out) == NEW, at
            assert hidden(out.parent) == set(), at
        assert at > 100 and OLD in found and NEW in found

    warnings.simplefilter("ignore", ResourceWarning)  # files that were just being opened
    forked(body)


def test_a_kill_between_two_renames_loses_nothing(tmp_path):
    out = tmp_path / "out"
    with OutputFolder(out, key={}) as folder:
        (folder.work / "old").mkdir()
        fill(folder.work / "old", OLD)
    with OutputFolder(out, key={}):
        assert contents(out) == OLD
    assert hidden(tmp_path) == set()


def test_what_came_into_the_folder_meanwhile_stays(tmp_path):
    """A measurement takes hours; the shards wait until the folder is the analysis's own again."""
    out = tmp_path / "out"
    work(out)
    with OutputFolder(out, key={}) as folder:
        folder.save(0, {})
        (out / "notes.txt").write_text("mine")
        with pytest.raises(UsageError, match=r"notes\.txt"):
            folder.publish(fill)
    assert (out / "notes.txt").read_text() == "mine" and hidden(tmp_path) == {".out.partial"}
    (out / "notes.txt").unlink()
    work(out)
    assert contents(out) == NEW and hidden(tmp_path) == set()


def test_every_file_is_on_the_disk_before_its_folder_takes_the_place(tmp_path, monkeypatch):
    """Power fails: a name must not come to the disk before its bytes."""
    synced, real = set(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.add(os.fstat(file).st_ino), real(file)))
    with OutputFolder(tmp_path / "out") as folder:
        folder.publish(lambda fresh: [(fresh / n).write_bytes(c) for n, c in NEW.items()])
    assert synced >= {path.stat().st_ino for path in (tmp_path / "out").iterdir()}
    assert synced >= {(tmp_path / "out").stat().st_ino, tmp_path.stat().st_ino}


def test_nothing_is_removed_through_a_link(tmp_path):
    """Somebody else put a link where the work folder is going to be, in a folder of all."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for state in ("partial", "saving"):
        (tmp_path / f".out.{state}").symlink_to("mine")
    for key in ({}, None):
        with pytest.raises(UsageError, match="cannot be written"):
            OutputFolder(tmp_path / "out", key=key).__enter__()
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_a_finished_analysis_drops_what_a_kill_left(tmp_path):
    """Killed after the new folder was in place, and before the shards were gone."""
    ds = synthetic.dataset(blocks=1, samples=1, levels=1)
    key = {"seed": json.loads(ds.attrs["manifest"])["seed"]}
    out = tmp_path / "out"
    with OutputFolder(out) as folder:
        folder.publish(lambda fresh: store.write(ds, fresh / "analysis.nc"))
    with OutputFolder(out, key=runner.shard_key(key)) as folder:
        folder.save(0, {})
    run = runner.Run(output=OutputOptions(out=out, resume=True, figures=False))
    found = run.finish(SimpleNamespace(key=key))
    assert found.whole.identical(ds) and hidden(tmp_path) == set()


def test_who_waits_for_a_folder_never_holds_one_that_is_gone(tmp_path, monkeypatch):
    """The holder ends, and removes the work folder, after another opened it to lock it."""
    first = OutputFolder(tmp_path / "out").__enter__()
    real = os.open

    def slow(path, *arguments):
        descriptor = real(path, *arguments)
        monkeypatch.setattr(os, "open", real)
        first.__exit__(None, None, None)
        return descriptor

    monkeypatch.setattr(os, "open", slow)
    with OutputFolder(tmp_path / "out") as second:
        assert second.work.is_dir()
        second.publish(lambda fresh: (fresh / "summary.json").write_text("{}"))
    assert hidden(tmp_path) == set()


def test_a_reader_meets_the_old_or_the_new(tmp_path):
    """Also of the two files that one audit has: never one of either."""
    out, made = tmp_path / "out", []
    for seed in (0, 1):
        pair = [synthetic.dataset(blocks=1, samples=1, levels=1, seed=seed + n) for n in (0, 10)]
        for ds in pair:
            ds.attrs["manifest"] = json.dumps(json.loads(ds.attrs["manifest"]) | {"training": {}})
        (tmp_path / str(seed)).mkdir()
        for ds, name in zip(pair, ("analysis.nc", "before.nc"), strict=True):
            store.write(ds, tmp_path / str(seed) / name)
        made.append(pair)
    ready = [contents(tmp_path / str(seed)) for seed in (0, 1)]
    shutil.copytree(tmp_path / "0", out)
    for _ in range(2):  # the first one also imports
        began = time.monotonic()
        open_analysis(out)
    pause, rng = time.monotonic() - began, random.Random(0)
    child = os.fork()
    if child == 0:
        try:
            for turn in range(10**6):
                with OutputFolder(out) as folder:
                    folder.publish(lambda fresh, turn=turn: fill(fresh, ready[turn % 2]))
                time.sleep(rng.uniform(0.5, 3) * pause)
        finally:
            os._exit(1)
    seen: list[int] = []
    try:
        while len(seen) < 4 or len(set(seen)) < 2:
            assert time.monotonic() - began < 120, seen
            found = open_analysis(out)
            seen.append([found.whole.identical(ds) for ds, _ in made].index(True))
            assert found.before.whole.identical(made[seen[-1]][1])
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
