"""What a terminal can show, and how text and tables are put on it; also where it is narrow."""

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from dar_probe.files.text import charset

WIDEST = 100  # longer lines are hard to read
GAP = "  "


def console_on(stream: TextIO) -> Console:
    """Return a console on stdout or stderr; no text on stdout is wider than ``WIDEST``."""
    console = _Console(stderr=stream is sys.stderr, highlight=False)
    if stream is sys.stdout:
        console.width = min(console.width, WIDEST)
    return console


class _Console(Console):
    """Draws with ASCII where the terminal can show nothing else."""

    @property
    def encoding(self) -> str:
        return charset(self.file)


def printable(text: str) -> str:
    """Escape control characters, and what the terminal's encoding lacks."""
    kept = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    known = charset(sys.stdout)
    return kept.encode(known, "backslashreplace").decode(known)


def write(console: Console, text: Text, first: Text | None = None) -> None:
    """Print a text wrapped between words, without spaces at the ends of lines."""
    first = first or Text("")
    for at, line in enumerate(text.wrap(console, max(console.width - len(first), 1))):
        line.rstrip()
        lead = first if at == 0 else Text(" " * len(first))
        console.print(Text.assemble(lead, line), soft_wrap=True)


def aligned(console: Console, rows: list[list[Text]], right: Sequence[int]) -> None:
    """Print rows in columns, those in ``right`` flush right; the first row is their heads.

    Where they do not fit, every row becomes a line of its label and indented lines below it:
    no number is ever cut.
    """
    widths = [max(cell_len(row[at].plain) for row in rows) for at in range(len(rows[0]))]
    if sum(widths) + len(GAP) * (len(widths) - 1) > console.width:
        for row in rows[1:]:
            write(console, row[0])
            for head, cell in zip(rows[0][1:], row[1:], strict=True):
                if cell.plain:
                    label = f"{head.plain}: " if head.plain else ""
                    write(console, Text.assemble(label, cell), Text(GAP))
        return
    for row in rows:
        line = Text("")
        for at, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_len(cell.plain))
            parts = (space, cell) if at in right else (cell, space)
            line = Text.assemble(line, *parts, GAP)
        line.rstrip()
        console.print(line, soft_wrap=True)
