"""Folders of latents as the preprocessing of REPA and LightningDiT leaves them.

Only the rows that are wanted are read, and only the folders before them are looked into.
"""

import codecs
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dar_probe.checkpoints import reader
from dar_probe.diffusion import webdataset
from dar_probe.diffusion.latent_norm import CHANNELS, STABLE_DIFFUSION, LatentNorm
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.files import arrays, kinds
from dar_probe.files.text import quote

STATS, LABELS, MOMENTS = "latents_stats.pt", "dataset.json", "img-mean-std-"
INSIDE = "vae-sd"  # where REPA keeps latents in the folder that its --data-dir names
FEATURES, CLASSES = "_features", "_labels"  # end the names of fast-DiT's two folders
# What trainers keep latents in that is not read, by the end of its name.
UNREAD = {
    ".parquet": "a Parquet table",
    ".arrow": "an Arrow table, as datasets of Hugging Face write",
    ".mdb": "an LMDB database",
    ".mds": "a shard of MosaicML's streaming",
    ".h5": "an HDF5 file",
    ".pkl": "a pickle",
    ".pt": "one .pt file a row",
    ".npz": "one .npz file a row",
}
SAVE = "save rows of it as one .npz: latents (N, C, H, W), as the model takes them, and labels (N,)"
SHARD = re.compile(r"latents_rank\d+_shard\d+\.safetensors")
DEEP = 8  # folders within folders, beyond which nobody looks
BLOCK = 2**20  # characters of labels that are read at once; no entry is longer


class Rows(NamedTuple):
    """The first rows of a folder.

    Attributes:
        latents: (N, C, h, w) in the space of the VAE.
        labels: (N,), or one-hot (N, K); None where there are none.
        pending: what brings the latents into the space of models.
        changes: one sentence for each thing that was done to what the folder holds.
        doubts: one sentence for each thing about them that is probably wrong.
    """

    latents: np.ndarray
    labels: np.ndarray | None
    pending: LatentNorm | None = None
    changes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def read(folder: Path, most: int | None = None) -> Rows:
    """Return the first ``most`` rows of a folder, in the order of their names; None: all.

    LightningDiT's holds .safetensors files of ``latents`` and ``labels``, and latents_stats.pt.
    REPA's holds one .npy file a row, in subfolders, and their labels in dataset.json. fast-DiT's
    is a pair of folders, NAME_features and NAME_labels, with one .npy file a batch in each.
    WebDataset's holds .tar archives, and nothing of these.

    Raises:
        UsageError: it is neither, or a file of it is damaged or fits no other.
    """
    inside = folder / INSIDE
    folder = inside if inside.is_dir() else folder
    try:
        with os.scandir(folder) as entries:
            ends = (".safetensors", FEATURES, webdataset.ENDING)
            known = sorted(e.name for e in entries if e.name.endswith(ends))
        archives = [folder / name for name in known if name.endswith(webdataset.ENDING)]
        known = [name for name in known if not name.endswith(webdataset.ENDING)]
        if shards := [name for name in known if name.endswith(".safetensors")]:
            return read_shards([folder / name for name in shards], most)
        if pair := _pair(folder, known):
            return _read_pair(*pair, most)
        names = list(itertools.islice(_names(folder, "", DEEP), most))
    except OSError as error:
        raise UsageError(
            f"the folder {quote(folder)} cannot be read: {error.strerror}",
            hint="check its permissions",
        ) from None
    if not names:
        if archives:
            return read_archives(archives, most)
        if what := _unread(folder):
            raise UsageError(f"the folder {quote(folder)} is not read: it holds {what}", hint=SAVE)
        raise UsageError(
            f"the folder {quote(folder)} holds no latents",
            hint=f"looked for .safetensors files as LightningDiT writes them, and for .npy files "
            f"as REPA does (with their {LABELS}) and fast-DiT, subfolders included",
        )
    return _read_rows(folder, names)


def read_archives(paths: Sequence[Path], most: int | None = None) -> Rows:
    """Return the first ``most`` rows of WebDataset's archives; None: all.

    Raises:
        UsageError: a sample is damaged, has no class where others have one, or fits no other.
    """
    values, labels = [], []
    for sample in webdataset.samples(paths, most):
        values.append(webdataset.latent_of(sample))
        labels.append(webdataset.label_of(sample))
        if values[-1].shape != values[0].shape:
            raise UsageError(
                f"the sample {quote(sample.name, 60)} has latents {values[-1].shape}, and the "
                f"first one {values[0].shape}",
                hint="the latents of one set have one shape",
            )
    if not values:
        raise UsageError(f"{quote(paths[0].name)} holds no samples")
    told = webdataset.all_told(labels, paths[0])
    return Rows(np.stack(values), None if told is None else np.array(told))


def read_shards(paths: Sequence[Path], most: int | None = None) -> Rows:
    """Return the first ``most`` rows of LightningDiT's files, which lie in one folder; None: all.

    Training takes an image or its flip by chance; here it is the image, ``latents``.

    Raises:
        UsageError: a file is damaged, or does not fit the others.
    """
    found: list[dict[str, np.ndarray]] = []
    count = 0
    for path in paths:
        if most is not None and count >= most:
            break
        part = arrays.read_rows(path, ("latents", "labels"), None if most is None else most - count)
        if "latents" not in part:
            raise UsageError(
                f"{quote(path.name)} holds no array called 'latents'",
                hint="a folder of latents holds files with latents (N, C, H, W) and labels (N,)",
            )
        first = found[0] if found else part
        same = {name: a.shape[1:] for name, a in first.items()}
        lengths = {len(array) for array in part.values()}
        if {name: a.shape[1:] for name, a in part.items()} != same or len(lengths) > 1:
            raise _misfit(path.name, part["latents"].shape)
        found.append(part)
        count += len(part["latents"])
    rows = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    latents, stats = rows["latents"], paths[0].parent / STATS
    if not stats.is_file():
        doubt = (
            f"The folder has no {STATS}, by whose mean and spread LightningDiT normalises its "
            "latents. They are used as they are: if they are not normalised, every number below "
            "is wrong."
        )
        return Rows(latents, rows.get("labels"), doubts=(doubt,))
    return Rows(latents, rows.get("labels"), _stats(stats, latents.shape[1]))


def read_pt(path: Path, names: Sequence[str] = ("latents", "labels")) -> dict[str, np.ndarray]:
    """Return the tensors called ``names`` of a .pt file; a single tensor has the first name.

    Types that NumPy lacks become float32. Names that are not there are left out.

    Raises:
        UsageError: it is no file of torch.save, is damaged, or one of them is no tensor.
    """
    arrays.require_room(path.stat().st_size, path)
    hint = f"save the tensors {' and '.join(names)} in a dict with torch.save"
    with arrays.reading(path, hint):
        try:
            found = reader.read_tensors(path, names)
        except CheckpointError as error:
            raise UsageError(str(error), hint=hint) from error
        return {
            name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
            for name, tensor in found.items()
        }


def _stats(path: Path, channels: int) -> LatentNorm:
    found = read_pt(path, ("mean", "std"))
    mean, std = (found.get(name, np.zeros(0)).ravel() for name in ("mean", "std"))
    sound = (std > 0).all() and np.isfinite([*mean, *std]).all()
    if not mean.size == std.size == channels or not sound:
        raise UsageError(
            f"{quote(path.name)} is no mean and std of {channels} channels",
            hint="take it away to use the latents as they are, or let LightningDiT write it anew",
        )
    return LatentNorm(
        mean=torch.from_numpy(mean.astype(np.float64)),
        std=torch.from_numpy(std.astype(np.float64)),
        by=f"mean and std in {STATS}",
    )


def _names(folder: Path, before: str, deep: int) -> Iterator[str]:
    """Yield the .npy files below a folder, by their paths from the top, in the order of these."""
    with os.scandir(folder) as found:
        entries = sorted(
            e.name + "/" * e.is_dir(follow_symlinks=False)
            for e in found
            if not e.name.startswith(".")
        )
    for name in entries:
        if name.endswith("/") and deep:
            yield from _names(folder / name, before + name, deep - 1)
        elif name.endswith(".npy"):
            yield before + name


def _unread(folder: Path, deep: int = 2) -> str:
    """Say what a folder holds that trainers keep latents in, or its first folder, ``deep`` down."""
    with os.scandir(folder) as found:
        entries = sorted(itertools.islice(found, 1000), key=lambda entry: entry.name)
    ends = {os.path.splitext(entry.name)[1] for entry in entries}
    what = next((what for end, what in UNREAD.items() if end in ends), "")
    inner = next((entry for entry in entries if entry.is_dir(follow_symlinks=False)), None)
    return what or (_unread(Path(inner.path), deep - 1) if inner and deep else "")


def _pair(folder: Path, inside: list[str]) -> tuple[Path, Path] | None:
    """Return fast-DiT's folders of latents and of labels, where this is the first or holds both."""
    if not folder.name.endswith(FEATURES):
        if len(inside) != 1:
            return None
        folder = folder / inside[0]
    labels = folder.with_name(folder.name.removesuffix(FEATURES) + CLASSES)
    return (folder, labels) if folder.is_dir() and labels.is_dir() else None


def _read_pair(folder: Path, labels: Path, most: int | None) -> Rows:
    """Return the first ``most`` rows of fast-DiT's batches, which its encoder has scaled."""
    rows: list[np.ndarray] = []
    classes: list[np.ndarray] = []
    count = size = 0
    for name in _names(folder, "", 0):
        if most is not None and count >= most:
            break
        part = arrays.read_array(folder / name)
        alike = part.shape[1:] == (rows[0] if rows else part).shape[1:]
        if part.ndim < 3 or not alike or not np.issubdtype(part.dtype, np.floating):
            raise _misfit(name, part.shape)
        label = arrays.read_array(labels / name)
        if label.shape != part.shape[:1]:
            raise UsageError(
                f"{quote(labels / name)} has labels of shape {label.shape}, its latents are "
                f"{part.shape}",
                hint="each file of labels has one class for each row of the file of latents",
            )
        rows.append(part)
        classes.append(label)
        count, size = count + len(part), size + part.nbytes
        arrays.require_room(size, folder)
    if not rows:
        raise UsageError(f"the folder {quote(folder)} holds no .npy files", hint=SAVE)
    said = f"labels are those of the folder {quote(labels.name)}"
    return Rows(np.concatenate(rows)[:most], np.concatenate(classes)[:most], changes=(said,))


def _read_rows(folder: Path, names: list[str]) -> Rows:
    moments = os.path.basename(names[0]).startswith(MOMENTS)
    first = arrays.read_array(folder / names[0])
    if first.ndim < 2 or (moments and len(first) % 2):
        raise _misfit(names[0], first.shape)
    arrays.require_room(first.nbytes * len(names), folder)
    values = np.empty((len(names), len(first) // (1 + moments), *first.shape[1:]), np.float32)
    for row, name in enumerate(names):
        part = arrays.read_array(folder / name)
        kind = np.issubdtype(part.dtype, np.floating)
        alike = os.path.basename(name).startswith(MOMENTS) == moments
        if part.shape != first.shape or not kind or not alike:
            raise _misfit(name, part.shape)
        # What follows the mean is its standard deviation, which NaN is not either.
        if moments and not (part[len(part) // 2 :] >= 0).all():
            raise UsageError(
                f"{quote(name)} has a second half with values below 0, which is no deviation",
                hint=f"{MOMENTS}*.npy hold mean and standard deviation, each (C, h, w)",
            )
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
            values[row] = part[: values.shape[1]]
    labels = _labels(folder / LABELS, names)
    if not moments:
        return Rows(values, labels)
    changes = ("of each image the mean of the VAE's posterior is taken; training draws from it",)
    if values.shape[1] == CHANNELS:
        return Rows(values, labels, STABLE_DIFFUSION, changes)
    doubt = (
        f"The latents are a VAE's own, of {values.shape[1]} channels, and nothing tells how the "
        "model takes them. They are used as they are: if it takes them scaled, every number below "
        "is wrong."
    )
    return Rows(values, labels, None, changes, (doubt,))


def _labels(path: Path, names: list[str]) -> np.ndarray | None:
    """Return the labels of ``names``, of which the file is read as far as they stand in it."""
    if not path.is_file():
        return None
    wanted: dict[str, Any] = dict.fromkeys(names)
    missing = len(wanted)
    hint = 'it begins with {"labels": [["00000/name.npy", 7], ...'
    with arrays.reading(path, hint), kinds.open_file(path) as file:
        for name, label in _entries(codecs.getreader("utf-8")(file)):
            if name in wanted and wanted[name] is None:
                wanted[name] = label
                missing -= 1
            if not missing:
                return np.array(list(wanted.values()))
            if label is None:
                return None
    lost = next(name for name, label in wanted.items() if label is None)
    raise UsageError(f"{quote(path.name)} has no label of {quote(lost)}", hint=hint)


def _entries(text: codecs.StreamReader) -> Iterator[tuple[str, Any]]:
    """Yield name and label of every entry; ("", None) where the file says that there are none.

    Raises:
        ValueError: it is no such file.
    """
    held = text.read(BLOCK)
    head = re.match(r'\s*\{\s*"labels"\s*:\s*(null|\[)', held)
    if head is None:
        raise ValueError("it does not begin with labels")
    if head[1] == "null":
        yield "", None
        return
    decoder, at = json.JSONDecoder(), head.end()
    while True:
        found = re.compile(r"[\s,]*").match(held, at)
        start = found.end() if found else at
        if held[start : start + 1] == "]":
            return
        try:
            entry, at = decoder.raw_decode(held, start)
        except RecursionError as error:
            raise ValueError("it is nested without end") from error
        except ValueError:
            more = text.read(BLOCK)
            if not more or len(held) - start > BLOCK:
                raise
            held, at = held[start:] + more, 0
            continue
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise ValueError(f"its entry {quote(entry, 60)} is no name with a label")
        if not isinstance(entry[1], int | float | list):
            raise ValueError(f"its entry {quote(entry, 60)} has no label")
        yield entry[0], entry[1]


def _misfit(name: str, shape: tuple[int, ...]) -> UsageError:
    return UsageError(
        f"{quote(name)} of shape {shape} does not fit the other latents of its folder",
        hint="all rows are floating-point numbers of one shape; take other files away",
    )
