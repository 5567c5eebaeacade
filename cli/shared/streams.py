"""stdin, stdout and stderr as whoever started us left them: closed, full, a pipe, or ASCII."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, TextIO, cast

from dar_probe.errors import ExitCode


def prepare() -> None:
    """Make writing to stdout and stderr safe: nothing is too strange for them, or closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Else the next file that is opened would get the number, and what is printed.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def outlived() -> Iterator[None]:
    """Let a command come to its own end, and its exit code, whatever becomes of its output.

    A reader that has seen enough is no error. Where stdout cannot take what is written, say so on
    stderr, and leave with exit code 2 where the command itself found nothing wrong.
    """
    real = sys.stdout, sys.stderr
    out, err = map(_Stream, real)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    code: Any = 0
    try:
        yield
    except SystemExit as leaving:
        code = leaving.code or 0
    finally:
        out.flush()
        if out.error is not None and not isinstance(out.error, BrokenPipeError):
            err.write(
                f"Error: the output cannot be written: {out.error.strerror}\n"
                "Hint: check where stdout goes; the files of the command are whole.\n"
            )
            code = code or ExitCode.USAGE
        err.flush()
        sys.stdout, sys.stderr = real
    raise SystemExit(code)


class _Stream:
    """A stream whose failure is kept instead of raised; what comes after it is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., Any], *args: Any) -> None:
        if self.error is not None:
            return
        try:
            call(*args)
        except OSError as error:
            self.error = error
            # Python flushes what is left at its own end, and would fail there once more.
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
