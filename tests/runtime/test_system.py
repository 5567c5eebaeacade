"""The system's own calls: they do what Python's ``os`` cannot, and say where they cannot."""

import ctypes
import os
import subprocess
import sys

import pytest

from dar_probe.runtime import system


def test_two_folders_are_swapped_in_one_step(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / folder.name).touch()
    assert system.exchange(one, other) is sys.platform.startswith("linux")
    if sys.platform.startswith("linux"):
        assert (one / "other").exists() and (other / "one").exists()
    assert system.exchange(one, tmp_path / "nothing") is False


def test_a_system_without_the_calls_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    assert system.exchange(tmp_path, tmp_path) is False
    system.trim_memory()


def test_freed_memory_can_be_given_back():
    kept = [bytearray(100_000) for _ in range(10)]
    system.trim_memory()
    assert len(kept) == 10


def test_a_lock_is_held_until_its_process_ends(tmp_path):
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    try:
        assert system.lock(first) and system.lock(first)
        assert not system.lock(second)
        code = (
            "import os, sys\nfrom dar_probe.runtime import system\n"
            "print(system.lock(os.open(sys.argv[1], os.O_RDONLY)))"
        )
        call = [sys.executable, "-c", code, str(tmp_path)]
        run = [subprocess.run(call, capture_output=True, text=True, check=True)]
        os.close(first)
        run.append(subprocess.run(call, capture_output=True, text=True, check=True))
        assert [done.stdout for done in run] == ["False\n", "True\n"]
        assert system.lock(second)  # the process that had it has ended
    finally:
        os.close(second)
    with pytest.raises(OSError):
        system.lock(second)
