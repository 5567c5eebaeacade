"""A short run of the fuzz target: 63 mutated files of each kind, and proof that it would notice."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from dar_probe.errors import CheckpointError
from tests.hostile import fuzz


@pytest.mark.parametrize("name", fuzz.KINDS)
def test_mutants_are_read_or_refused(name: str, tmp_path: Path) -> None:
    counts = fuzz.fuzz(name, range(63), tmp_path)
    assert counts.total() == 63 and set(counts) <= {"read", "refused"}, counts
    assert counts["refused"] > 30


def test_a_crash_a_hang_an_error_and_a_loss_of_memory_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 0.3)
    calls = [
        lambda path: os.kill(os.getpid(), signal.SIGKILL),
        lambda path: time.sleep(60),
        lambda path: bytearray(b"x" * 100 * 2**20),
        lambda path: [].pop(),
        lambda path: 1.5,
    ]

    def read(path: Path) -> object:
        return calls[path.read_bytes()[0] % len(calls)](path)

    kind = fuzz.Kind(lambda path: path.write_bytes(b"a"), read, bytearray, CheckpointError)
    monkeypatch.setitem(fuzz.KINDS, "planted", kind)
    monkeypatch.setattr(fuzz, "mutated", lambda good, other, rng: bytes([rng.randrange(5)]))
    counts = fuzz.fuzz("planted", range(5, 15), tmp_path / "x", tmp_path / "kept")
    assert counts.total() == 10
    assert any("crashes by signal 9" in found for found in counts)
    assert any("hangs by signal 9" in found for found in counts)
    assert any(re.fullmatch(r"read, but for \d{3} MiB", found) for found in counts)
    assert {"IndexError: pop from empty list", "gave a float"} <= set(counts)
    assert len(list((tmp_path / "kept").iterdir())) == 10
