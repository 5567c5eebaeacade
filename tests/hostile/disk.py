"""A small disk: a tmpfs that only a fork of this process sees, gone when the fork ends."""

import ctypes
import os
from pathlib import Path

from tests.hostile.commands import forked

NEW_NAMESPACE, NEW_USER = 0x20000, 0x10000000
REMOUNT, PRIVATE = 0x20, 0x4000 | 0x40000
PAGE = os.sysconf("SC_PAGE_SIZE")
libc = ctypes.CDLL(None, use_errno=True)


def mount(folder: Path) -> None:
    """Mount an empty disk on ``folder``; OSError where this machine does not let us."""
    user, group = os.geteuid(), os.getegid()
    _check(libc.unshare(NEW_NAMESPACE | (NEW_USER if user else 0)))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _check(libc.mount(b"none", b"/", None, PRIVATE, None))
    _check(libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, b"size=64m"))


def resize(folder: Path, free: int) -> None:
    """Leave ``free`` pages beside what is there."""
    found = os.statvfs(folder)
    pages = found.f_blocks - found.f_bfree + free
    options = f"size={pages * PAGE}".encode()
    _check(libc.mount(b"none", os.fsencode(folder), b"tmpfs", REMOUNT, options))


def pages(size: int) -> int:
    """Return how many pages a file of ``size`` bytes takes."""
    return -(-size // PAGE)


def lacking(folder: Path) -> str:
    """Return why no disk can be mounted here, "" where one can."""
    try:
        forked(lambda: mount(folder))
    except AssertionError as error:
        return str(error).splitlines()[-1]
    return ""


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
