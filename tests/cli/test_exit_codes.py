"""Exit codes stand once, in dar_probe/errors.py; the help says the same."""

from typer.main import get_command

from dar_probe import errors
from dar_probe.cli import app
from dar_probe.errors import ExitCode


def test_numbers_are_those_that_scripts_rely_on():
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0, "FAILED": 1, "USAGE": 2, "REFUSED": 3, "UNMEASURABLE": 4, "INTERNAL": 5,
        "INTERRUPTED": 130,
    }  # fmt: skip


def test_every_error_has_one_of_them():
    kinds = [errors.DarProbeError, *errors.DarProbeError.__subclasses__()]
    assert all(isinstance(kind.exit_code, ExitCode) for kind in kinds)


def test_the_help_names_all():
    epilog = " ".join(get_command(app).epilog.split())
    for code in ExitCode:
        assert f"{int(code)} {code.sentence}" in epilog
