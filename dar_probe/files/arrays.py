"""An untrusted .npz, .safetensors or .npy file to NumPy arrays; nothing in it is run."""

import math
import os
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO

import numpy as np

from dar_probe.errors import UsageError
from dar_probe.files import kinds
from dar_probe.files.safetensors_header import Stored, stored
from dar_probe.files.text import quote
from dar_probe.runtime import memory

MAX_RATIO = 100  # of bytes to compressed ones: floats have hardly 2, masks and labels some more
SMALL = 2**24  # bytes that may come of anything
Outline = dict[str, tuple[tuple[int, ...], str]]  # shape and type of every array
NUMBERS = frozenset(
    {"bool", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


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
            wanted = _entries(archive, names)
            require_room(sum(entry.file_size for entry in wanted.values()), path)
            return {name: _entry(archive, entry) for name, entry in wanted.items()}


def names_in(path: Path) -> list[str]:
    """Return the names, sorted, of the arrays in a .npz or .safetensors file.

    Raises:
        UsageError: it is neither, or is damaged.
    """
    with reading(path), kinds.open_file(path) as file:
        if path.suffix == ".safetensors":
            return sorted(stored(file))
        with zipfile.ZipFile(file) as archive:
            return sorted(_entries(archive, None))


def outline(file: BufferedReader) -> Outline:
    """Return shape and type of every array of an open .npz, from their headers alone.

    Raises:
        ValueError: an array is of no number, or not as large as it says; and what damage raises.
    """
    found = {}
    with zipfile.ZipFile(file) as archive:
        for name, entry in _entries(archive, None).items():
            with archive.open(entry) as part:
                shape, dtype = _header(part)
                if dtype.name not in NUMBERS:
                    raise ValueError(
                        f"its array {quote(name, 60)} is of type {dtype}"
                        + ", as NumPy writes bfloat16: save float32" * (dtype.str == "|V2")
                    )
                claimed = math.prod(shape) * dtype.itemsize + part.tell()
                if claimed != entry.file_size or min(shape, default=0) < 0:
                    raise ValueError(f"its array {quote(name, 60)} is not as large as it says")
            found[name] = (shape, dtype.name)
    return found


def load(file: BufferedReader, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """Return the wanted arrays of an open .npz whose ``outline`` is sound: NumPy trusts headers.

    Raises:
        ValueError: as ``outline``.
    """
    outline(file)
    with zipfile.ZipFile(file) as archive:
        found = _entries(archive, None)
        return {name: _entry(archive, entry) for name, entry in found.items() if wanted(name)}


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


def _entries(archive: zipfile.ZipFile, names: Collection[str] | None) -> dict[str, zipfile.ZipInfo]:
    """Return the arrays called ``names``, or all, by name.

    Raises:
        ValueError: some unpack to more than arrays do, or to different things for each reader.
    """
    every = archive.infolist()
    if len({entry.filename for entry in every}) < len(every):
        raise ValueError("it has an entry twice")
    arrays = {e.filename.removesuffix(".npy"): e for e in every if e.filename.endswith(".npy")}
    wanted = {name: e for name, e in arrays.items() if names is None or name in names}
    for entry in wanted.values():
        if entry.file_size > max(SMALL, MAX_RATIO * entry.compress_size):
            raise ValueError(
                f"its entry {quote(entry.filename, 60)} claims {entry.file_size} bytes, "
                f"packed in {entry.compress_size}"
            )
    return wanted


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


def _header(part: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(part)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array is of version {version} of NumPy's format")
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(part)
    return shape, dtype


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
