"""Writing files so that a reader, or a crash, never meets a half-written one."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dar_probe.errors import UsageError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there.

    Raises:
        UsageError: the disk is full, the folder is read-only or missing.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        _discard(temporary)
        raise UsageError(
            f"{str(path)!r} cannot be written: {reason(error)}",
            hint="check the folder's permissions and the free space",
        ) from error
    except BaseException:
        _discard(temporary)
        raise


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, as ``write_atomically`` does."""

    def write(target: Path) -> None:
        target.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def check_place(path: Path) -> None:
    """Refuse a place where no file or folder could be made, before any work for it is done.

    Raises:
        UsageError: it lies in no folder, or in one without the permission to write.
    """
    home, why = os.path.abspath(path), ""
    while True:
        try:
            os.lstat(home)
            break
        except (FileNotFoundError, NotADirectoryError):
            home = os.path.dirname(home)
        except OSError as error:
            why = reason(error)
            break
    if not why and not os.path.exists(home):
        why = "its link leads nowhere"
    elif not why and not os.path.isdir(home) and home != os.path.abspath(path):
        why = os.strerror(errno.ENOTDIR)
    elif not why and not os.access(home, os.W_OK):
        why = os.strerror(errno.EACCES)
    if why:
        raise UsageError(
            f"{str(path)!r} cannot be written: {why}",
            hint="check the path, and the permissions of its folder",
        )


def reason(error: OSError | RecursionError) -> str:
    """Say why a folder, or a file, could not be made."""
    if isinstance(error, OSError):
        return os.strerror(error.errno or errno.EIO)
    return "too many folders within each other"  # Python makes them one within the other


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(temporary: Path) -> None:
    # What stopped the write may stop the clean-up too; the first error is the one to tell.
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
