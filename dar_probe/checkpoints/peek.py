"""What a file says before its weights are read: a first look that costs almost no memory."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from dar_probe.checkpoints import jax_model, reader
from dar_probe.checkpoints.folders import settings_beside
from dar_probe.checkpoints.header import Header
from dar_probe.checkpoints.settings import settings
from dar_probe.checkpoints.state_dict import Weights, choose
from dar_probe.files import kinds
from dar_probe.files.text import quote


@dataclass(kw_only=True)
class Peek(Header):
    """A header, and what memory its weights will need.

    Attributes:
        bytes: size of the file.
        dtypes: of every tensor, by its plain name.
    """

    bytes: int
    dtypes: dict[str, torch.dtype]

    @property
    def stored(self) -> int:
        """Bytes of the tensors that would be read."""
        sizes = (math.prod(shape) * self.dtypes[key].itemsize for key, shape in self.shapes.items())
        return sum(sizes)


def peek(path: str | Path, weights: Weights = "auto") -> Peek:
    """Return names, shapes, types and settings of what ``reader.read`` would take from a file.

    Checksums are not compared, and nothing says that the weights can be read.

    Raises:
        CheckpointError: the file is refused, is damaged, or holds no such state dict.
    """
    path = Path(path)
    with kinds.open_file(path) as file:
        kind = kinds.check(file, path)
        size = os.fstat(file.fileno()).st_size
        jax = jax_model.outline(file, path) if kind == "npz" else None
        outline = reader.outline if kind == "zip" else reader.safetensors_outline
        content = jax.state if jax else outline(file, path)
    label, found, note = choose(content, weights, quote(path))
    state = reader.plain_tensors(found, jax.bytes if jax else size, quote(path), device="meta")
    args = jax.settings if jax else settings(content, label, quote(path))
    note = "; ".join(filter(None, (jax.note, note))) if jax else note
    beside = {} if args else settings({"args": settings_beside(path)}, "model", quote(path))
    if beside:
        note = "; ".join(filter(None, (note, "settings are those of config.json beside the file")))
    return Peek(
        shown=quote(path.name),
        shapes={key: tuple(tensor.shape) for key, tensor in state.items()},
        args=args or beside,
        weights=label,
        assumptions=[note] if note else [],
        bytes=size,
        dtypes={key: tensor.dtype for key, tensor in state.items()},
    )
