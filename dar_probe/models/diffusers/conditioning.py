"""Conditions of a sample: from a user's file, or drawn at random from its id."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dar_probe.diffusion import data as datasets
from dar_probe.errors import UsageError
from dar_probe.files import arrays
from dar_probe.files.text import quote


def read_conditions(path: str | Path) -> dict[str, Tensor]:
    """Return the arrays of a .safetensors or .npz file, named like the forward's parameters.

    The first axis of each is the sample, or has length 1 where all samples share it.

    Raises:
        UsageError: it is neither, or cannot be read.
    """
    path = Path(path)
    try:
        found = {
            name: torch.from_numpy(values) for name, values in arrays.read_arrays(path).items()
        }
    except (UsageError, TypeError) as error:  # TypeError: text, or another type without numbers
        raise UsageError(
            f"the conditions in {quote(path)} cannot be read: {quote(error)}",
            hint="give a .safetensors or .npz file with arrays named like the model's inputs",
        ) from error
    for name, values in found.items():
        if values.ndim == 0 or len(values) == 0:
            raise UsageError(
                f"{quote(name)} in {quote(path)} has no samples",
                hint="its first axis is the sample, or has length 1",
            )
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise UsageError(
                f"{quote(name)} in {quote(path)} holds NaN or infinite values",
                hint="look at how it was encoded",
            )
    return found


def rows(given: Mapping[str, Tensor], name: str, ids: Tensor) -> Tensor:
    """Return the rows (N, ...) of a user's array for samples ``ids`` (N,).

    Raises:
        UsageError: it has fewer rows than there are samples.
    """
    values = given[name]
    if len(values) == 1:
        values = values.expand(len(ids), *values.shape[1:]).contiguous()  # some classes take views
        return values
    if int(ids.max()) >= len(values):
        raise UsageError(
            f"there are {len(values)} rows of {name}, sample {int(ids.max())} has none",
            hint="give one row for each sample, or a single one for all",
        )
    return values[ids]


def normal(name: str, ids: Tensor, shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Return standard normal numbers (N, *shape), a function of (seed, name, id) alone."""
    # Another stream of numbers for every name, and another than the noise's, which has the seed.
    own = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little")
    return datasets.noise(ids, shape, seed=own)
