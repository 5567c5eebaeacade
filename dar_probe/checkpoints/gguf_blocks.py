"""Weights of GGUF files: blocks of bytes that the package gguf turns into numbers."""

import math
from importlib import metadata
from io import BufferedReader
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dar_probe.errors import UsageError
from dar_probe.files import gguf_header
from dar_probe.files.gguf_header import TYPES

SHAPE = ".gguf"  # beside the bytes of a packed weight: its type, then its shape
_PLAIN = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip


def load(file: BufferedReader, *, device: str = "cpu") -> dict[str, Tensor]:
    """Return the tensors of an open file; a packed one as bytes with its shape beside it.

    On "meta" no weight is read.

    Raises:
        ValueError: the header breaks the format, saying how.
        EOFError: the file was cut short since.
    """
    state: dict[str, Tensor] = {}
    for name, entry in gguf_header.packed(file).items():
        raw = torch.empty(entry.bytes, dtype=torch.uint8, device=device)
        if device == "cpu":
            file.seek(entry.start)
            if file.readinto(raw.numpy().data) != entry.bytes:
                raise EOFError
        dtype = _PLAIN.get(TYPES[entry.type][0])
        if dtype is None:
            if f"{name}{SHAPE}" in state:
                raise ValueError("its header has a name twice")
            state[f"{name}{SHAPE}"] = torch.tensor([entry.type, *entry.shape])
        state[name] = raw if dtype is None else raw.view(dtype).reshape(entry.shape)
    return state


def packed(raw: Tensor, told: Tensor) -> tuple[int, tuple[int, ...]]:
    """Return type and shape of a packed weight, from its bytes and what lies beside them.

    Raises:
        ValueError: they do not fit together.
    """
    if told.device.type == "meta" or told.dtype != torch.int64 or not told.numel():
        raise ValueError("its type and shape cannot be read")
    kind, *shape = told.flatten().tolist()
    if kind not in TYPES or min(shape, default=1) < 1 or raw.dtype != torch.uint8:
        raise ValueError("its type or shape is none")
    _, block, width = TYPES[kind]
    count = math.prod(shape)
    if count % block or count // block * width != raw.numel():
        raise ValueError(f"{raw.numel()} bytes do not hold its {count} weights")
    return kind, tuple(shape)


def values(raw: Tensor, kind: int, shape: tuple[int, ...]) -> Tensor:
    """Return a packed weight in float32, by the package gguf.

    Raises:
        UsageError: it is not installed, or cannot unpack this type.
    """
    gguf = package()
    title, _, width = TYPES[kind]
    try:
        blocks = raw.numpy().reshape(raw.numel() // width, width)
        with np.errstate(all="ignore"):  # what is not finite is found when all is read
            found = gguf.dequantize(blocks, gguf.GGMLQuantizationType(kind))
    except (ValueError, NotImplementedError) as error:
        raise UsageError(
            f"the installed gguf does not unpack {title}", hint="pip install -U gguf"
        ) from error
    return torch.from_numpy(found).reshape(shape)


def package() -> Any:
    """Return the package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise UsageError(
            "a GGUF file of packed weights needs the package gguf, which is not installed",
            hint="pip install 'dar-probe[gguf]'",
        ) from None
    return gguf


def version() -> str:
    """Return the version of the package that is installed.

    Raises:
        UsageError: it is not.
    """
    package()
    return metadata.version("gguf")
