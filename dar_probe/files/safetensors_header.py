"""Where the tensors of a safetensors file lie, from its header alone; imports no torch."""

import json
import math
import os
import struct
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

from dar_probe.files.text import quote

MAX_HEADER = 2**20  # bytes; Qwen-Image's 1,933 tensors take 0.2 MB, and one may cost 35 in memory
MAX_SIZES = 64

# The format's name of a type -> torch's name, bytes of one element.
_TYPES = {
    "BOOL": ("bool", 1), "U8": ("uint8", 1), "I8": ("int8", 1),
    "I16": ("int16", 2), "U16": ("uint16", 2), "I32": ("int32", 4), "U32": ("uint32", 4),
    "I64": ("int64", 8), "U64": ("uint64", 8),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1),
    "F16": ("float16", 2), "BF16": ("bfloat16", 2), "F32": ("float32", 4), "F64": ("float64", 8),
    "C64": ("complex64", 8),
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One tensor in the file: ``bytes`` from ``start``, both counted from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int


def stored(file: BufferedReader) -> dict[str, Stored]:
    """Return what an open safetensors file holds, in the order of its bytes.

    Every byte after the header belongs to exactly one tensor, as the format demands.

    Raises:
        ValueError: the header breaks the format, saying how.
    """
    return _read(file)[0]


def said(file: BufferedReader) -> dict[str, str]:
    """Return the metadata of an open safetensors file, text by name; {} where it has none.

    Raises:
        ValueError: the header breaks the format, saying how.
    """
    return _read(file)[1]


def _read(file: BufferedReader) -> tuple[dict[str, Stored], dict[str, str]]:
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(size - 8, MAX_HEADER):
        raise ValueError(f"its header claims {length} bytes")
    raw = file.read(length)
    if len(raw) < length:
        raise ValueError("its header is cut short")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("its header is nested without end") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no list of tensors")
    metadata = header.pop("__metadata__", None)
    found = {name: _entry(name, entry, 8 + length) for name, entry in header.items()}
    # Of those that begin together, the empty ones come first.
    ordered = sorted(found.items(), key=lambda item: (item[1].start, item[1].bytes))
    end = 8 + length
    for name, entry in ordered:
        if entry.start != end:
            raise ValueError(f"there is a hole or an overlap before {quote(name)}")
        end += entry.bytes
    if end != size:
        raise ValueError(f"its tensors end at byte {end}, the file at {size}")
    told = metadata if isinstance(metadata, dict) else {}
    return dict(ordered), {name: text for name, text in told.items() if isinstance(text, str)}


def _entry(name: str, entry: Any, begin: int) -> Stored:
    name.encode()  # a lone surrogate is no text
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{quote(name)} is no tensor")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ValueError(f"{quote(name)} has the unknown type {quote(kind)}")
    if not (_sizes(shape) and _sizes(offsets) and len(offsets) == 2):
        raise ValueError(f"{quote(name)} has a shape or a place that is none")
    dtype, width = _TYPES[kind]
    start, stop = offsets
    # Where one size is zero the others are as absurd as they like, and torch counts in int64.
    if math.prod(size or 1 for size in shape) * width >= 2**63:
        raise ValueError(f"{quote(name)} has the shape {quote(shape)} of no tensor")
    if stop - start != math.prod(shape) * width:
        raise ValueError(f"{quote(name)} of shape {quote(shape)} has {stop - start} bytes")
    return Stored(dtype, tuple(shape), begin + start, stop - start)


def _sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MAX_SIZES
        and all(type(size) is int and 0 <= size < 2**63 for size in value)
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict; of two entries of one name each reader takes another."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header has a name twice")
    return found
