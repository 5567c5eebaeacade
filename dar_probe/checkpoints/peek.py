"""What a file says before its weights are read: a first look that costs almost no memory."""

from dataclasses import dataclass
from pathlib import Path

import torch

from dar_probe.checkpoints import adapters, jax_model, reader
from dar_probe.checkpoints.folders import is_average, settings_beside
from dar_probe.checkpoints.header import Header, Shapes
from dar_probe.checkpoints.quantised import dequantised
from dar_probe.checkpoints.settings import settings
from dar_probe.checkpoints.state_dict import Weights, choose
from dar_probe.files.text import quote


@dataclass(kw_only=True)
class Peek(Header):
    """A header, and what memory its weights will need.

    Attributes:
        bytes: size of the file or of all shards.
        dtypes: of every tensor, by its plain name.
        stored: bytes of the tensors that would be read.
        dequantised: which of them are packed in the file; shape and type are those of the weight.
        called_average: the name of the file says that it is an average, and nothing in it does.
    """

    bytes: int
    dtypes: dict[str, torch.dtype]
    stored: int
    dequantised: frozenset[str]
    called_average: bool

    @property
    def dtype(self) -> str:
        """The most frequent type of the tensors, e.g. "bfloat16"; "packed" for dequantised ones."""
        names = [
            "packed" if key in self.dequantised else str(dtype).removeprefix("torch.")
            for key, dtype in self.dtypes.items()
        ]
        return max(sorted(set(names)), key=names.count)

    def converted(self, dtype: torch.dtype) -> Shapes:
        """Return the shapes of what takes memory of its own beside ``stored`` in ``dtype``."""
        return {
            key: shape
            for key, shape in self.shapes.items()
            if key in self.dequantised or self.dtypes[key] != dtype
        }


def peek(path: str | Path, weights: Weights = "auto") -> Peek:
    """Return names, shapes, types and settings of what ``reader.read`` would take from a file.

    Checksums are not compared, and nothing says that the weights can be read.

    Raises:
        CheckpointError: the file is refused, is damaged, or holds no such state dict.
        UsageError: a package is needed for it.
    """
    path = Path(path)
    stored_as, size = reader.outline_of(path)
    jax = stored_as if isinstance(stored_as, jax_model.Content) else None
    content = jax.state if jax else stored_as
    label, found, note = choose(content, weights, quote(path), jax.averages if jax else {})
    packed = reader.plain_tensors(found, jax.bytes if jax else size, quote(path), device="meta")
    stored = sum(tensor.numel() * tensor.element_size() for tensor in packed.values())
    state, made, packing = dequantised(packed, quote(path.name))
    adapters.refuse({key: tuple(value.shape) for key, value in state.items()}, quote(path), path)
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
        assumptions=[*filter(None, (note,)), *packing],
        bytes=size,
        dtypes={key: tensor.dtype for key, tensor in state.items()},
        stored=stored,
        dequantised=made,
        called_average=weights == "auto" and label != "ema" and is_average(path.name),
    )
