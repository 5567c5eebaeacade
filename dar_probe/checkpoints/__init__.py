"""Untrusted path -> tensors and provenance, or a refusal; then which family it is."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dar_probe.checkpoints import shards
from dar_probe.files import kinds

if TYPE_CHECKING:
    import torch

    from dar_probe.checkpoints.reader import Checkpoint


def read(
    path: str | Path,
    *,
    weights: Literal["auto", "ema", "model"] = "auto",
    dtype: "torch.dtype | None" = None,
) -> "Checkpoint":
    """Return what ``reader.read`` returns; a file refused by its first bytes costs no torch.

    Raises:
        CheckpointError: the file is refused, or holds no state dict.
    """
    for part in shards.files(Path(path)):
        with kinds.open_file(part) as file:
            kinds.check(file, part)
    from dar_probe.checkpoints import reader

    return reader.read(path, weights=weights, dtype=dtype)
