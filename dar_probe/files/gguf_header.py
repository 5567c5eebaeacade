"""Where the tensors of a GGUF file lie, from its header alone; imports neither torch nor gguf.

The format: ggml's docs/gguf.md, versions 2 and 3.
"""

import math
import os
import struct
from dataclasses import dataclass
from io import BufferedReader

from dar_probe.files.text import quote

MAX_HEADER = 2**22  # bytes; those of image models have 0.1 MB, a vocabulary would be larger
MAX_TENSORS, MAX_PAIRS, MAX_NAME = 16_384, 16_384, 1_024
MAX_SIZES = 4
LARGEST = 2**48  # elements of one tensor

# Number of a type -> its name, elements in a block, bytes of a block.
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
_SHAPED = "comfy.gguf.orig_shape."  # ComfyUI-GGUF flattens what a row of blocks does not fit
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _LIST, _UINT32, _INT32 = 8, 9, 4, 5


@dataclass(frozen=True)
class Packed:
    """One tensor in the file: ``bytes`` from ``start``, both counted from the file's beginning."""

    type: int
    shape: tuple[int, ...]
    start: int
    bytes: int


class _Cursor:
    """Reads a header piece by piece, and never past its end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise ValueError("its header is cut short or too large")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, kind: str) -> int:
        return int(struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))[0])

    def text(self, most: int) -> str:
        size = self.number("Q")
        if size > most:
            raise ValueError(f"a text of its header has {size} bytes")
        return self.take(size).decode("utf-8")


def packed(file: BufferedReader) -> dict[str, Packed]:
    """Return what an open GGUF file holds, in the order of its bytes.

    Raises:
        ValueError: the header breaks the format, saying how.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    cursor = _Cursor(file.read(min(size, MAX_HEADER)))
    cursor.take(4)
    if (version := cursor.number("I")) not in (2, 3):
        raise ValueError(f"its version {version} is not known, or it is of the other byte order")
    tensors, pairs = cursor.number("Q"), cursor.number("Q")
    if tensors > MAX_TENSORS or pairs > MAX_PAIRS:
        raise ValueError(f"its header claims {tensors} tensors and {pairs} settings")
    alignment, shaped = 32, {}
    for _ in range(pairs):
        name = cursor.text(MAX_NAME)
        kind = cursor.number("I")
        if name == "general.alignment" and kind == _UINT32:
            alignment = cursor.number("I")
        elif name.startswith(_SHAPED) and kind == _LIST:
            shaped[name.removeprefix(_SHAPED)] = _sizes(cursor)
        else:
            _skip(cursor, kind)
    if not 1 <= alignment <= 2**16:
        raise ValueError(f"its alignment is {alignment}")
    infos = [_info(cursor) for _ in range(tensors)]
    if len({name for name, *_ in infos}) < tensors:
        raise ValueError("its header has a name twice")
    begin = -(-cursor.at // alignment) * alignment
    return _placed(infos, shaped, begin, alignment, size)


def _info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text(MAX_NAME)
    dims = cursor.number("I")
    if dims > MAX_SIZES:
        raise ValueError(f"{quote(name)} has {dims} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dims))[::-1]  # the fastest one comes first
    return name, shape, cursor.number("I"), cursor.number("Q")


def _placed(
    infos: list[tuple[str, tuple[int, ...], int, int]],
    shaped: dict[str, tuple[int, ...]],
    begin: int,
    alignment: int,
    size: int,
) -> dict[str, Packed]:
    """Return the tensors, each behind the one before it with no more than padding between."""
    found: dict[str, Packed] = {}
    end = 0
    for name, shape, kind, offset in sorted(infos, key=lambda info: info[3]):
        if kind not in TYPES:
            raise ValueError(f"{quote(name)} has the unknown type {kind}")
        title, block, width = TYPES[kind]
        count = math.prod(shape)
        if not 0 < count <= LARGEST or (shape[-1] if shape else 1) % block:
            raise ValueError(f"{quote(name)} of shape {quote(list(shape))} is no {title}")
        if offset != -(-end // alignment) * alignment:
            raise ValueError(f"there is a hole or an overlap before {quote(name)}")
        taken = count // block * width
        end = offset + taken
        if begin + end > size:
            raise ValueError(f"{quote(name)} ends at byte {begin + end}, the file at {size}")
        plain = shaped.get(name, shape)
        if math.prod(plain) != count:
            raise ValueError(f"{quote(name)} has {count} weights and the shape {list(plain)}")
        found[name] = Packed(kind, plain, begin + offset, taken)
    if size - begin - end >= max(alignment, 1) and infos:
        raise ValueError(f"its tensors end at byte {begin + end}, the file at {size}")
    return found


def _sizes(cursor: _Cursor) -> tuple[int, ...]:
    kind, count = cursor.number("I"), cursor.number("Q")
    if kind not in (_UINT32, _INT32) or count > 8:
        raise ValueError("a shape in its header is none")
    found = tuple(cursor.number("i" if kind == _INT32 else "I") for _ in range(count))
    if not all(size > 0 for size in found):
        raise ValueError("a shape in its header is none")
    return found


def _skip(cursor: _Cursor, kind: int) -> None:
    """Pass over the value of a setting that nobody asks for."""
    if kind == _TEXT:
        cursor.take(cursor.number("Q"))
    elif kind == _LIST:
        inner, count = cursor.number("I"), cursor.number("Q")
        if inner == _TEXT:
            for _ in range(count):  # each takes eight bytes of the header at least
                cursor.take(cursor.number("Q"))
        elif inner in _WIDTHS:
            cursor.take(count * _WIDTHS[inner])
        else:
            raise ValueError(f"its header has a list of the type {inner}")
    elif kind in _WIDTHS:
        cursor.take(_WIDTHS[kind])
    else:
        raise ValueError(f"its header has a value of the type {kind}")
