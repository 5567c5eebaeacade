"""The help of every command: quick, light, and with an example that works."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from dar_probe.cli import app
from tests.helpers.shell import run, without_progress
from tests.hostile.playground import MODULE, fill

COMMANDS = get_command(app).commands
HEAVY = ("torch", "matplotlib", "xarray", "pandas", "numpy", "plotly", "h5py", "jinja2")

LESS = {  # to measure; of an option that is given twice the last one counts
    "analyze": ["--samples", "2", "--noise-levels", "2", "--overwrite"],
    "ablate": ["--samples", "2", "--noise-levels", "2"],
    "bench": ["--repeats", "1"],
    "evaluate": ["--samples", "16", "--steps", "2"],
    "reproduce": ["--only", "residual", "--runs", "1"],
    "sample": ["--steps", "2"],
}


def example(command):
    """Return the arguments of the one example in a command's help."""
    (found,) = re.findall(r"^Example: dar-probe (.+)$", COMMANDS[command].help, re.MULTILINE)
    return shlex.split(found)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All that the examples name, as small as can be."""
    path, source = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("source")
    fill(source)
    (path / "fixtures").mkdir()
    for name, kind in (("residual", "plain"), ("dar-static", "dar")):
        shutil.copy(source / f"{kind}.pt", path / "fixtures" / f"digits-{name}.pt")
        shutil.copytree(source / "analysis", path / "dar-probe-out" / f"digits-{name}")
    (path / "mymodels").mkdir()
    code = MODULE.replace("8", "64") + "\nsmall = bare\n"
    (path / "mymodels" / "vit.py").write_text(code, encoding="utf-8")
    return path


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_the_example_works(made, tmp_path, command):
    shutil.copytree(made, tmp_path / "here")
    name, *arguments = example(command)
    done = run(name, *arguments, *LESS.get(name, ()), cwd=tmp_path / "here", light=True)
    assert name == command
    assert done.returncode == (1 if "FAIL" in done.stdout and name == "audit" else 0)
    said = "Run residual-seed0 (1 of 2)\n" if name == "reproduce" else ""
    assert done.stdout and without_progress(done.stderr) == said


def test_the_example_of_train_is_understood():
    name, *arguments = example("train")
    context = COMMANDS[name].make_context(name, arguments)
    assert context.params["out"] == Path("runs/dar") and context.params["steps"] == 2000


def test_help_is_light():
    code = (
        "import sys, time, contextlib, io\n"
        "from dar_probe.cli import app\n"
        f"for name in ['', *{list(COMMANDS)}]:\n"
        "    try:\n"
        "        with contextlib.redirect_stdout(io.StringIO()) as shown:\n"
        "            app([*name.split(), '--help'], prog_name='dar-probe')\n"
        "    except SystemExit as leave:\n"
        "        assert leave.code == 0 and f'Usage: dar-probe {name}' in shown.getvalue()\n"
        f"print(*sorted(set(sys.modules) & set({HEAVY})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def calls(*arguments):
    """Count the function calls of a help in a fresh process: no load of the machine adds any."""
    code = (
        "import cProfile, contextlib, io, pstats, sys\n"
        "profile = cProfile.Profile()\n"
        "quiet = contextlib.redirect_stdout(io.StringIO())\n"
        "with quiet, contextlib.suppress(SystemExit), profile:\n"
        "    from dar_probe.cli import app\n"
        "    app(sys.argv[1:], prog_name='dar-probe')\n"
        "print(pstats.Stats(profile).total_calls)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_help_is_quick():
    plain = calls("--help")
    assert plain < 400_000  # measured: 266,000
    # What a command's own help costs more is Typer's: it looks at the types of its options.
    assert calls("train", "--help") < 2 * plain


def test_every_command_is_listed():
    shown = run("--help").stdout
    for name in COMMANDS:
        assert f" {name} " in shown
