"""Samples in tar archives, as WebDataset has them: files of one name and several endings.

Nothing is unpacked to disk. Archives are read from their beginning as far as rows are wanted.
"""

import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dar_probe.errors import DarProbeError, UsageError
from dar_probe.files import kinds
from dar_probe.files.text import quote

ENDING = ".tar"
LARGEST = 2**28  # bytes of one member
MOST = 64  # members of one sample
LABELS = ("label", "class", "cls", "class_id")  # where a .json keeps the class


class Sample(NamedTuple):
    """One sample of an archive.

    Attributes:
        name: its key, for messages.
        parts: what its members hold, by their endings such as "jpg" or "latent.npy".
    """

    name: str
    parts: dict[str, bytes]


def archives(path: Path) -> list[Path]:
    """Return the archive that a path is, or those in a folder; none of others."""
    if path.suffix == ENDING:
        return [path]
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.name.endswith(ENDING))


def samples(paths: Sequence[Path], most: int | None) -> Iterator[Sample]:
    """Return the samples of archives in their order, ``most`` at most.

    Raises:
        UsageError: an archive is compressed or damaged, or a member is too large.
    """
    whole = itertools.chain.from_iterable(map(_of_archive, paths))
    return itertools.islice(whole, most)


def all_told(labels: Sequence[int | None], path: Path) -> list[int] | None:
    """Return the classes of samples; None where none of them tells one.

    Raises:
        UsageError: some alone tell one: the others would be taken for class 0.
    """
    told = [label for label in labels if label is not None]
    if told and len(told) < len(labels):
        raise UsageError(
            f"{quote(path.name)} tells the classes of some samples alone",
            hint="every sample has its class in a .cls or a .json, or none has",
        )
    return told or None


def label_of(sample: Sample) -> int | None:
    """Return the class of a sample, from its .cls or its .json; None where neither tells.

    Raises:
        UsageError: what tells it is no whole number from 0.
    """
    found: Any = None
    try:
        if "cls" in sample.parts:
            found = int(sample.parts["cls"].decode().strip())
        elif "json" in sample.parts:
            told = json.loads(sample.parts["json"])
            found = next((told[k] for k in LABELS if k in told), None) if told else None
    except (ValueError, RecursionError, TypeError) as error:
        raise _bad(sample, f"its class cannot be read: {error}") from None
    if found is not None and (type(found) is not int or not 0 <= found < 2**31):
        raise _bad(sample, f"its class is {quote(found, 40)}")
    return found


def latent_of(sample: Sample) -> np.ndarray:
    """Return the one array of a sample, from its .npy, or a .npz with one array.

    Raises:
        UsageError: there is none, or several, or it is damaged.
    """
    ends = [end for end in sample.parts if end.endswith(("npy", "npz"))]
    if len(ends) != 1:
        has = ", ".join(quote(end, 40) for end in list(sample.parts)[:5])
        raise _bad(sample, f"it takes one .npy or .npz, and has {has}")
    data = io.BytesIO(sample.parts[ends[0]])
    try:
        if ends[0].endswith("npy"):
            return np.asarray(np.lib.format.read_array(data, allow_pickle=False))
        with np.load(data, allow_pickle=False) as held:
            if len(held.files) != 1:
                raise ValueError(f"it has {len(held.files)} arrays instead of one")
            entry = held.zip.infolist()[0]
            if entry.file_size > LARGEST:
                raise ValueError("its array is too large")
            return np.asarray(held[held.files[0]])
    except Exception as error:  # a parser of untrusted bytes fails in any way it likes
        raise _bad(sample, f"{quote(ends[0], 40)} cannot be read: {quote(error, 120)}") from None


def _of_archive(path: Path) -> Iterator[Sample]:
    name, parts = "", dict[str, bytes]()
    try:
        with kinds.open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if not member.isreg() or "/." in f"/{member.name}":
                    continue
                home, _, base = member.name.rpartition("/")
                stem, _, end = base.partition(".")
                key = f"{home}/{stem}"
                if key != name:
                    if parts:
                        yield Sample(name.lstrip("/"), parts)
                    name, parts = key, {}
                if member.size > LARGEST or len(parts) >= MOST:
                    raise ValueError(f"its member {quote(member.name, 60)} is too large")
                held = archive.extractfile(member)
                parts[end.lower()] = b"" if held is None else held.read()
            if parts:
                yield Sample(name.lstrip("/"), parts)
    except DarProbeError:
        raise
    except (tarfile.TarError, ValueError, EOFError, OSError) as error:
        raise UsageError(
            f"{quote(path.name)} cannot be read as a tar archive: {quote(error, 120)}",
            hint="WebDataset's archives are plain, uncompressed .tar files",
        ) from None


def _bad(sample: Sample, why: str) -> UsageError:
    return UsageError(
        f"the sample {quote(sample.name, 60)} is not read: {why}",
        hint="a sample has one image or one .npy, and its class in a .cls or as "
        '{"label": 3} in a .json',
    )
