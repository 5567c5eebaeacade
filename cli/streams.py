"""stdin, stdout and stderr as whoever starts us left them: closed, full, or without Unicode."""

import errno
import os
import sys
from io import TextIOWrapper

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


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


def abandon() -> None:
    """Let the rest of the output go nowhere: its reader has left, or has no room for it."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def is_full(error: BaseException) -> bool:
    """Tell whether stdout could not be written; files tell that by errors of their own."""
    return isinstance(error, OSError) and error.errno in FULL and error.filename is None
