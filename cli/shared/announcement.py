"""Says what came of an analysis: the verdict as soon as it is known, the files once they exist."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from dar_probe.cli.shared import startup
from dar_probe.cli.shared.console import console_on
from dar_probe.cli.shared.progress import Tell, progress
from dar_probe.cli.shared.terminal import show_files
from dar_probe.probe.options import OutputOptions
from dar_probe.runtime import ranks

if TYPE_CHECKING:
    from dar_probe.analysis import Analysis

Show = Callable[["Analysis"], None]


class Announcement:
    """What one command prints of its analysis.

    Args:
        tell: the progress, which makes room for what is printed.
        output: where the files go, and which there are.
        show: prints the verdict and what it rests on.
        show_json: prints one JSON document instead, once the files are written; None: ``show``.
    """

    def __init__(
        self, tell: Tell, output: OutputOptions, *, show: Show, show_json: Show | None
    ) -> None:
        self.tell, self._output = tell, output
        self._show, self._show_json = show, show_json
        self._shown = False

    def verdict(self, analysis: "Analysis") -> None:
        """Print the verdict before any file is written, and say that the files follow."""
        if self._show_json is not None or not ranks.leads():
            return
        with self.tell.hidden():
            self._show(analysis)
            console = console_on(sys.stdout)
            console.print()
            console.print(Text(f"{_follow(self._output)} ...", style="dim"))
            sys.stdout.flush()  # a pipe, too, gets the verdict now
        self._shown = True
        if self._output.figures:
            with startup.imports():
                from dar_probe.reports import printing  # noqa: F401 - drawn right after this

    def files(self, analysis: "Analysis") -> None:
        """Print where the files are; of an analysis that was finished before, also its verdict."""
        if not ranks.leads():
            return
        if self._show_json is not None:
            self._show_json(analysis)
            return
        if not self._shown:
            self._show(analysis)
            console_on(sys.stdout).print()
        output = self._output
        assert output.out is not None
        show_files(Path(output.out), figures=output.figures, report=output.report)


def _follow(output: OutputOptions) -> str:
    if output.figures:
        return "The figures and the page follow" if output.report else "The figures follow"
    return "The page follows" if output.report else "The data follow"


@contextmanager
def announced(
    what: str, output: OutputOptions, *, show: Show, show_json: Show | None
) -> Iterator[Announcement]:
    """Yield the announcement of an analysis, with the progress of ``what`` on stderr.

    Nothing is printed where the body fails.
    """
    with progress(what) as tell:
        yield Announcement(tell, output, show=show, show_json=show_json)
