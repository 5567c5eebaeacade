"""Which samples an analysis runs on: the user's, the digits, or the model's own."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dar_probe.diffusion import data as datasets
from dar_probe.diffusion.data import Data
from dar_probe.errors import ProbeError, UsageError
from dar_probe.files import arrays
from dar_probe.files.atomic import write_atomically
from dar_probe.files.text import quote
from dar_probe.models.loading import Loaded
from dar_probe.models.offload import device_of
from dar_probe.results.schema import OWN_SAMPLES
from dar_probe.runtime.ranks import ALONE, Ranks

MAX_TEXT = 600  # characters of how samples were drawn


def read(spec: str | None, most: int | None = None) -> Data | str | None:
    """Return the rows of latents; any other data cannot be read before the model.

    Args:
        spec: as for ``choose``.
        most: how many are needed; None: all.

    Raises:
        UsageError: there are no such latents.
    """
    if spec is None or not spec.startswith("latents:"):
        return spec
    return datasets.load_data(spec, most=most, raw=True)


def choose(
    loaded: Loaded,
    wanted: Data | str | None,
    *,
    asked: int | None,
    default: int,
    seed: int,
    ranks: Ranks = ALONE,
) -> tuple[Data, list[str]]:
    """Return the samples, and what had to be assumed about them.

    Data that are given are normalised where the model's training normalised them; samples that
    the model draws are so already.

    Args:
        loaded: the model that must take them.
        wanted: rows that are read already; or "digits" (the held-out rows), "images:DIR" or
            "latents:PATH"; None: the digits where they fit the model, else samples of the model
            itself.
        asked: number of samples that was asked for: the first rows.
        default: number where none was asked for, or fewer where there are fewer.
        seed: random seed for samples that the model draws.
        ranks: the processes that share the model, if several do.

    Raises:
        UsageError: the data do not fit the model, or have fewer rows than asked for.
    """
    found = loaded.identified
    assumed: list[str] = []
    if wanted is None:
        if found.shape != (1, 8, 8) or found.num_classes != 10:
            rows = own(loaded, asked or default, seed=seed, ranks=ranks)
            return rows, [f"no data were given: {rows.description}"]
        wanted = "digits"
        assumed = ["no data were given: the held-out rows of the handwritten digits"]
    if isinstance(wanted, Data):
        rows = wanted
        datasets.check_fit(rows, found.shape, found.num_classes or None)
    else:
        rows = datasets.load_data(
            wanted,
            split="held-out" if wanted == "digits" else "all",
            shape=found.shape,
            num_classes=found.num_classes or None,
            most=asked or default,
            raw=True,
        )
    rows = rows.first(asked or min(default, len(rows))).normalised(loaded.norm)
    return rows, [*assumed, *rows.changes]


def own(loaded: Loaded, count: int, *, seed: int, ranks: Ranks = ALONE) -> Data:
    """Return ``count`` samples of the model itself, labels in turn; drawn once per checkpoint."""
    found, parameter = loaded.identified, next(loaded.model.parameters())
    what = (
        f"{loaded.file['sha256']}-{loaded.file['weights']}-{loaded.objective.name}"
        f"-{found.shape}-{found.sizes.get('heads')}-{loaded.conditions}"
        f"-{parameter.dtype}-{device_of(loaded.model).type}"
    )
    name = hashlib.sha256(f"{what}-{count}-{seed}".encode()).hexdigest()[:32]
    path = cache_folder() / f"{name}.npz"
    drawn = _stored(path, (count, *found.shape))
    if ranks.in_step:  # all of them draw, or none does
        drawn = ranks.from_leader(drawn)
    if drawn is None:
        drawn = loaded.draw(count, seed=seed)
        if not bool(torch.isfinite(drawn[0]).all()):
            raise ProbeError(
                f"the samples that {quote(loaded.file['name'])} draws are NaN or infinite",
                hint="give samples with --data, or another --objective",
            )
        if ranks.leads or not ranks.in_step:
            _store(path, *drawn)
    latents, description = drawn
    return Data(
        name=OWN_SAMPLES,
        description=description,
        latents=latents,
        labels=torch.arange(count) % max(found.num_classes, 1),
        ids=torch.arange(count),
    )


def digest(data: Data) -> str:
    """Return a sha256 over latents and labels."""
    hashed = hashlib.sha256()
    for tensor in (data.latents, data.labels):
        hashed.update(tensor.contiguous().numpy().tobytes())
    return hashed.hexdigest()


def cache_folder() -> Path:
    """Return the folder of kept samples: $XDG_CACHE_HOME or ~/.cache, dar-probe/samples."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "dar-probe" / "samples"


def _stored(path: Path, shape: tuple[int, ...]) -> tuple[Tensor, str] | None:
    try:
        kept = arrays.read_arrays(path, ("latents", "description"))
    except UsageError:
        return None  # not there, or damaged: drawn anew
    latents, said = kept.get("latents"), kept.get("description")
    if latents is None or said is None or latents.shape != shape or latents.dtype != np.float32:
        return None
    if said.shape != () or not str(said).isprintable() or not np.isfinite(latents).all():
        return None
    return torch.from_numpy(latents), str(said)[:MAX_TEXT]


def _store(path: Path, latents: Tensor, description: str) -> None:
    def write(target: Path) -> None:
        with target.open("wb") as file:
            np.savez(file, latents=latents.numpy(), description=np.array(description))

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except (OSError, UsageError):
        return  # a cache that cannot be kept costs time, never the analysis
