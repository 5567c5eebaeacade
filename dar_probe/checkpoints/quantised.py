"""Weights that were stored as codes and scales: turned into numbers, or refused by name.

Nothing of a packed weight is ever taken for plain numbers.
"""

import json
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from dar_probe.checkpoints import four_bits, gguf_blocks, torchao_weights
from dar_probe.errors import CheckpointError, DarProbeError
from dar_probe.files.gguf_header import TYPES
from dar_probe.files.text import quote

EIGHT_BITS = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
# What only one way of packing has at the end of a name, which it is, and what unpacks it.
FOREIGN = (
    (".qweight", "GPTQ, AWQ or a kin of theirs", "the library that packed it"),
    (".weight_packed", "compressed-tensors", "the library that packed it"),
    (".weight_scale_2", "NVFP4", "the library that packed it"),
    (".weight_scale_inv", "blocks of 8 bits", "the library that packed it"),
    ("._data", "quanto", "optimum.quanto (weight.dequantize())"),
    ("_qdata", "torchao", "torchao (weight.dequantize())"),
)
_SCALES = (".scale_weight", ".weight_scale")  # of ComfyUI, older and newer
_INPUTS = (".scale_input", ".input_scale")  # for rounding what a layer reads, which is not done
_TOLD = ".comfy_quant"
_FORMATS = {str(dtype).removeprefix("torch."): dtype for dtype in EIGHT_BITS}
_SCALED = "scaled_fp8"  # ComfyUI's mark of a file with scales
MAX_TOLD = 1_024  # bytes of what is told of one weight
_ROWS, _LARGEST_INT8 = 0, 127  # of bitsandbytes: layout and scale of eight bits
# What is nothing without a weight to which it belongs.
_PARTS = (*four_bits.PARTS, *_SCALES, ".SCB", gguf_blocks.SHAPE, torchao_weights.TOLD, "_qdata")


class Plain(NamedTuple):
    """A state dict without packed weights.

    Attributes:
        state: by name, without scales and tables.
        made: which of them were dequantised.
        notes: one sentence for each way of packing.
    """

    state: dict[str, Tensor]
    made: frozenset[str]
    notes: list[str]


class _Found(NamedTuple):
    name: str
    parts: tuple[str, ...]  # that are of no more use
    way: str
    value: Tensor


def is_settings(name: str, size: int) -> bool:
    """Tell whether a tensor of ``size`` bytes says how a weight is packed: it is always read."""
    return size <= MAX_TOLD and (
        four_bits.MARK in name or name.endswith((_TOLD, torchao_weights.TOLD))
    )


def dequantised(state: dict[str, Tensor], shown: str, dtype: torch.dtype | None = None) -> Plain:
    """Return weights with all that was packed turned into numbers.

    Args:
        state: checked plain tensors, on "meta" for names and shapes alone; emptied.
        shown: the file, for messages.
        dtype: of what was packed, so that nothing larger is ever kept; None: as it comes.

    Raises:
        CheckpointError: it is packed in a way that is not read, or contradicts itself.
        UsageError: a package is needed for it.
    """
    torchao = any(name.endswith(torchao_weights.TOLD) for name in state)
    for end, kind, library in FOREIGN:
        if kind == "torchao" and torchao:
            continue
        name = next((name for name in state if name.endswith(end)), None)
        if name is not None:
            raise CheckpointError(
                f"{shown} holds weights packed by {kind}, which are not read: it has {quote(name)}",
                hint=f"load it with {library}, and save plain weights in bfloat16",
            )
    for name, value in state.items():
        small = is_settings(name, value.numel() * value.element_size())
        if small and value.device.type == "meta":
            raise CheckpointError(
                f"{shown} holds packed weights in a pickle, and these are read from safetensors "
                f"alone: it has {quote(name)}",
                hint="safetensors.torch.save_file(torch.load(OLD, weights_only=True), NEW) "
                "converts a state dict",
            )
    ways: Counter[str] = Counter()
    made: dict[str, Tensor] = {}
    for key in list(state):
        try:
            found = _dequantised(key, state)
        except DarProbeError:
            raise
        except ValueError as error:
            raise CheckpointError(
                f"{shown} is refused: {quote(key)} does not fit its weight: {quote(error)}",
                hint="it was edited, or saved by another version of what packed it",
            ) from None
        if found is not None:
            ways[found.way] += 1
            made[found.name] = found.value if dtype is None else found.value.to(dtype)
            for part in (found.name, *found.parts):
                state.pop(part, None)
    if ways:
        state.pop(_SCALED, None)
    lost = next((name for name in state if name.endswith(_PARTS)), None)
    if lost is not None:
        raise CheckpointError(
            f"{shown} contradicts itself: {quote(lost)} belongs to no packed weight",
            hint="it was edited, or put together from two models",
        )
    notes = [f"{count} of the weights dequantised from {way}" for way, count in ways.items()]
    plain = Plain({**state, **made}, frozenset(made), notes)
    state.clear()
    return plain


def _dequantised(key: str, state: dict[str, Tensor]) -> _Found | None:
    """Return the weight that the tensor called ``key`` says how to unpack, None for others."""
    if key.endswith(gguf_blocks.SHAPE):
        return _of_gguf(key, state)
    if key.endswith(torchao_weights.TOLD):
        return _of_torchao(key, state)
    if four_bits.MARK in key:
        return _of_four_bits(key, state)
    if key.endswith(".SCB"):
        return _of_rows(key, state)
    for end in _SCALES:
        if key.endswith(end):
            return _scaled(key, key.removesuffix(end), state)
    return None


def _of_gguf(key: str, state: dict[str, Tensor]) -> _Found:
    name = key.removesuffix(gguf_blocks.SHAPE)
    raw = _weight(name, state)
    kind, shape = gguf_blocks.packed(raw, state[key])
    way = f"{TYPES[kind][0]} by gguf {gguf_blocks.version()}"
    on_meta = raw.device.type == "meta"
    value = _blank(shape) if on_meta else gguf_blocks.values(raw, kind, shape)
    return _Found(name, (key,), way, value)


def _of_torchao(key: str, state: dict[str, Tensor]) -> _Found:
    name = key.removesuffix(torchao_weights.TOLD)
    said = bytes(state[key].flatten().tolist())
    parts = torchao_weights.parts(name, said)
    value, kind = torchao_weights.value(name, said, {p: _weight(p, state) for p in parts})
    way = f"{kind} by torchao {torchao_weights.version()}"
    return _Found(name, (key, *parts), way, value)


def _of_four_bits(key: str, state: dict[str, Tensor]) -> _Found:
    name, _, kind = key.partition(four_bits.MARK)
    names = {end: f"{name}{end}" for end in ("", *four_bits.PARTS) if f"{name}{end}" in state}
    packed = four_bits.read({end: state[full] for end, full in names.items()}, state[key])
    on_meta = packed.codes.device.type == "meta"
    value = _blank(packed.shape, packed.dtype) if on_meta else packed.values()
    return _Found(name, (key, *names.values()), f"{kind} of bitsandbytes", value)


def _of_rows(key: str, state: dict[str, Tensor]) -> _Found:
    """Eight bits of bitsandbytes: each row has its largest weight as its scale."""
    module = key.removesuffix(".SCB")
    name, layout = f"{module}.weight", f"{module}.weight_format"
    weight, scale = _weight(name, state), state[key]
    if weight.dtype != torch.int8 or weight.dim() != 2 or scale.dtype != torch.float32:
        raise ValueError(f"a weight of {weight.dtype} has a scale of {scale.dtype}")
    if scale.numel() != len(weight):
        raise ValueError(f"{len(weight)} rows have {scale.numel()} scales")
    told = state.get(layout)
    if told is not None and (told.numel() != 1 or (told.device.type == "cpu" and told.any())):
        raise ValueError("its rows lie in an order for another device")
    if weight.device.type == "meta":
        value = _blank(tuple(weight.shape))
    else:
        value = weight * scale.reshape(-1, 1) * (1 / _LARGEST_INT8)
    return _Found(name, (key, layout), "int8 of bitsandbytes", value)


def _scaled(key: str, module: str, state: dict[str, Tensor]) -> _Found:
    """Eight bits of ComfyUI: a scale for all of a weight or for each of its rows."""
    name, told = f"{module}.weight", f"{module}{_TOLD}"
    weight, scale = _weight(name, state), state[key]
    if weight.dtype not in EIGHT_BITS or not scale.is_floating_point():
        raise ValueError(f"a weight of {weight.dtype} has a scale of {scale.dtype}")
    if scale.numel() != 1 and (weight.dim() != 2 or scale.numel() != len(weight)):
        raise ValueError(f"a weight of shape {tuple(weight.shape)} has {scale.numel()} scales")
    if told in state and _FORMATS.get(_format(state[told])) != weight.dtype:
        raise ValueError("its format is another than that of its bytes, or not known")
    if weight.device.type == "meta":
        value = _blank(tuple(weight.shape))
    else:
        value = weight.float() * scale.float().reshape(() if scale.numel() == 1 else (-1, 1))
    inputs = tuple(f"{module}{end}" for end in _INPUTS if f"{module}{end}" in state)
    way = str(weight.dtype).removeprefix("torch.") + " by the scales beside them"
    if inputs:
        way += "; the scales for what their layers read are not used"
    return _Found(name, (key, told, *inputs), way, value)


def _format(told: Tensor) -> str:
    if told.device.type == "meta" or told.dtype != torch.uint8:
        return ""
    try:
        found = json.loads(bytes(told.flatten().tolist()))
    except (ValueError, RecursionError):
        return ""
    return str(found.get("format")) if isinstance(found, dict) else ""


def _weight(name: str, state: dict[str, Tensor]) -> Tensor:
    if name not in state:
        raise ValueError(f"there is no {name}")
    return state[name]


def _blank(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
