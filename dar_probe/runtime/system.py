"""What the operating system and its C library offer beyond Python's ``os``: Linux, glibc, POSIX.

The only file that calls them; where a system lacks one, the caller has another way.
"""

import ctypes
import fcntl
import os
from pathlib import Path

AT_FDCWD = -100  # fcntl.h: paths are relative to the current folder
RENAME_EXCHANGE = 2  # linux/fs.h


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step (Linux's renameat2); False where system or disk cannot."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is None:
        return False
    paths = AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other)
    return bool(swap(*paths, RENAME_EXCHANGE) == 0)


def trim_memory() -> None:
    """Give freed memory back to the system (glibc's malloc_trim); nothing where there is none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed or the process ends; False where it is taken.

    Raises:
        OSError: the system locks nothing there.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
