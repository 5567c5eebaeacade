"""Ten kills at random moments, as ``kill.py`` does many."""

from functools import partial
from pathlib import Path

import pytest

from dar_probe.reports import printing
from tests.hostile import kill


@pytest.mark.parametrize("name, times", [("analyze", 2), ("train", 7), ("report", 1)])
def test_a_killed_command_leaves_whole_files_and_resumes(
    name: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A page and four files of figures are enough to be killed at; kill.py itself writes all.
    few = partial(printing.write_all, only=("dilution", "sources"))
    monkeypatch.setattr(printing, "write_all", few)
    seen = kill.kill(kill.CASES[name](tmp_path), times, seed=0)
    assert seen.total() == times
