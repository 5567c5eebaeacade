"""Progress on stderr, as long as it lasts; nothing where there is no terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from dar_probe.cli.shared.console import console_on
from dar_probe.runtime import ranks

HOUR = 3600.0
ROOMY = 78  # columns: below, a note would crowd out the numbers


class Tell:
    """Draws progress when it is called with (done, total, note="", unit=...).

    Args:
        what: is done, e.g. "measuring".
        unit: of done and total.
    """

    def __init__(self, what: str, unit: str) -> None:
        self._unit, self._last = unit, 0
        self._console = console_on(sys.stderr)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None, table_column=Column(max_width=24)),
            _Count(table_column=Column(no_wrap=True)),
            _Pace(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            disable=not (sys.stderr.isatty() and self._console.is_interactive and ranks.leads()),
            transient=True,
            speed_estimate_period=HOUR,  # a large model may take minutes for one report
        )
        self._task = self.bar.add_task(what, total=None, note="", unit=unit)

    def __call__(self, done: int, total: int, note: str = "", unit: str | None = None) -> None:
        """Draw that ``done`` of ``total`` are done."""
        if done < self._last:  # another walk over as many cells: its own rate, its own time
            self.bar.reset(self._task, total=total)
        self._last = done
        if done >= total:
            note = "writing"
        elif self._console.width < ROOMY:
            note = ""
        self.bar.update(self._task, completed=done, total=total, note=note, unit=unit or self._unit)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the bar off the terminal while something else is written there."""
        self.bar.stop()
        yield
        self.bar.start()


@contextmanager
def progress(what: str, unit: str = "cells") -> Iterator[Tell]:
    """Yield what draws progress as one line on stderr; the line is erased at the end.

    Nothing is written where stderr is no terminal that can move its cursor, whatever FORCE_COLOR
    says: a log is no place for a bar.
    """
    tell = Tell(what, unit)
    with tell.bar:
        yield tell


class _Count(ProgressColumn):
    """Writes "320/640"; nothing before the first report."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        total = f"{task.total:.0f}"
        return Text(f"{task.completed:{len(total)}.0f}/{total}")


class _Pace(ProgressColumn):
    """Writes rate and time left, "41.3 cells/s  0:08 left"; until there is a rate, the time."""

    def render(self, task: Task) -> Text:
        if task.finished or not task.speed or task.time_remaining is None:
            return Text(_clock(task.elapsed or 0.0), style="dim")
        unit, rate = task.fields["unit"], f"{task.speed:.3g}"
        return Text(f"{rate:>5} {unit}/s  {_clock(task.time_remaining)} left")


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
