"""The table of lanes, and the workflows that run them, say what is there."""

import re
from pathlib import Path

import pytest

from tests.conftest import APART, HERE, LANES, holds, scope

ROOT = HERE.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPT = re.compile(r"\.ci/\w+|tests/[\w/]+\.py")
PINNED = re.compile(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


@pytest.mark.parametrize("row", LANES)
def test_every_row_holds_a_test(row, request):
    file, _, prefix = row.partition("::")
    path = HERE / file
    assert path.exists(), row
    if prefix:
        assert re.search(rf"^def {prefix}", path.read_text(encoding="utf-8"), re.MULTILINE), row
    known = {line.split(":")[0] for line in request.config.getini("markers")}
    assert set(LANES[row].split()) <= known


def test_rows_hold_folders_files_and_tests():
    assert holds("models/diffusers", "models/diffusers/test_sites.py", "test_x")
    assert not holds("models/diff", "models/diffusers/test_sites.py")
    assert holds("test_style.py::test_ruff", "test_style.py", "test_ruff[check]")
    assert not holds("test_style.py::test_ruff", "test_style.py", "test_mypy")
    assert all((HERE / file).is_file() for file in APART)


def test_workers_run_whole_files_unless_their_tests_share_nothing():
    assert scope("tests/laws/test_planted.py::test_x[a::b]") == "tests/laws/test_planted.py"
    assert scope("tests/hostile/test_kill.py::test_x[a]") == "tests/hostile/test_kill.py::test_x[a]"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_pinned_bounded_and_least_privileged(path: Path):
    text = path.read_text(encoding="utf-8")
    used = [line.strip("- ") for line in text.splitlines() if "uses:" in line]
    assert used and all(PINNED.fullmatch(line) for line in used), used
    assert "\npermissions:\n  contents: read\nconcurrency:\n" in text
    assert text.count("runs-on:") == text.count("timeout-minutes:")
    assert "secrets." not in text and "write-all" not in text
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_workflows_run_is_there(subtests: pytest.Subtests, path: Path):
    for name in SCRIPT.findall(path.read_text(encoding="utf-8")):
        with subtests.test(name=name):
            assert (ROOT / name).is_file(), name
