"""The study of joint models' blocks runs, and its table has a row for every model and skip."""

import re
from pathlib import Path

import pytest

from tests.helpers import warm

SCRIPT = Path(__file__).resolve().parents[2] / "fixtures" / "joint_blocks.py"
CELL = re.compile(r"-?\d+\.\d+ \[-?\d+\.\d+, -?\d+\.\d+\]")


@pytest.mark.slow
@pytest.mark.extras
def test_every_model_and_skip_has_a_row(tmp_path):
    done = warm.script(SCRIPT, "--steps", 3, "--samples", 4, "--seeds", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in done.stdout.splitlines()[2:]]  # fmt: skip
    names = [(name, skip) for name in ("SD3", "Flux") for skip in ("both", "image", "text")]
    assert [tuple(row[:2]) for row in rows] == names
    assert all(CELL.fullmatch(cell) for row in rows for cell in row[2:])
    assert len(list(tmp_path.glob("*.pt"))) == 2
