"""Writing files so that a reader, or a crash, never meets a half-written one."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dar_probe.errors import InUseError, UsageError
from dar_probe.runtime import system

CHECK = "check the folder's permissions and the free space"
OTHER = "choose another folder with --out"
EFFECTIVE = os.access in os.supports_effective_ids
NAME_MAX = 255  # bytes; looked at before folders above it are made


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there.

    Raises:
        UsageError: the disk is full, the folder is read-only or missing, or ``path`` is a device.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
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


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, as ``write_atomically`` does."""

    def write(target: Path) -> None:
        target.write_text(text, encoding="utf-8")

    write_atomically(path, write)


@contextmanager
def writing(path: Path, hint: str = CHECK) -> Iterator[None]:
    """Raise UsageError with ``hint`` where the system refuses to write ``path``."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be written: {_reason(error)}", hint=hint) from error


def make_folder(folder: Path, shown: Path, hint: str = CHECK) -> None:
    """Make a folder, and those above it, where it is missing; called ``shown``.

    Raises:
        UsageError: the system refuses it.
    """
    check_place(folder)
    with writing(shown, hint):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except RecursionError as error:  # Python makes them one within the other
            raise OSError(errno.ENAMETOOLONG, "") from error


def hold(folder: Path, shown: Path) -> int:
    """Hold a folder against other processes; made where it is missing, called ``shown``.

    The lock is the kernel's, so a killed process leaves none.

    Returns:
        A descriptor; closing it lets the folder go.

    Raises:
        InUseError: another process holds it.
        UsageError: it is a link, or it cannot be made.
    """
    while True:
        make_folder(folder, shown, OTHER)
        with writing(shown, OTHER), suppress(FileNotFoundError), ExitStack() as stack:
            # Not through a link: whoever holds a folder may remove what lies in it.
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, lock)
            if not system.lock(lock):
                raise InUseError(
                    f"{str(shown)!r} is being written by another process",
                    hint="wait for it, or choose another --out",
                )
            # The one that held it before may have removed it when it was done.
            if os.path.samestat(os.fstat(lock), os.lstat(folder)):
                stack.pop_all()
                return lock


def check_place(path: Path) -> None:
    """Refuse a place where no file or folder could be made, before any work for it is done.

    Raises:
        UsageError: it lies in no folder, or in one without the permission to write.
    """
    home, why = "", ""
    if "\0" in str(path):
        why = "a NUL byte is in its name"
    elif any(len(os.fsencode(part)) > NAME_MAX for part in path.parts):
        why = os.strerror(errno.ENAMETOOLONG)
    else:
        home = os.path.abspath(path)
    while not why:
        try:
            os.lstat(home)
            break
        except (FileNotFoundError, NotADirectoryError):
            home = os.path.dirname(home)
        except OSError as error:
            why = _reason(error)
            break
    if not why and not os.path.exists(home):
        why = "its link leads nowhere"
    elif not why and not os.path.isdir(home) and home != os.path.abspath(path):
        why = os.strerror(errno.ENOTDIR)
    elif not why and not os.access(home, os.W_OK, effective_ids=EFFECTIVE):
        why = os.strerror(errno.EACCES)
    if why:
        raise UsageError(
            f"{str(path)!r} cannot be written: {why}",
            hint="check the path, and the permissions of its folder",
        )


def _reason(error: OSError) -> str:
    """Say why a folder, or a file, could not be made."""
    return os.strerror(error.errno or errno.EIO)


def identity(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file or a folder is replaced; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None  # the reader of the file has better words for it
    return found.st_ino, found.st_mtime_ns


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
