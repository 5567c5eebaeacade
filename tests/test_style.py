"""Ruff and mypy belong to the tests: one command tells whether a change is good."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy(tmp_path):
    # cli/ and reports/ are dar_probe.cli and dar_probe.reports: a tree of links shows them so.
    package = tmp_path / "dar_probe"
    package.mkdir()
    for entry in (ROOT / "dar_probe").iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    for inside, outside in (("cli", "cli"), ("reports", "reports"), ("digits", "fixtures/digits")):
        (package / inside).symlink_to(ROOT / outside)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"),
         "--cache-dir", str(ROOT / ".mypy_cache"), "-p", "dar_probe"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
