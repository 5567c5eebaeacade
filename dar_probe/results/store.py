"""Analyses on disk: one NetCDF-4 file each, written atomically, read with suspicion."""

import math
import os
from io import BufferedReader
from pathlib import Path

import h5py  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import xarray as xr

from dar_probe.errors import CheckpointError, UsageError
from dar_probe.files import kinds
from dar_probe.files.atomic import write_atomically
from dar_probe.files.text import quote
from dar_probe.results.streams import validate

MAGIC = b"\x89HDF\r\n\x1a\n"
LARGE = 4096  # bytes from which compressing an array is worth its chunk
MAX_BYTES = 2**32  # in memory: 160 times 64 samples x 10 levels of a 28-block model
MAX_RATIO, SMALL = 1000, 2**26  # no compression reaches that; bytes that are harmless
MAX_TEXT = 2**20  # characters of one array of names
HINT = "give the analysis.nc that dar-probe analyze or audit wrote"


def write(ds: xr.Dataset, path: str | Path) -> None:
    """Write a whole analysis to ``path``, replacing what is there in one step.

    The file is made in memory, so that a full disk meets a plain write instead of the HDF5
    library. At every moment the target is absent, the old file or the new file.

    Raises:
        CheckpointError: ``ds`` is not a whole analysis.
        UsageError: it is too large, or the file system refuses the file.
    """
    validate(ds)
    if ds.nbytes > MAX_BYTES:
        raise UsageError(
            f"the analysis takes {ds.nbytes / 2**30:.1f} GiB, more than {MAX_BYTES / 2**30:.0f}",
            hint="use fewer samples or noise levels",
        )
    content = ds.drop_encoding().to_netcdf(engine="h5netcdf", encoding=_encoding(ds))

    def put(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomically(Path(path), put)


def read(path: str | Path) -> xr.Dataset:
    """Read an analysis into memory and check it; nothing stays open.

    Raises:
        CheckpointError: the file is missing, no analysis, damaged, changed by hand, or of
            another schema version.
    """
    name = quote(path)
    try:
        with kinds.open_file(Path(path)) as file:
            _check_start(file, name)
            return validate(_load(file))
    except CheckpointError as error:
        if name in str(error):
            raise
        raise CheckpointError(f"{name} is refused: {error}", hint=error.hint or HINT) from None
    except Exception as error:  # a parser of untrusted bytes fails in any way it likes
        raise CheckpointError(
            f"{name} is damaged, or no analysis ({type(error).__name__} while reading)",
            hint="analyse the checkpoint again",
        ) from error


def _check_start(file: BufferedReader, name: str) -> None:
    """Refuse by the first bytes what HDF5 need not see."""
    start = file.read(len(MAGIC))
    if not start:
        raise CheckpointError(f"{name} is empty", hint=HINT)
    if start != MAGIC:
        raise CheckpointError(f"{name} is not a NetCDF-4 file", hint=HINT)
    file.seek(0)


def _load(file: BufferedReader) -> xr.Dataset:
    with h5py.File(file, "r") as raw:
        _check_content(raw)
    # Nothing is decoded: no fill values, scales or dates are written, so none are believed.
    with xr.open_dataset(
        file, engine="h5netcdf", mask_and_scale=False, decode_times=False, decode_timedelta=False
    ) as lazy:
        most = min(MAX_BYTES, max(SMALL, MAX_RATIO * os.fstat(file.fileno()).st_size))
        if lazy.nbytes > most:
            raise CheckpointError(f"it claims {lazy.nbytes / 2**30:.1f} GiB of numbers")
        ds = lazy.load()
    text = {key: coord.astype(str) for key, coord in ds.coords.items() if coord.dtype == object}
    return ds.assign_coords(text).drop_encoding()


def _check_content(raw: h5py.File) -> None:
    """Refuse what would pull in other files of this machine, and texts that fill the memory.

    h5netcdf also reports on stderr, from a destructor, what it cannot open: it comes second.
    """
    _check_attributes(raw, "the file")
    for key in raw:
        shown = quote(key)
        link = raw.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise CheckpointError(f"{shown} links to another file")
        # A soft link may lead through a group to such a link.
        if not isinstance(link, h5py.HardLink) or not isinstance(raw[key], h5py.Dataset):
            raise CheckpointError(f"{shown} is no array of this file")
        item = raw[key]
        if item.is_virtual or item.external:
            raise CheckpointError(f"{shown} keeps its numbers in another file")
        _check_attributes(item, shown)
        if item.dtype == object:
            _check_texts(item, shown)


def _check_texts(item: h5py.Dataset, shown: str) -> None:
    """Refuse more text than names have: each may be the same stretch of the file once more."""
    left = MAX_TEXT - item.size
    for at in np.ndindex(item.shape) if left >= 0 else ():
        left -= len(item[at])
        if left < 0:
            break
    if left < 0:
        raise CheckpointError(f"{shown} holds more text than names have")


def _check_attributes(item: h5py.HLObject, shown: str) -> None:
    for key in item.attrs:
        kind = item.attrs.get_id(key)
        if math.prod(kind.shape or ()) > 64 and h5py.check_string_dtype(kind.dtype):
            raise CheckpointError(f"{shown} has many texts as {quote(key)}")


def _encoding(ds: xr.Dataset) -> dict[str, dict[str, object]]:
    """Compress what is large; a checksum and no fill value for every numeric array."""
    encoding: dict[str, dict[str, object]] = {}
    for name, array in ds.variables.items():
        if not np.issubdtype(array.dtype, np.number):
            continue
        settings: dict[str, object] = {"_FillValue": None}
        if array.ndim and array.size:
            settings["fletcher32"] = True
        if array.nbytes >= LARGE:
            settings.update(zlib=True, complevel=4, shuffle=True)
        encoding[str(name)] = settings
    return encoding
