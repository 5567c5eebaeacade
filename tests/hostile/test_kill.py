"""One kill at a random moment, as ``kill.py`` does many."""

from pathlib import Path

import pytest

from tests.hostile import kill


@pytest.mark.parametrize("name", ["analyze", "train"])  # report is a part of analyze
def test_a_killed_command_leaves_whole_files_and_resumes(name: str, tmp_path: Path) -> None:
    seen = kill.kill(kill.CASES[name](tmp_path), 1, seed=0)
    assert seen.total() == 1
