"""``dar-probe report``: the page and the figures again from a dataset, without torch."""

import os
from pathlib import Path
from typing import Annotated

import typer

from dar_probe.cli.shared import panels, startup


def report(
    analysis: Annotated[
        Path,
        typer.Argument(
            help="An analysis.nc, or its folder.", metavar="ANALYSIS", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write.",
            metavar="DIR",
            show_default="the dataset's own",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = None,
) -> None:
    """Render report.html, figures and summary.json of an analysis again.

    Example: dar-probe report dar-probe-out/digits-residual
    """
    with startup.imports():
        from dar_probe.analysis import open_analysis
        from dar_probe.cli.shared import terminal
        from dar_probe.files.analysis_folder import check_target

    if out is not None:
        check_target(out)
    found = open_analysis(analysis)
    folder = out or (analysis if os.path.isdir(analysis) else analysis.parent)
    with terminal.progress("writing", "files") as tell:
        found.save(folder, on_file=tell.phase)
    terminal.show(found, folder=folder)
    typer.echo()
    terminal.show_files(folder)
