"""Samples addressed by id: the shipped digits, folders of images, files of latents, and noise."""

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dar_probe.diffusion import latents_folder, webdataset
from dar_probe.diffusion.latent_norm import SCALED, LatentNorm
from dar_probe.errors import UsageError
from dar_probe.files import arrays, kinds
from dar_probe.files.text import quote

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# Of one image; a pixel takes up to 12 bytes on its way, and on disk a thousandth of one at least.
MAX_PIXELS, SMALL_PIXELS = 2**26, 2**22
AS_THEY_ARE = ", used as they are"
Split = Literal["train", "held-out", "all"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """Samples in the model's own space.

    Attributes:
        name: what the user wrote, e.g. "digits".
        description: one sentence for the report.
        latents: (M, *shape), as a rule (M, C, h, w), float32, used as they are.
        labels: (M,) int64; all 0 where there are none.
        labelled: the file tells them.
        changes: one sentence for each thing that was done to what the user gave.
        doubts: one sentence for each thing about them that is probably wrong.
        ids: (M,) int64, the row numbers; noise is a function of (seed, id).
        pending: what the latents of a VAE still lack to be as models take them; None: nothing.
    """

    name: str
    description: str
    latents: Tensor
    labels: Tensor
    ids: Tensor
    labelled: bool = True
    changes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    pending: LatentNorm | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int) -> "Data":
        """Return the first ``count`` rows.

        Raises:
            UsageError: there are fewer.
        """
        if not 1 <= count <= len(self):
            raise UsageError(
                f"{count} samples were asked for, {self.name} has {len(self)}",
                hint=f"--samples takes 1 to {len(self)} here",
            )
        return self.take(slice(0, count))

    def take(self, rows: "slice | np.ndarray | Tensor") -> "Data":
        """Return the rows given by a slice or an index."""
        return replace(
            self, latents=self.latents[rows], labels=self.labels[rows], ids=self.ids[rows]
        )

    def normalised(self, own: LatentNorm | None = None) -> "Data":
        """Return the latents as a model takes them, behind what is pending or its ``own`` norm."""
        norm = own or self.pending
        if norm is None:
            return self
        values = norm.apply(self.latents)
        return replace(
            self,
            latents=values,
            description=f"{self.description.removesuffix(AS_THEY_ARE)}, {norm.said}",
            changes=(*self.changes, f"the data were {norm.said}, as in training"),
            doubts=tuple(filter(None, [norm.doubt(values)])),
            pending=None,
        )

    def split(self, which: Split) -> "Data":
        """Return the rows with id % 7 == 3 ("held-out"), the others ("train"), or all."""
        if which == "all":
            return self
        held_out = self.ids % 7 == 3
        return self.take(torch.nonzero(held_out if which == "held-out" else ~held_out)[:, 0])


def load_data(
    spec: str,
    *,
    split: Split = "all",
    shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    most: int | None = None,
    raw: bool = False,
) -> Data:
    """Load "digits", "images:DIR" or "latents:PATH".

    Args:
        spec: where the samples come from.
        split: which rows; see ``Data.split``.
        shape: of a sample that the model takes, as a rule (C, h, w); images are converted to C
            channels where they can be, cropped to a square and resized.
        num_classes: labels must lie below it, and be there; None: the model takes none.
        most: how many rows are needed; of a folder no more are read.
        raw: leave latents of a VAE as they are, with what is pending.

    Raises:
        UsageError: the path is wrong or empty, or a shape or a label does not fit the model.
    """
    kind, _, where = spec.partition(":")
    if kind == "digits" and not where:
        data = digits()
    elif kind == "images" and where:
        data = images(
            Path(where), shape=shape or (3, 32, 32), most=most if split == "all" else None,
            labels_matter=num_classes is not None,
        )  # fmt: skip
    elif kind == "latents" and where:
        data = latents(Path(where), most=most if split == "all" else None)
    else:
        raise UsageError(
            f"unknown data {spec!r}", hint="--data takes digits, images:DIR or latents:PATH"
        )
    data = data if raw else data.normalised()
    check_fit(data, shape, num_classes)
    data = data.split(split)
    if not len(data):
        raise UsageError(f"{spec} has no rows in its {split} part", hint="it needs more samples")
    return data


def check_fit(data: Data, shape: tuple[int, ...] | None, num_classes: int | None) -> None:
    """Raise UsageError where samples have another shape, or labels, than a model takes."""
    own = tuple(data.latents.shape[1:])
    if shape is not None and own != shape:
        halves = own == (2 * shape[0], *shape[1:])
        raise UsageError(
            f"{data.name} has samples of {_by(own)}, the model takes {_by(shape)}",
            hint="with twice the channels they may be a VAE's mean and deviation: pass the first "
            "half, scaled as the model takes it"
            if halves
            else "pass data of that shape with --data latents:PATH or images:DIR",
        )
    if num_classes is not None and not data.labelled:
        raise UsageError(
            f"{data.name} has no labels, the model knows {num_classes} classes",
            hint="add an array called labels (N,), one class for each row (of a .npy file: "
            "NAME_labels.npy beside it)",
        )
    if num_classes is not None and int(data.labels.max()) >= num_classes:
        raise UsageError(
            f"{data.name} has the label {int(data.labels.max())}, the model knows "
            f"{num_classes} classes"
        )


def digits() -> Data:
    """Return all 1,797 handwritten digits (1797, 1, 8, 8), scaled to [-1, 1]."""
    with (files("dar_probe.digits") / "digits.npz").open("rb") as file:
        stored = np.load(file)
        pixels, labels = stored["images"], stored["labels"]
    return Data(
        name="digits",
        description="the 1,797 handwritten digits of the UCI/scikit-learn set, 8x8, in [-1, 1]",
        latents=torch.from_numpy(pixels).float()[:, None] / 8 - 1,
        labels=torch.from_numpy(labels).long(),
        ids=torch.arange(len(labels)),
    )


def images(
    folder: Path, *, shape: tuple[int, ...], most: int | None = None, labels_matter: bool = False
) -> Data:
    """Return the images of a folder in [-1, 1]; subfolders in the order of their names are classes.

    Images lie as a camera's note (EXIF) says. Hidden files and folders are none. Archives of
    WebDataset have the class of each image beside it.

    Args:
        folder: looked through with its subfolders; or one that holds .tar archives, or one of them.
        shape: (C, h, h) of a sample.
        most: only the first so many are read, by folder and name; None: all of them.
        labels_matter: to a model with classes, so that ``changes`` say where they come from.

    Raises:
        UsageError: no such folder, no images, an unreadable image, or channels not 1 or 3.
    """
    if not folder.is_dir() and not (folder.suffix == webdataset.ENDING and folder.is_file()):
        raise UsageError(f"there is no folder {str(folder)!r}", hint="--data images:DIR")
    names = sorted(_images_in(folder))  # of a file none
    shards = [] if names else webdataset.archives(folder)
    if not names and not shards:
        raise UsageError(
            f"the folder {str(folder)!r} holds no images",
            hint=f"looked for {', '.join(sorted(IMAGE_SUFFIXES))}, subfolders included",
        )
    if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
        raise UsageError(
            f"the model takes samples of shape {shape}, images have 1 or 3 channels and are square",
            hint="encode the images first and pass --data latents:PATH",
        )
    channels, size, _ = shape
    if shards:
        return _images_of(folder, shards, shape, most, labels_matter=labels_matter)
    classes = sorted({name[:-1] for name in names})
    total, names = len(names), names[:most]
    read = [_read_image(folder.joinpath(*name), channels, size) for name in names]
    said = _classes(["/".join(one) for one in classes])
    changes = _changes([found for _, found in read], channels, size)
    if labels_matter:
        alone = "there is one subfolder" if classes[0] else "there are no subfolders"
        one = f"every image is taken for class 0: {alone}"
        changes += (one if len(classes) == 1 else f"labels: {said}",)
    return Data(
        name=f"images:{folder}",
        description=f"{total} images, cropped to a square and resized to {size}x{size}, "
        f"in [-1, 1]; {said}",
        latents=torch.stack([pixels for pixels, _ in read]),
        labels=torch.tensor([classes.index(name[:-1]) for name in names]),
        ids=torch.arange(len(names)),
        changes=changes,
    )


def _images_in(folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield the images of a folder as the parts of their paths in it; a million takes seconds."""
    endings = tuple(IMAGE_SUFFIXES)
    for home, inner, found in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        parts = Path(home).relative_to(folder).parts
        for name in (*inner, *found):  # a folder with an image's name is refused as one
            if name.lower().endswith(endings) and not name.startswith("."):
                yield (*parts, name)


def _images_of(
    folder: Path,
    shards: Sequence[Path],
    shape: tuple[int, ...],
    most: int | None,
    *,
    labels_matter: bool,
) -> Data:
    """Return the first images of WebDataset's archives."""
    read, labels = [], []
    for sample in webdataset.samples(shards, most):
        ends = [end for end in sample.parts if f".{end.rpartition('.')[2]}" in IMAGE_SUFFIXES]
        if len(ends) != 1:
            raise UsageError(
                f"the sample {quote(sample.name, 60)} has {len(ends)} images, instead of one",
                hint=f"looked for {', '.join(sorted(IMAGE_SUFFIXES))}",
            )
        name = Path(f"{sample.name}.{ends[0]}")
        read.append(_read_image(name, shape[0], shape[1], sample.parts[ends[0]]))
        labels.append(webdataset.label_of(sample))
    if not read:
        raise UsageError(f"{quote(folder)} holds archives without samples")
    told = webdataset.all_told(labels, folder)
    changes = _changes([found for _, found in read], shape[0], shape[1])
    if labels_matter:
        changes += (
            "every image is taken for class 0: no archive tells another"
            if told is None
            else "labels: as the archives tell them",
        )
    return Data(
        name=f"images:{folder}",
        description=f"{len(read)} images of WebDataset's archives, cropped to a square and resized "
        f"to {shape[1]}x{shape[1]}, in [-1, 1]",
        latents=torch.stack([pixels for pixels, _ in read]),
        labels=torch.tensor(told or [0] * len(read)),
        ids=torch.arange(len(read)),
        changes=changes,
    )


def latents(file: Path, *, most: int | None = None) -> Data:
    """Return ``latents`` and ``labels`` (M,) of a .npz, .safetensors, .npy or .pt file or a folder.

    Latents are (M, C, h, w) for most models. Labels may be missing: not every model takes them.
    Of a folder, see ``latents_folder``, the first ``most`` rows are read; None: all.

    Raises:
        UsageError: no such file, unknown suffix, missing or misshapen arrays, NaN or Inf.
    """
    rows = _rows(file, most)
    values, labelled = rows.latents, rows.labels is not None
    labels = np.zeros(values.shape[:1], np.int64) if rows.labels is None else rows.labels
    labels, hot = _of_one_hot(labels)
    if values.ndim < 2 or labels.shape != values.shape[:1] or not len(labels):
        raise UsageError(
            f"{file.name!r}: latents {values.shape} and labels {labels.shape} do not fit",
            hint="latents must be (N, C, H, W), as the model takes them, and labels (N,)",
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= 2**31:
        raise UsageError(
            f"{file.name!r}: labels must be whole numbers from 0", hint="one class for each row"
        )
    if not np.issubdtype(values.dtype, np.floating) or 0 in values.shape:
        raise UsageError(
            f"{file.name!r}: latents must be floating-point numbers, one row at least",
            hint="save them as float32, scaled as the model takes them",
        )
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
        values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise UsageError(
            f"{file.name!r}: latents hold NaN or Inf", hint="look at how they were encoded"
        )
    return Data(
        name=f"latents:{file}",
        description=f"{len(labels)} latents of {file.name or file}"
        f"{'' if labelled else ' without labels'}{'' if rows.pending else AS_THEY_ARE}",
        latents=torch.from_numpy(values),
        labels=torch.from_numpy(labels.astype(np.int64)),
        ids=torch.arange(len(labels)),
        labelled=labelled,
        changes=(*rows.changes, *hot),
        doubts=(*([] if rows.pending else _spread(torch.from_numpy(values))), *rows.doubts),
        pending=rows.pending,
    )


def _of_one_hot(labels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels (N,) also where each is written as a row of zeros with a single one (N, K)."""
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all() or (labels.sum(1) != 1).any():
        return labels, ()
    return labels.argmax(1), (f"labels are one-hot rows of {labels.shape[1]} classes",)


def _spread(values: Tensor) -> list[str]:
    """Say where latents are hardly those that a model was trained on."""
    spread = float(values[:1000].double().std(correction=0))
    if SCALED[0] <= spread <= SCALED[1]:
        return []
    return [
        f"The latents have a standard deviation of {spread:.3g}, where models take them scaled "
        "to about 1 (those of Stable Diffusion's VAE: times 0.18215). They are used as they "
        "are: if they are not scaled, every number below is wrong."
    ]


def noise(ids: Sequence[int] | Tensor, shape: Sequence[int], *, seed: int) -> Tensor:
    """Return standard normal noise (N, *shape), a function of (seed, id) alone."""
    rows = [
        np.random.default_rng([seed, int(i)]).standard_normal(tuple(shape), dtype=np.float32)
        for i in ids
    ]
    return torch.from_numpy(np.stack(rows))


def _classes(names: list[str]) -> str:
    """Say which folder is which class."""
    if len(names) == 1:
        return "1 class"
    shown = ", ".join(f"{at} {quote(name, 30)}" for at, name in enumerate(names[:3]))
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} classes by the names of their folders: {shown}{more}"


class _Found(NamedTuple):
    """What an image was before it was made fit for the model."""

    width: int
    height: int
    coloured: bool
    transparent: bool


def _changes(found: Sequence[_Found], channels: int, size: int) -> tuple[str, ...]:
    """Say in how many images of a folder the model's format loses what."""
    sides = sorted({(one.width, one.height) for one in found}, key=lambda side: side[0] * side[1])
    between = " to ".join(dict.fromkeys(_by(side) for side in (sides[0], sides[-1])))
    counts = {
        f"resized to {size}x{size} (they have {between} pixels)": [
            min(one.width, one.height) != size for one in found
        ],
        "cropped to a square": [one.width != one.height for one in found],
        "turned grey": [channels == 1 and one.coloured for one in found],
        "given three equal channels": [channels == 3 and not one.coloured for one in found],
        "stripped of transparency": [one.transparent for one in found],
    }
    said = [f"{sum(those)} {what}" for what, those in counts.items() if any(those)]
    return (f"of {len(found)} images: {', '.join(said)}",) if said else ()


def _read_image(
    path: Path, channels: int, size: int, held: bytes | None = None
) -> tuple[Tensor, _Found]:
    """Return an image (C, h, h), of a file or of what is ``held`` of it already."""
    wanted = "L" if channels == 1 else "RGB"
    opened = kinds.open_file(path) if held is None else nullcontext(io.BytesIO(held))
    try:
        with opened as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's own, higher limit of pixels
            # Its other formats are many, and one of them starts Ghostscript.
            with Image.open(file, formats=IMAGE_FORMATS) as stored:
                image: Image.Image = stored
                size_on_disk = os.fstat(file.fileno()).st_size if held is None else len(held)
                most = min(MAX_PIXELS, max(SMALL_PIXELS, 1000 * size_on_disk))
                if image.width * image.height > most:
                    raise ValueError(f"its {image.width}x{image.height} pixels are too many")
                found = _Found(
                    width=image.width,
                    height=image.height,
                    coloured=image.mode not in ("1", "L", "LA") and not image.mode.startswith("I"),
                    transparent=image.has_transparency_data,
                )
                image = ImageOps.exif_transpose(image)
                if image.mode.startswith("I"):  # 16 bits a pixel, which convert would clip
                    narrow = (np.asarray(image) / 257).astype(np.uint8)
                    pixels = Image.fromarray(narrow).convert(wanted)
                else:
                    pixels = image.convert(wanted)
    except Exception as error:  # Pillow has no common error for damage
        raise UsageError(
            f"{quote(path.name)} cannot be read as an image: {quote(error)}",
            hint=f"images are whole {', '.join(IMAGE_FORMATS)} files; take others away",
        ) from error
    side = min(pixels.size)
    left, top = (pixels.width - side) // 2, (pixels.height - side) // 2
    pixels = pixels.crop((left, top, left + side, top + side)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    array = np.asarray(pixels, dtype=np.float32).reshape(size, size, channels)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1), found


def _rows(path: Path, most: int | None) -> latents_folder.Rows:
    """Return the rows of a file or folder, as they lie there."""
    if path.is_dir():
        return latents_folder.read(path, most)
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}", hint="--data latents:PATH")
    if path.suffix == webdataset.ENDING:
        return latents_folder.read_archives([path], most)
    beside = (path.parent / latents_folder.STATS).exists()
    if beside and latents_folder.SHARD.fullmatch(path.name):
        return latents_folder.read_shards([path], most)
    found = _read_arrays(path)
    doubt = (
        f"Beside the latents lies {latents_folder.STATS}, by whose mean and spread LightningDiT "
        "normalises them. It is not applied to this file: save the latents normalised, or give "
        "the folder."
    )
    labels, doubts = found.get("labels"), (doubt,) if beside else ()
    return latents_folder.Rows(found["latents"], labels, doubts=doubts)


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    names = ("latents", "labels")
    if file.suffix in (".npz", ".safetensors"):
        found = arrays.read_arrays(file, names)
    elif file.suffix == ".npy":
        beside = file.with_name(f"{file.stem}_labels.npy")
        found = {"latents": arrays.read_array(file)}
        if beside.is_file():
            found["labels"] = arrays.read_array(beside)
    elif file.suffix in (".pt", ".pth"):
        found = latents_folder.read_pt(file)
    elif file.suffix in (".h5", ".hdf5"):
        raise UsageError(
            f"{file.name!r} is an HDF5 file, as REPA-E caches latents, and is not read",
            hint="save rows of it as a .npz: latents, of each array the first half of its channels "
            "(the rest is the deviation), and labels, which are in its dataset.json",
        )
    elif what := latents_folder.UNREAD.get(file.suffix):
        raise UsageError(f"{file.name!r} is not read: it is {what}", hint=latents_folder.SAVE)
    else:
        raise UsageError(
            f"{file.name!r} is no known kind of latents file",
            hint="use .npz, .safetensors, .pt, or .npy with NAME_labels.npy; or a folder of REPA "
            "or LightningDiT",
        )
    if "latents" not in found:
        own = [] if file.suffix in (".pt", ".pth") else arrays.names_in(file)
        there = f", but {' and '.join(quote(name, 30) for name in own[:4])}" if own else ""
        raise UsageError(
            f"{file.name!r} holds no array called 'latents'{there}",
            hint="it takes latents (N, C, H, W) and, where the model has classes, labels (N,)",
        )
    return found


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
