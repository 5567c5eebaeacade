"""The help of every command, as a terminal of 80 columns shows it."""

import pytest
from typer.main import get_command

from dar_probe.cli import app
from tests.helpers.shell import run

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_paragraphs_fill_their_lines(name):
    """A line ends because the next word does not fit, or because its paragraph does."""
    shown = run(name, "--help", COLUMNS="80").stdout
    prose = [line.strip() for line in shown.partition("╭")[0].splitlines()]
    assert any(prose)
    for line, after in zip(prose, prose[1:], strict=False):
        if line and after:
            assert len(f"{line} {after.split()[0]}") > 78, line
