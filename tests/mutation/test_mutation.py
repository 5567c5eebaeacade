"""The mutation lane itself: which mutants it makes, and that it kills what a test notices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation import run
from tests.mutation.mutants import mutants, sample
from tests.mutation.server import _within

ROOT = Path(__file__).resolve().parents[2]
CODE = '''"""A module."""

import math

LIMIT = 3


def above(value: int, *, strict: bool = True) -> bool:
    """Say whether a value is above the limit."""
    if value < 0:
        raise ValueError(f"{value - 1} is below zero")
    return value > LIMIT



def untested(value: int) -> int:
    return value * LIMIT
'''
TEST = """import pytest
from planted.module import above

def test_above():
    assert above(4) and not above(3) and not above(2)

def test_below_zero():
    with pytest.raises(ValueError):
        above(-1)
"""


def changed(code: str) -> set[str]:
    return {f"{mutant.function}: {mutant.change}" for mutant in mutants("planted.py", code)}


def test_every_kind_of_mutant_is_made():
    assert changed(CODE) == {
        ": 3 becomes 4",
        "above: True becomes False",
        "above: < becomes <=",
        "above: 0 becomes 1",
        "above: the guard is dropped",
        "above: > becomes >=",
        "untested: * becomes /",
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a + b * c", {"a - b * c", "a + b / c"}),
        ("a and b or c", {"a or b or c", "a and b and c"}),
        ("not a", {" a"}),
        ("-a", {"a"}),
        ("-(a // 2)", {"(a // 2)", "-(a / 2)", "-(a // 3)"}),
        ("a is not None", {"a is None"}),
        ("a not in b", {"a in b"}),
        ("a < b <= c", {"a <= b <= c", "a < b < c"}),
        ("x.mean(0).sum()", {"x.sum(0).sum()", "x.mean(1).sum()", "x.mean(0).mean()"}),
        ("abs(a)", {"(a)"}),
        ("x.abs()", {"x"}),
        ("np.sqrt(a)", {"(a)"}),
        ("max(a, b)", {"min(a, b)"}),
        ("a[1:]", {"a[2:]"}),
        ("a[n:]", {"a[(n) + 1:]"}),
        ("a[:-1]", {"a[:1]", "a[:-2]"}),
        ("0.5", {"1.0"}),
        ("zip(a, b, strict=True)", set()),
        ("'text' + a", set()),
        ("f'{a + 1}'", set()),
    ],
)
def test_what_becomes_of_an_expression(old, new):
    """A name that is not ASCII stands before: places in a file are counted in bytes."""
    code = f"größe = {old}\n"
    found = {mutant.applied(code) for mutant in mutants("planted.py", code)}
    assert found == {f"größe = {text}\n" for text in new}


def test_mutants_of_the_core_compile_and_have_names_of_their_own():
    every = {}
    for file in run._files(run._parser().parse_args(["unused.json"])):
        text = (ROOT / file).read_text("utf-8")
        every[file] = mutants(file, text)
        assert every[file] or file.endswith("__init__.py"), file
        assert len({mutant.key for mutant in every[file]}) == len(every[file])
        for mutant in every[file][::30]:
            compile(mutant.applied(text), file, "exec")
    few, many = ({m.key for m in sample(every, count, seed=0)} for count in (240, 480))
    assert few < many and len(few) > 200
    assert {m.key for m in sample(every, 240, seed=0)} == few
    assert {m.file for m in sample(every, 240, seed=1)} == {f for f in every if every[f]}


def test_what_is_installed_within_the_tree_stays_on_the_path(tmp_path):
    """README's own environment is a folder of the repository; its packages are no part of it."""
    packages = tmp_path / ".venv" / "lib" / "site-packages"
    installed = f"{tmp_path / '.venv'}/"
    assert not _within(str(packages), tmp_path, installed)
    assert not _within("/usr/lib/python3", tmp_path, installed)
    for own in ("", str(tmp_path), str(tmp_path / "tests")):
        assert _within(own, tmp_path, installed)


def test_every_equivalent_mutant_is_still_in_the_code_and_has_a_reason():
    rows = run.equivalents()
    for row in rows:
        assert set(row) == {"file", "code", "change", "why"} and len(row["why"]) > 20
        found = mutants(row["file"], (ROOT / row["file"]).read_text("utf-8"))
        assert any(run.is_equivalent(mutant, [row]) for mutant in found), row
    assert len({(row["file"], row["code"], row["change"]) for row in rows}) == len(rows)


def test_a_planted_mutant_is_killed_and_one_that_nobody_tests_lives(tmp_path, capsys):
    tree = tmp_path / "tree"
    (tree / "planted").mkdir(parents=True)
    (tree / "tests").mkdir()
    (tree / "planted" / "__init__.py").write_text("")
    (tree / "planted" / "module.py").write_text(CODE)
    (tree / "tests" / "test_module.py").write_text(TEST)
    (tree / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    (tree / "equivalent.toml").write_text(
        '[[mutant]]\nfile = "planted/module.py"\nwhy = "nothing reads it"\n'
        'code = "def above(value: int, *, strict: bool = True) -> bool:"\n'
        'change = "True becomes False"\n'
    )
    arguments = [
        str(tmp_path / "found.json"), "--all", "--light", "--root", str(tree),
        "--package", "planted", "--file", "planted/module.py", "--tests", "tests",
        "--equivalent", str(tree / "equivalent.toml"),
    ]  # fmt: skip
    command = [sys.executable, "-m", "tests.mutation.run", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    known = json.loads((tmp_path / "found.json").read_text())
    results = {tuple(key.split(" | ")[1::2]): row["result"] for key, row in known.items()}
    assert results == {
        ("", "3 becomes 4"): "killed",
        ("above", "< becomes <="): "survived",
        ("above", "0 becomes 1"): "survived",
        ("above", "the guard is dropped"): "killed",
        ("above", "> becomes >="): "killed",
        ("untested", "* becomes /"): "survived",
    }
    lines = done.stdout.splitlines()
    assert any("by tests/test_module.py::test_above" in line for line in lines)
    assert lines[-1] == (
        "6 mutants: 3 killed (0 of them by never ending), 3 lived, 1 more are equivalent. "
        "Score 50.0 %"
    )
    assert (tree / "planted" / "module.py").read_text() == CODE
    assert run.main(arguments) == 0  # nothing is run twice
    assert capsys.readouterr().out.splitlines() == lines[-4:]
