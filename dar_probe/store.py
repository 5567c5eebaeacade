"""Analyses on disk: one NetCDF-4 file each, written atomically, read with suspicion."""

import os
import stat
from pathlib import Path

import h5py  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import xarray as xr

from dar_probe.checkpoints.sniff import quote
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.files import write_atomically
from dar_probe.schema import validate

MAGIC = b"\x89HDF\r\n\x1a\n"
LARGE = 4096  # bytes from which compressing an array is worth its chunk
MAX_BYTES = 2**32  # in memory: 160 times 64 samples x 10 levels of a 28-block model


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
    source = Path(path)
    name = quote(source)
    _sniff(source, name)
    try:
        return validate(_load(source))
    except CheckpointError as error:
        raise CheckpointError(f"{name} is refused: {error}", hint=error.hint) from error
    except Exception as error:  # a parser of untrusted bytes fails in any way it likes
        raise CheckpointError(
            f"{name} is damaged, or no analysis ({type(error).__name__} while reading)",
            hint="analyse the checkpoint again",
        ) from error


def _sniff(source: Path, name: str) -> None:
    """Refuse by the first bytes what HDF5 need not see."""
    hint = "give the analysis.nc that dar-probe analyze or audit wrote"
    try:
        if not os.path.isdir(source) and not stat.S_ISREG(os.stat(source).st_mode):
            raise CheckpointError(f"{name} is not a regular file", hint=hint)  # a pipe would block
        with open(source, "rb") as file:
            start = file.read(len(MAGIC))
    except IsADirectoryError as error:
        raise CheckpointError(f"{name} is a folder, not a file", hint=hint) from error
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {name}", hint=hint) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"cannot read {name}: {why}", hint=hint) from error
    if not start:
        raise CheckpointError(f"{name} is empty", hint=hint)
    if start != MAGIC:
        raise CheckpointError(f"{name} is not a NetCDF-4 file", hint=hint)


def _load(source: Path) -> xr.Dataset:
    _refuse_outside_data(source)
    # Nothing is decoded: no fill values, scales or dates are written, so none are believed.
    with xr.open_dataset(
        source, engine="h5netcdf", mask_and_scale=False, decode_times=False, decode_timedelta=False
    ) as lazy:
        if lazy.nbytes > MAX_BYTES:
            raise CheckpointError(f"it claims {lazy.nbytes / 2**30:.1f} GiB of numbers")
        ds = lazy.load()
    text = {key: coord.astype(str) for key, coord in ds.coords.items() if coord.dtype == object}
    return ds.assign_coords(text).drop_encoding()


def _refuse_outside_data(source: Path) -> None:
    """Refuse links and storage that would pull in other files of this machine.

    h5netcdf also reports on stderr, from a destructor, what it cannot open: it comes second.
    """
    with h5py.File(source, "r") as file:
        for key in file:
            if isinstance(file.get(key, getlink=True), h5py.ExternalLink):
                raise CheckpointError(f"{key!r} links to another file")
            item = file[key]
            if isinstance(item, h5py.Dataset) and (item.is_virtual or item.external):
                raise CheckpointError(f"{key!r} keeps its numbers in another file")


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
