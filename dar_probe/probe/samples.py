"""Which samples an analysis runs on: the user's, the digits, or the model's own."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dar_probe.errors import UsageError
from dar_probe.files import write_atomically
from dar_probe.loading import Loaded
from dar_probe.train import data as datasets
from dar_probe.train import sample
from dar_probe.train.data import Data

STEPS = 25
OWN = "own samples"


def choose(
    loaded: Loaded, spec: str | None, *, asked: int | None, default: int, seed: int
) -> tuple[Data, list[str]]:
    """Return the samples, and what had to be assumed about them.

    Args:
        loaded: the model that must take them.
        spec: "digits" (the held-out rows), "images:DIR", "latents:FILE"; None: the digits where
            they fit the model, else samples of the model itself.
        asked: number of samples that was asked for: the first rows.
        default: number where none was asked for, or fewer where there are fewer.
        seed: of drawn samples.

    Raises:
        UsageError: the data do not fit the model, or have fewer rows than asked for.
    """
    found = loaded.identified
    shape = found.shape
    if asked is not None and asked < 1:
        raise UsageError(f"{asked} samples were asked for; it takes at least 1")
    if spec is None and (shape != (1, 8, 8) or found.num_classes != 10):
        rows = own(loaded, asked or default, seed=seed)
        return rows, [f"no data were given: {rows.description}"]
    rows = datasets.load(
        spec or "digits",
        split="all" if spec not in (None, "digits") else "held-out",
        channels=shape[0],
        size=shape[1],
        num_classes=found.num_classes,
    )
    assumed = [] if spec else ["no data were given: the held-out rows of the handwritten digits"]
    return rows.first(asked or min(default, len(rows))), assumed


def own(loaded: Loaded, count: int, *, seed: int) -> Data:
    """Return ``count`` samples of the model itself, labels in turn; drawn once per checkpoint."""
    labels = torch.arange(count) % max(loaded.identified.num_classes, 1)
    shape = loaded.identified.shape
    parameter = next(loaded.model.parameters())
    what = (
        f"{loaded.checkpoint.sha256}-{loaded.checkpoint.weights}-{loaded.objective.name}"
        f"-{loaded.identified.sizes.get('heads')}-{parameter.dtype}-{parameter.device.type}"
    )
    name = hashlib.sha256(f"{what}-{count}-{seed}-{STEPS}".encode()).hexdigest()[:32]
    path = cache_folder() / f"{name}.npy"
    latents = _stored(path, (count, *shape))
    if latents is None:
        latents = sample.draw(
            loaded.model, loaded.objective, labels, shape,
            seed=seed, steps=STEPS, device=parameter.device, dtype=parameter.dtype,
        )  # fmt: skip
        _store(path, latents)
    return Data(
        name=OWN,
        description=f"{count} sample{'s' * (count > 1)} drawn from the model itself "
        f"({STEPS} Euler steps, labels in turn)",
        latents=latents,
        labels=labels,
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


def _stored(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    try:
        latents = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # not there, or damaged: drawn anew
    fits = latents.shape == shape and latents.dtype == np.float32
    return torch.from_numpy(latents) if fits else None


def _store(path: Path, latents: Tensor) -> None:
    def write(target: Path) -> None:
        with target.open("wb") as file:
            np.save(file, latents.numpy())

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except (OSError, UsageError):
        return  # a cache that cannot be kept costs time, never the analysis
