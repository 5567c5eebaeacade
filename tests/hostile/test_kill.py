"""Ten kills at random moments, as ``kill.py`` does many."""

from pathlib import Path

import pytest

from tests.hostile import kill


@pytest.mark.parametrize("name, times", [("analyze", 2), ("train", 7), ("report", 1)])
def test_a_killed_command_leaves_whole_files_and_resumes(
    name: str, times: int, tmp_path: Path
) -> None:
    seen = kill.kill(kill.CASES[name](tmp_path), times, seed=0)
    assert seen.total() == times
