"""A command whose help is our own page: the second thing that overrides a part of Typer."""

from typing import Any

from typer.core import TyperCommand

from dar_probe.cli.shared import help_page


class Command(TyperCommand):
    """One command."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        help_page.show(self, ctx)
