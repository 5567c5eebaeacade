"""Poor surroundings: no home, no terminal, no Unicode, closed or full streams, a package that is
read-only. Commands work, say nothing about it, and write where they were told to alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import dar_probe
from dar_probe.cli import app
from tests.helpers.shell import without_progress
from tests.hostile.playground import fill

HELPS = [f"{name} --help" for name in ("", *get_command(app).commands)]
GRID = "--samples 1 --noise-levels 2"
# Runs several commands in one process, so that torch is imported once.
IN_TURN = """
import sys
from dar_probe.cli import main
for line in sys.argv[1:]:
    sys.argv = ["dar-probe", *line.split()]
    try:
        main()
    except SystemExit as leave:
        assert not leave.code, (line, leave.code)
"""
# Runs one command again and again, each time with other streams.
STREAMS = """
import os, sys
from dar_probe.cli import main
import dar_probe.comparison

def closed_stdout():
    os.close(1)
    sys.stdout = None

def closed_stderr():
    os.close(2)
    sys.stderr = None

def closed_all():
    for number in range(3):
        os.close(number)
    sys.stdin = sys.stdout = sys.stderr = None

def full():
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

def left():
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)

for surround in (closed_stdout, closed_stderr, closed_all, full, left):
    for line in sys.argv[1:]:
        child = os.fork()
        if child == 0:
            surround()
            sys.argv = ["dar-probe", *line.split()]
            code = 1
            try:
                main()
            except SystemExit as leave:
                code = leave.code
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print("CAME", surround.__name__, line, os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("poor")
    fill(path)
    return path


def run(code, *arguments, cwd, shell='exec "$@"', **environment):
    """Run Python code in a new process that has nothing but the given environment."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS")}
    return subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, "-c", code, *arguments],
        cwd=cwd, env=kept | environment, capture_output=True, check=False,
    )  # fmt: skip


def package_files():
    """Return every file of the installed package, and when it was changed."""
    homes = [Path(entry) for entry in dar_probe.__path__]
    homes += [Path(sys.modules[f"dar_probe.{name}"].__file__).parent for name in ("cli", "reports")]
    return {
        path: path.stat().st_mtime_ns
        for home in homes
        for path in home.rglob("*")
        if "__pycache__" not in path.parts and path.is_file()
    }


def test_an_ascii_terminal_of_20_columns_without_home_term_tmp_or_stdin(folder):
    import dar_probe.reports  # noqa: F401  its folder is looked at

    before, package = set(folder.rglob("*")), package_files()
    done = run(
        IN_TURN, *HELPS, "inspect plain.pt", f"analyze plain.pt {GRID} --out out",
        cwd=folder, shell='exec "$@" <&-', LC_ALL="C", LANG="C", PYTHONIOENCODING="ascii",
        PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", COLUMNS="20", TMPDIR="/dev/null/nowhere",
    )  # fmt: skip
    assert (done.returncode, without_progress(done.stderr.decode("ascii"))) == (0, "")
    shown = done.stdout.decode("ascii")
    assert "\x1b" not in shown and shown.count("Usage: dar-probe") == len(HELPS)
    assert "report.html" in shown
    made = {path.relative_to(folder).parts[0] for path in set(folder.rglob("*")) - before}
    assert made == {"out"} and package_files() == package


def test_a_home_that_cannot_be_written(folder):
    done = run(
        IN_TURN, "figures analysis --only dilution --format png --out drawn", cwd=folder,
        HOME="/dev/null/home", COLUMNS="0", TERM="dumb",
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"drawn/dilution.png\n", b"")


def test_streams_that_are_closed_full_or_left(folder):
    lines = ("--version", "--help", "compare analysis other --json", "report no.nc")
    done = run(STREAMS, *lines, cwd=folder)
    came = (line.split(" ", 1) for line in done.stdout.decode().splitlines())
    found = dict(rest[0].rsplit(" ", 1) for first, *rest in came if first == "CAME")
    expected = {}
    for name in ("closed_stdout", "closed_stderr", "closed_all", "full", "left"):
        works = "2" if name == "full" else "0"
        expected |= {f"{name} {line}": works for line in lines[:-1]}
        expected[f"{name} {lines[-1]}"] = "3"
    assert found == expected, done.stderr
    said = done.stderr.decode().splitlines()
    assert said.count("Error: there is no file 'no.nc'") == 3
    full = "Error: the output cannot be written: No space left on device"
    assert said.count(full) == len(lines) - 1 and "Traceback" not in done.stderr.decode()
