"""An untrusted .npz, .safetensors or .npy file to NumPy arrays; nothing in it is run."""

import os
import zipfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import numpy as np

from dar_probe.errors import UsageError
from dar_probe.files import kinds
from dar_probe.files.safetensors_header import Stored, stored
from dar_probe.files.text import quote
from dar_probe.runtime import memory

MAX_RATIO = 100  # of bytes to compressed ones: floats have hardly 2, masks and labels some more
SMALL = 2**24  # bytes that may come of anything


def read_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Return arrays of a .npz or .safetensors file: those called ``names``, or all.

    Types that NumPy lacks become float32. Names that are not there are left out.

    Raises:
        UsageError: it is neither, is damaged, or its arrays claim more than there can be.
    """
    with reading(path), kinds.open_file(path) as file:
        if path.suffix == ".safetensors":
            tensors = {k: v for k, v in stored(file).items() if names is None or k in names}
            require_room(sum(entry.bytes for entry in tensors.values()), path)
            return {name: _tensor(file, entry) for name, entry in tensors.items()}
        kinds.check_directory(file, os.fstat(file.fileno()).st_size, quote(path.name))
        with zipfile.ZipFile(file) as archive:
            arrays = {e.filename: e for e in archive.infolist() if e.filename.endswith(".npy")}
            wanted = {
                name.removesuffix(".npy"): entry
                for name, entry in arrays.items()
                if names is None or name.removesuffix(".npy") in names
            }
            _check_entries(archive.infolist(), list(wanted.values()), path)
            return {name: _entry(archive, entry) for name, entry in wanted.items()}


def read_array(path: Path) -> np.ndarray:
    """Return the array of a .npy file.

    Raises:
        UsageError: it is none, or is damaged.
    """
    with reading(path), kinds.open_file(path) as file:
        require_room(os.fstat(file.fileno()).st_size, path)
        return _native(np.lib.format.read_array(file, allow_pickle=False))


def read_rows(path: Path, names: Collection[str], most: int | None) -> dict[str, np.ndarray]:
    """Return the first ``most`` rows of arrays of a .safetensors file, without reading the others.

    Types that NumPy lacks become float32. Names that are not there are left out.

    Raises:
        UsageError: it is no such file, is damaged, or its arrays claim more than there can be.
    """
    with reading(path), kinds.open_file(path) as file:
        found = {k: v for k, v in stored(file).items() if k in names and v.shape}
        if most is not None:
            found = {name: _head(entry, most) for name, entry in found.items()}
        require_room(sum(entry.bytes for entry in found.values()), path)
        return {name: _tensor(file, entry) for name, entry in found.items()}


@contextmanager
def reading(
    path: Path, hint: str = "save it again with numpy.savez, numpy.save or safetensors"
) -> Iterator[None]:
    """Refuse a file of data for whatever fails inside, with a ``hint`` of how it should be.

    Raises:
        UsageError: something failed.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # zipfile and NumPy have no common error for damage
        why = quote(str(error) or type(error).__name__)
        raise UsageError(f"{quote(path.name)} cannot be read: {why}", hint=hint) from error


def _check_entries(
    every: Sequence[zipfile.ZipInfo], wanted: Sequence[zipfile.ZipInfo], path: Path
) -> None:
    """Refuse what unpacks to more than arrays do, or to different things for each reader."""
    if len({entry.filename for entry in every}) < len(every):
        raise ValueError("it has an entry twice")
    for entry in wanted:
        if entry.file_size > max(SMALL, MAX_RATIO * entry.compress_size):
            raise ValueError(
                f"its entry {quote(entry.filename, 60)} claims {entry.file_size} bytes, "
                f"packed in {entry.compress_size}"
            )
    require_room(sum(entry.file_size for entry in wanted), path)


def require_room(claimed: int, path: Path) -> None:
    """Require memory for ``claimed`` bytes, and for them once more in another type.

    Raises:
        UsageError: there is less.
    """
    if claimed <= SMALL:
        return
    if 2 * claimed > (have := memory.available()):
        raise UsageError(
            f"{quote(path.name)} needs {2 * claimed / memory.GIB:.1f} GiB of memory, "
            f"and {have / memory.GIB:.1f} GiB are available",
            hint="save the rows that are needed to a smaller file",
        )


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as part:
        return _native(np.lib.format.read_array(part, allow_pickle=False))


def _head(entry: Stored, most: int) -> Stored:
    rows = min(most, entry.shape[0])
    size = entry.bytes // entry.shape[0] * rows if entry.shape[0] else 0
    return Stored(entry.dtype, (rows, *entry.shape[1:]), entry.start, size)


def _tensor(file: BufferedReader, entry: Stored) -> np.ndarray:
    file.seek(entry.start)
    raw = np.empty(entry.bytes, np.uint8)
    if file.readinto(raw.data) != entry.bytes:
        raise ValueError("it was cut short while it was read")
    if entry.dtype == "bfloat16":  # the upper half of a float32
        wide = raw.view("<u2").astype(np.uint32) << np.uint32(16)
        return wide.view(np.float32).reshape(entry.shape)
    return _native(raw.view(np.dtype(entry.dtype).newbyteorder("<")).reshape(entry.shape))


def _native(array: np.ndarray) -> np.ndarray:
    """Return an array in this machine's byte order, as torch takes it."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)
