"""Progress on stderr, as long as it lasts; nothing where there is no terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from dar_probe.cli.shared.console import console_on
from dar_probe.runtime import ranks

HOUR = 3600.0
ROOMY = 78  # columns: below, a note would crowd out the numbers


@contextmanager
def progress(what: str, unit: str = "cells") -> Iterator[Callable[..., None]]:
    """Yield tell(done, total, note="", unit=unit), drawn as one line on stderr and erased at last.

    Nothing is written where stderr is no terminal that can move its cursor, whatever FORCE_COLOR
    says: a log is no place for a bar.
    """
    console = console_on(sys.stderr)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None, table_column=Column(max_width=24)),
        _Count(table_column=Column(no_wrap=True)),
        _Pace(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=not (sys.stderr.isatty() and console.is_interactive and ranks.leads()),
        transient=True,
        speed_estimate_period=HOUR,  # a large model may take minutes for one report
    )
    task = bar.add_task(what, total=None, note="", unit=unit)
    last = 0

    def tell(done: int, total: int, note: str = "", unit: str = unit) -> None:
        nonlocal last
        if done < last:  # another walk over as many cells: its own rate, its own time
            bar.reset(task, total=total)
        last = done
        if done >= total:
            note = "writing"
        elif console.width < ROOMY:
            note = ""
        bar.update(task, completed=done, total=total, note=note, unit=unit)

    with bar:
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
