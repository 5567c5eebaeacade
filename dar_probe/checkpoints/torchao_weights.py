"""Weights packed by torchao, as its own functions put them into safetensors files.

``layer.weight`` lies there as ``layer._weight_qdata`` and other parts, and the metadata of the
file say of each weight which parts and settings it has.
"""

import json
from collections.abc import Collection, Mapping
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from dar_probe.errors import UsageError

TOLD = ".torchao"  # beside the parts of a packed weight: what the metadata say of it, as bytes


def told(said: Mapping[str, str], names: Collection[str]) -> dict[str, Tensor]:
    """Return for each packed weight what the metadata of a file say of it, under its own name.

    Args:
        said: the metadata.
        names: of the tensors in the file; what another shard says of the same weights is left out.
    """
    found = {}
    for name, text in said.items():
        try:
            first = parts(name, text.encode())[0]
        except ValueError:  # something else
            continue
        if first in names:
            raw = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
            found[f"{name}{TOLD}"] = raw
    return found


def parts(name: str, said: bytes) -> list[str]:
    """Return the names of a weight's parts.

    Raises:
        ValueError: what is said of it is something else.
    """
    home, _, own = name.rpartition(".")
    try:
        found = json.loads(said)["_tensor_data_names"]
    except (TypeError, KeyError, RecursionError):
        raise ValueError("it has no parts") from None
    if not home or not found or not all(isinstance(part, str) for part in found):
        raise ValueError("its parts have no names")
    return [f"{home}._{own}_{part}" for part in found]


def value(name: str, said: bytes, found: dict[str, Tensor]) -> tuple[Tensor, str]:
    """Return a weight and the name of its packing; on "meta" it has its shape and type alone.

    Args:
        name: of the weight.
        said: of it, in the metadata.
        found: its parts by name.

    Raises:
        UsageError: torchao is not installed, or cannot unpack it here.
        ValueError: the parts do not fit together.
    """
    unflatten = _package()
    try:
        entries = {name: said.decode(), "tensor_names": json.dumps([name])}
        packed = unflatten(found, entries)[0][name]
        kind = type(packed).__name__
    except Exception as error:  # whatever a class of it raises on wrong parts
        raise ValueError(f"torchao {version()} does not take its parts: {error}") from error
    try:
        plain = packed.dequantize()
    except Exception as error:  # some kinds need a GPU, others a package more
        raise UsageError(
            f"torchao {version()} does not unpack a {kind} on this machine: {error}",
            hint="save plain weights where it does: weight.dequantize()",
        ) from error
    if type(plain) is not Tensor or not plain.is_floating_point():
        raise ValueError(f"torchao makes a {type(plain).__name__} of {plain.dtype} of it")
    return plain, kind


def version() -> str:
    """Return the version of the package that is installed."""
    return metadata.version("torchao")


def _package() -> Any:
    try:
        from torchao.prototype.safetensors import safetensors_support
    except ImportError:
        raise UsageError(
            "weights packed by torchao need the package torchao from 0.16 on, which is not "
            "installed",
            hint="pip install 'dar-probe[torchao]'",
        ) from None
    return safetensors_support.unflatten_tensor_state_dict
