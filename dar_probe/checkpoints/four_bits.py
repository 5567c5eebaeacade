"""Weights that bitsandbytes packs in four bits: codes, and scales for blocks of them.

The package's own kernel is not called: handed lying sizes it would read past its arrays, and that
for processors is wrong for rows that are no multiple of a block (0.50.2).
"""

import json
import math
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from dar_probe.checkpoints.header import LARGEST_SIZE, LARGEST_TENSOR

MARK = ".quant_state.bitsandbytes__"
MAX_STATE = 1_024  # bytes of one weight's settings; usual are 170
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


@dataclass(frozen=True, kw_only=True)
class FourBits:
    """One packed weight.

    Attributes:
        codes: two weights in each byte, the first one in its upper half.
        table: (16,), the value of each code.
        scales: of each block; where they are codes themselves, see ``nested``.
        nested: table (256,), scales of blocks of scales, length of these blocks and offset.
        block: weights that share a scale.
        shape: of the weight.
        dtype: in which it was saved.
    """

    codes: Tensor
    table: Tensor
    scales: Tensor
    nested: tuple[Tensor, Tensor, int, float] | None
    block: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def values(self) -> Tensor:
        """Return the weight."""
        scales = self.scales
        if self.nested is not None:
            table, outer, length, offset = self.nested
            spread = outer.repeat_interleave(length)[: scales.numel()]
            scales = table[scales.flatten().long()] * spread + offset
        count = math.prod(self.shape)
        packed = self.codes.flatten()
        found = torch.empty(2 * packed.numel(), dtype=torch.float32)
        found[0::2] = self.table[(packed >> 4).int()]
        found[1::2] = self.table[(packed & 15).int()]
        found = found[:count]
        whole = count // self.block * self.block
        per_block = scales.flatten()
        found[:whole].view(-1, self.block).mul_(per_block[: whole // self.block, None])
        found[whole:].mul_(per_block[-1:])
        return found.to(self.dtype).reshape(self.shape)


def read(parts: dict[str, Tensor], state: Tensor) -> FourBits:
    """Return a packed weight that nobody vouches for.

    Args:
        parts: the tensors whose names begin with its name, by the rest of theirs; "" its codes.
        state: its settings, JSON as bytes.

    Raises:
        ValueError: saying what does not fit.
    """
    told = _settings(state)
    shape, block = told.get("shape"), told.get("blocksize")
    if not (isinstance(shape, list) and shape and all(map(_is_size, shape)) and _is_size(block)):
        raise ValueError("its settings have no shape or no length of a block")
    count = math.prod(shape)
    if count > LARGEST_TENSOR or told.get("dtype") not in TYPES:
        raise ValueError(f"its settings claim the shape {shape} of type {told.get('dtype')}")
    blocks = -(-count // block)
    _check(parts, "", torch.uint8, -(-count // 2))
    _check(parts, ".quant_map", torch.float32, 16)
    nested = None
    if ".nested_absmax" in parts or ".nested_quant_map" in parts:
        length, offset = told.get("nested_blocksize"), told.get("nested_offset")
        if not _is_size(length) or not isinstance(offset, float) or not math.isfinite(offset):
            raise ValueError("its settings have no length of a block of scales")
        _check(parts, ".absmax", torch.uint8, blocks)
        _check(parts, ".nested_quant_map", torch.float32, 256)
        _check(parts, ".nested_absmax", torch.float32, -(-blocks // length))
        nested = (parts[".nested_quant_map"], parts[".nested_absmax"], length, offset)
    else:
        _check(parts, ".absmax", torch.float32, blocks)
    return FourBits(
        codes=parts[""],
        table=parts[".quant_map"],
        scales=parts[".absmax"],
        nested=nested,
        block=block,
        shape=tuple(shape),
        dtype=TYPES[told["dtype"]],
    )


def _settings(state: Tensor) -> dict[str, Any]:
    if state.device.type == "meta" or state.dtype != torch.uint8 or state.numel() > MAX_STATE:
        raise ValueError("its settings cannot be read")
    try:
        found = json.loads(bytes(state.flatten().tolist()))
    except (ValueError, RecursionError):
        raise ValueError("its settings are no JSON") from None
    if not isinstance(found, dict):
        raise ValueError("its settings are none")
    return found


def _is_size(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= LARGEST_SIZE


def _check(parts: dict[str, Tensor], name: str, dtype: torch.dtype, count: int) -> None:
    found = parts.get(name)
    if found is None or found.dtype != dtype or found.numel() != count:
        what = f"{found.numel()} of {found.dtype}" if found is not None else "none"
        raise ValueError(f"it needs {count} of {dtype} in {name or 'its codes'}, and has {what}")
