"""The one place that overrides a part of Typer which its documentation does not promise.

Typer's own ``main`` prints usage errors in a frame of several lines, and leaves. ``Commands``
hands the sentence to ``tell`` instead, like every other error of the command line.
"""

import functools
from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup

from dar_probe.cli.shared import help_page
from dar_probe.errors import DarProbeError, ExitCode


class Commands(TyperGroup):
    """The commands; what is wrong with their arguments is told in one sentence and one hint."""

    @staticmethod
    def tell(sentence: str, hint: str) -> None:
        """Tell a usage error."""
        raise NotImplementedError

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        help_page.show(self, ctx)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run one command, and leave by an exit code."""
        run = functools.partial(
            super().main, args, prog_name, complete_var, False, windows_expand_args, **extra
        )
        if not standalone_mode:
            return run()
        try:
            code = run()
        except DarProbeError as error:  # of what is looked at while arguments are read
            self.tell(f"Error: {error}", error.hint and f"Hint: {error.hint}")
            raise SystemExit(error.exit_code) from None
        except Exception as error:
            # Typer has brought its own copy of click since 0.27: the class cannot be imported.
            message = getattr(error, "format_message", None)
            if message is None:
                raise
            context = getattr(error, "ctx", None)
            name = context.command_path if context else self.name
            if sentence := message():  # none where no command was given: that prints the help
                self.tell(f"Error: {sentence}", f"Hint: {name} --help lists what it takes")
            raise SystemExit(ExitCode.USAGE) from None
        raise SystemExit(code or ExitCode.DONE)
