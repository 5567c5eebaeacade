"""The adapter to Typer's ``main``: what it relies on, and what it changes."""

import inspect

import pytest
import typer
from typer.core import TyperGroup

from dar_probe.cli.shared import typer_group
from dar_probe.errors import ExitCode

TOLD = []


class Commands(typer_group.Commands):
    @staticmethod
    def tell(sentence, hint):
        TOLD.append((sentence, hint))


@pytest.fixture
def app():
    TOLD.clear()
    made = typer.Typer(name="tool", cls=Commands, add_completion=False, no_args_is_help=True)

    @made.command()
    def work(count: int = 1):
        if count == 7:
            raise RuntimeError("ours")
        raise typer.Exit(count)

    made.callback()(lambda: None)
    return made


def test_typer_still_takes_what_is_handed_on():
    taken = inspect.signature(TyperGroup.main).parameters
    ours = inspect.signature(typer_group.Commands.main).parameters
    positional = [name for name in ours if name not in ("self", "extra")]
    assert list(taken)[1 : 1 + len(positional)] == positional
    assert taken["extra"].kind is inspect.Parameter.VAR_KEYWORD


@pytest.mark.parametrize(
    ("line", "sentence", "hint"),
    [
        (["work", "--count", "x"], "Invalid value for '--count'", "tool work --help"),
        (["work", "--size", "1"], "No such option: --size", "tool work --help"),
        (["play"], "No such command 'play'", "tool --help"),
    ],
)
def test_a_usage_error_is_one_sentence_and_one_hint(app, capsys, line, sentence, hint):
    with pytest.raises(SystemExit) as left:
        app(args=line, prog_name="tool")
    assert left.value.code == ExitCode.USAGE
    ((told, how),) = TOLD
    assert told.startswith("Error: ") and sentence in told
    assert how == f"Hint: {hint} lists what it takes"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("code", [0, 1, 4])
def test_the_exit_code_of_a_command_is_kept(app, code):
    with pytest.raises(SystemExit) as left:
        app(args=["work", "--count", str(code)], prog_name="tool")
    assert left.value.code == code and TOLD == []


def test_no_command_prints_the_help_alone(app, capsys):
    with pytest.raises(SystemExit) as left:
        app(args=[], prog_name="tool")
    assert left.value.code == ExitCode.USAGE and TOLD == []
    assert "Usage: tool" in capsys.readouterr().out


def test_an_error_of_the_command_itself_passes(app):
    with pytest.raises(RuntimeError, match="ours"):
        app(args=["work", "--count", "7"], prog_name="tool")
