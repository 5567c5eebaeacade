"""The Typer app: one small file per command. Importing it loads no torch and no matplotlib."""

import logging
import os
import sys
from collections.abc import Callable
from inspect import cleandoc
from typing import Annotated

import typer

from dar_probe.cli import (
    ablate,
    analyze,
    audit,
    bench,
    compare,
    doctor,
    evaluate,
    figures,
    inspect,
    report,
    reproduce,
    sample,
    train,
)
from dar_probe.cli.shared import errors, panels, startup, streams, typer_command
from dar_probe.errors import ExitCode
from dar_probe.runtime.version import __version__

app = typer.Typer(
    name="dar-probe",
    help="Shows how information travels across the depth of a diffusion transformer, "
    "and how that changes with the noise level.",
    epilog=f"Exit codes: {'; '.join(f'{code.value} {code.sentence}' for code in ExitCode)}.",
    cls=errors.Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _help(command: Callable[..., None]) -> str:
    """Return a docstring with each paragraph in one line, which the terminal wraps."""
    paragraphs = cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    panels.MEASURE: (analyze.analyze, ablate.ablate, audit.audit, inspect.inspect),
    panels.FINISHED: (report.report, figures.figures, compare.compare),
    panels.TRAIN: (train.train, sample.sample, evaluate.evaluate, reproduce.reproduce),
    panels.MACHINE: (doctor.doctor, bench.bench),
}
for _panel, _commands in COMMANDS.items():
    for _command in _commands:
        app.command(
            _command.__name__,
            cls=train.Command if _command is train.train else typer_command.Command,
            help=_help(_command),
            rich_help_panel=_panel,
        )(errors.guarded(_command))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dar-probe {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works anywhere.")
    ] = False,
) -> None:
    """Shows how information travels across the depth of a diffusion transformer."""


def main() -> None:
    """Run the command line; ``--debug`` may stand anywhere before ``--``."""
    streams.prepare()
    startup.OWN_PROCESS = True
    os.environ["MPLBACKEND"] = "agg"  # a notebook's may not be installed here, and shows nothing
    # Of a cache without a home, and the like: stderr is for what concerns the user.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options, rest = arguments[:end], arguments[end:]
    errors.DEBUG = "--debug" in options
    with streams.outlived():
        app(args=[a for a in options if a != "--debug"] + rest, prog_name="dar-probe")
