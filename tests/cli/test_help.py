"""The help of every command, as a terminal of 80 columns shows it."""

import os
import re
import subprocess
import sys
from functools import cache

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from dar_probe.cli import app
from dar_probe.cli.shared import help_page, panels
from dar_probe.cli.train import SETTINGS
from dar_probe.training.config import TrainConfig

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = [
    (name, option)
    for name, command in COMMANDS.items()
    for option in command.params
    if option.param_type_name == "option"
]
IDS = [f"{name} {option.opts[0]}" for name, option in OPTIONS]


@cache
def page(*arguments, columns=80):
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(columns)})
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_paragraphs_fill_their_lines(name):
    """A line ends because the next word does not fit, or because its paragraph does."""
    prose = [line.strip() for line in page(*name.split(), "-h").partition("╭")[0].splitlines()]
    prose = prose[: prose.index("Example:")] if "Example:" in prose else prose
    assert any(prose)
    for line, after in zip(prose, prose[1:], strict=False):
        if line and after:
            assert len(f"{line} {after.split()[0]}") > 78, line


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_no_line_is_too_long(name, columns):
    assert max(map(len, page(*name.split(), "--help", columns=columns).splitlines())) <= columns


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_is_what_a_shell_takes(name):
    """Its lines, if it has several, end in a backslash, and no option is without its value."""
    text = page(name, "-h", columns=50)
    typed = re.search(r"Example:\s+(.*?)\n\s*\n", text, re.DOTALL)
    assert typed
    lines = [line.strip() for line in typed[1].splitlines()]
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert not any(re.search(r"--[a-z-]+ \\\\$", line) for line in lines)
    wanted = re.search(r"Example: (.*)", COMMANDS[name].help)
    assert " ".join(line.removesuffix("\\").strip() for line in lines) == wanted[1]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_h_is_help(name):
    assert page(*name.split(), "-h") == page(*name.split(), "--help")
    assert "-h, --help" in page(*name.split(), "-h")


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=IDS)
def test_every_option_has_a_panel_a_default_and_a_word_for_its_value(name, option):
    shown = page(name, "-h", columns=200)
    row = next(
        line for line in shown.splitlines() if re.search(rf"[│|] .*{option.opts[-1]}[ /]", line)
    )
    if option.is_flag:
        assert not re.search(r"bool|TEXT", row, re.IGNORECASE)
    else:
        assert re.fullmatch(r"[A-Z]+(:[A-Z])?|one\|two", option.metavar)
        assert option.required or "[default: " in " ".join(shown.split())
    assert option.rich_help_panel in (*panels.OF_OPTIONS, None)
    assert option.rich_help_panel or option.opts == ["--config"]


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=IDS)
def test_a_default_is_told_once(name, option):
    """By the default itself, or by what stands in for it; not in the sentence as well."""
    told = option.required or option.is_flag or name == "train"  # which looks them up, see below
    assert told or help_page.default_of(option)
    assert "default" not in (option.help or "").replace("default judgement", "")


def test_the_defaults_of_train_are_those_of_its_config():
    shown = " ".join(page("train", "-h").replace("│", " ").split())
    defaults = TrainConfig()
    for name, setting in SETTINGS.items():
        wanted = setting.default or str(getattr(defaults, name))
        flag = (setting.names or (f"--{name.replace('_', '-')}",))[0]
        assert re.search(rf"{flag} [^[]*\[default: {re.escape(wanted)}\]", shown), name
    for name in ("heads", "init_from", "compile"):  # a word in place of 0, "" and False
        assert not getattr(defaults, name) and SETTINGS[name].default


def test_ascii_where_the_terminal_has_nothing_else():
    done = subprocess.run(
        [sys.executable, "-m", "dar_probe.cli", "report", "-h"],
        capture_output=True, check=True, env={**os.environ, "LC_ALL": "C", "COLUMNS": "80"},
    )  # fmt: skip
    assert done.stdout.isascii() and b"--out DIR" in done.stdout


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["ana"], {"analyze"}),
        (["analyze", "--no"], {"--noise-levels", "--no-figures"}),
        (["analyze", "--dtype", "b"], {"bfloat16"}),
        (["train", "--routing", "dar"], {"dar", "dar-uvit"}),
    ],
)
def test_a_shell_completes_without_torch(words, wanted):
    code = (
        "import sys, atexit\n"
        "heavy = ('torch', 'numpy', 'xarray', 'matplotlib')\n"
        "atexit.register(lambda: print('loaded', *set(heavy) & set(sys.modules)))\n"
        "from dar_probe import cli\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={
            **os.environ, "_DAR_PROBE_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["dar-probe", *words]), "COMP_CWORD": str(len(words)),
        },
    )  # fmt: skip
    *found, loaded = done.stdout.splitlines()
    assert loaded == "loaded " or loaded == "loaded", done.stdout
    assert wanted <= set(found) and all(word.startswith(words[-1]) for word in found)


def test_a_shell_gets_the_script_of_its_completion():
    done = subprocess.run(
        [sys.executable, "-m", "dar_probe.cli", "--show-completion", "bash"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and "_DAR_PROBE_COMPLETE=complete_bash" in done.stdout
