"""Weights as other programs pack them, and what they are worth, written out slowly in float64."""

import json
import struct

import numpy as np
import torch

# ggml's number of a type -> elements in a block, bytes of a block
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34), 30: (1, 2)}
F32, F16, Q4_0, Q8_0, BF16 = 0, 1, 2, 8, 30


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf(path, tensors, *, shapes=None, settings=b"", pairs=0, version=3, alignment=32):
    """Write a GGUF file.

    ``tensors``: name -> (type, shape, bytes); ``shapes``: what ComfyUI-GGUF says a tensor has.
    """
    pairs += 1
    settings = text("general.architecture") + struct.pack("<I", 8) + text("flux") + settings
    for name, shape in (shapes or {}).items():
        pairs += 1
        settings += text(f"comfy.gguf.orig_shape.{name}") + struct.pack("<IIQ", 9, 5, len(shape))
        settings += struct.pack(f"<{len(shape)}i", *shape)
    infos, data = b"", b""
    for name, (kind, shape, raw) in tensors.items():
        data += bytes(-len(data) % alignment)
        infos += text(name) + struct.pack("<I", len(shape))
        infos += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        infos += struct.pack("<IQ", kind, len(data))
        data += raw
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), pairs) + settings + infos
    path.write_bytes(head + bytes(-len(head) % alignment) + data)
    return path


def as_gguf(state, kind=Q8_0):
    """Return tensors for ``gguf`` of random blocks in the shapes of ``state``, and their values."""
    rng = np.random.default_rng(0)
    tensors, values = {}, {}
    for name, value in state.items():
        shape = tuple(value.shape)
        own = kind if value.ndim > 1 and shape[-1] % BLOCKS[kind][0] == 0 else F32
        block, width = BLOCKS[own]
        if own == F32:
            raw = value.float().numpy().tobytes()
            values[name] = value.double()
        else:
            raw = b""
            found = []
            for _ in range(value.numel() // block):
                scale = np.float16(rng.normal() / 100)
                rest = rng.integers(0, 256, width - 2, dtype=np.uint8).tobytes()
                raw += scale.tobytes() + rest
                found += BLOCK_VALUES[own](float(scale), rest)
            values[name] = torch.tensor(found, dtype=torch.float64).reshape(shape)
        tensors[name] = (own, shape, raw)
    return tensors, values


def q8_0(scale, rest):
    return [scale * q for q in struct.unpack("<32b", rest)]


def q4_0(scale, rest):
    return [scale * ((byte & 15) - 8) for byte in rest] + [
        scale * ((byte >> 4) - 8) for byte in rest
    ]


BLOCK_VALUES = {Q8_0: q8_0, Q4_0: q4_0}


def four_bits(shape, *, block=64, nested=None, dtype="float32", seed=0):
    """Return a weight as bitsandbytes saves it, and its values in float64.

    ``nested``: how many scales share a scale, None where scales are plain numbers.
    """
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    codes = rng.integers(0, 16, count + count % 2)
    table = np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
    blocks = -(-count // block)
    told = {"quant_type": "nf4", "blocksize": block, "dtype": dtype, "shape": list(shape)}
    parts = {"": torch.tensor([[16 * a + b] for a, b in codes.reshape(-1, 2)], dtype=torch.uint8)}
    parts[".quant_map"] = torch.from_numpy(table)
    if nested:
        own = rng.integers(0, 256, blocks)
        inner = rng.uniform(-1, 1, 256).astype(np.float32)
        outer = rng.uniform(0.1, 0.2, -(-blocks // nested)).astype(np.float32)
        told |= {"nested_blocksize": nested, "nested_offset": 0.5, "nested_dtype": "float32"}
        parts[".absmax"] = torch.tensor(own, dtype=torch.uint8)
        parts[".nested_quant_map"] = torch.from_numpy(inner)
        parts[".nested_absmax"] = torch.from_numpy(outer)
        scales = [float(inner[own[k]]) * float(outer[k // nested]) + 0.5 for k in range(blocks)]
    else:
        scales = rng.uniform(0.5, 1, blocks).astype(np.float32)
        parts[".absmax"] = torch.from_numpy(scales)
    values = [float(table[codes[k]]) * float(scales[k // block]) for k in range(count)]
    parts[".quant_state.bitsandbytes__nf4"] = settings(told)
    return parts, torch.tensor(values, dtype=torch.float64).reshape(shape)


def settings(told):
    return torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
