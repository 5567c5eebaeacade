"""Writing files so that a reader, or a crash, never meets a half-written one."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dar_probe.errors import UsageError

NAME_MAX = 255  # bytes; looked at before folders above it are made


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there.

    Raises:
        UsageError: the disk is full, the folder is read-only or missing, or ``path`` is a device.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        if is_there(path) and path.exists() and not (path.is_file() or path.is_dir()):
            # A rename would put a plain file in the place of /dev/null, for everybody.
            raise UsageError(f"{str(path)!r} is a device or a pipe", hint="choose another file")
        try:
            write(temporary)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            _discard(temporary)
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UsageError about ``path`` where the file system refuses what is done within."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{str(path)!r} cannot be written: {os.strerror(error.errno or errno.EIO)}",
            hint="check the folder's permissions and the free space",
        ) from error


def is_there(path: Path) -> bool:
    """Tell whether there is anything at ``path``, be it a link that leads nowhere.

    Raises:
        UsageError: nothing can be there: the name is too long, or below a file.
    """
    reason = "a name in it is too long"
    if all(len(os.fsencode(part)) <= NAME_MAX for part in path.parts):
        try:
            path.lstat()
            return True
        except FileNotFoundError:
            return False
        except OSError as error:
            reason = os.strerror(error.errno or errno.EIO)
        except ValueError:
            reason = "a NUL byte is in it"
    raise UsageError(f"{str(path)!r} is no path to write to: {reason}", hint="choose another path")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, as ``write_atomically`` does."""

    def write(target: Path) -> None:
        target.write_text(text, encoding="utf-8")

    write_atomically(path, write)


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
