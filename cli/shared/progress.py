"""Progress on stderr: one moving line on a terminal, and a few lines in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from dar_probe.cli.shared.console import console_on, printable
from dar_probe.runtime import ranks

HOUR = 3600.0
ROOMY = 78  # columns: below, a note would crowd out the numbers
EVERY = 30.0  # seconds between two lines of a log


class Tell:
    """Draws progress when it is called with (done, total, note="", unit=...).

    Args:
        what: is done, e.g. "measuring".
        unit: of done and total; None where nothing will be counted.
    """

    def __init__(self, what: str, unit: str | None) -> None:
        self._unit, self._last = unit, 0
        self._console = console_on(sys.stderr)
        moves = sys.stderr.isatty() and self._console.is_interactive
        self.log = None if moves or not ranks.leads() else Log(what, unit)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None, table_column=Column(max_width=24)),
            _Count(table_column=Column(no_wrap=True)),
            _Pace(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            disable=not (moves and ranks.leads()),
            transient=True,
            speed_estimate_period=HOUR,  # a large model may take minutes for one report
        )
        self._task = self.bar.add_task(what, total=None, note="", unit=unit)

    def __call__(self, done: int, total: int, note: str = "", unit: str | None = None) -> None:
        """Tell that ``done`` of ``total`` are done."""
        unit = unit or self._unit
        if self.log:
            self.log.tell(done, total, note, unit)
        if done < self._last:  # another walk over as many cells: its own rate, its own time
            self.bar.reset(self._task, total=total)
        self._last = done
        if done >= total:
            note = "finishing"
        elif self._console.width < ROOMY:
            note = ""
        self.bar.update(self._task, completed=done, total=total, note=note, unit=unit)

    def phase(self, what: str, done: int, total: int, note: str = "") -> None:
        """Tell how far another part of the work is, e.g. ("drawing", 2, 9, "sources").

        ``note`` is what comes next.
        """
        if self.bar.tasks[0].description != what:
            self._last, self._unit = 0, "figures" if what == "drawing" else "files"
            self.bar.reset(self._task, total=total, description=what, note=note)
            if self.log:
                self.log.end()
                self.log = Log(what, self._unit)
        self(done, total, note)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the bar off the terminal while something else is written there."""
        self.bar.stop()
        yield
        self.bar.start()


class Log:
    """One part of the work in a log: a line at its end, and one every ``EVERY`` seconds before.

    Args:
        what: is done.
        unit: of what is counted; None where nothing is.
    """

    def __init__(self, what: str, unit: str | None) -> None:
        self._what, self._unit = what, unit
        self._began = self._written = self._told = time.monotonic()
        self._done, self._ended = 0, False

    def tell(self, done: int, total: int, note: str, unit: str | None) -> None:
        """Write a line where one is due."""
        now = time.monotonic()
        if done < self._done:  # the same kind of work once more
            self._began, self._ended = self._told, False
        self._done, self._unit, self._told = done, unit, now
        if done >= total:
            self.end()
        elif done and now - self._written >= EVERY:
            rate = done / max(now - self._began, 1e-9)
            left = _clock((total - done) / rate)
            more = f", {note}" if note else ""
            self._write(f"{done} of {total} {unit}, {_rate(rate)} {unit}/s, {left} left{more}")

    def end(self) -> None:
        """Write what was done and how long it took, unless that was told or nothing was done."""
        if self._ended or (self._unit is not None and not self._done):
            return
        self._ended = True
        counted = f"{self._done} {self._unit}" if self._unit is not None else "done"
        self._write(f"{counted} in {_clock(time.monotonic() - self._began)}")

    def _write(self, text: str) -> None:
        self._written = time.monotonic()
        sys.stderr.write(printable(f"{self._what}  {text}") + "\n")
        sys.stderr.flush()


@contextmanager
def progress(what: str, unit: str | None = "cells") -> Iterator[Tell]:
    """Yield what tells progress on stderr.

    A terminal that can move its cursor gets one line, which is erased at the end. A pipe, a file
    or a job of continuous integration gets lines, whatever FORCE_COLOR says: a log is no place for
    a bar.
    """
    tell = Tell(what, unit)
    with tell.bar:
        yield tell
    if tell.log:
        tell.log.end()


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
        unit, rate = task.fields["unit"], _rate(task.speed)
        return Text(f"{rate:>5} {unit}/s  {_clock(task.time_remaining)} left")


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
