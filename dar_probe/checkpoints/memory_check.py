"""Whether a model has room in memory, asked before any of it is allocated."""

import math

import torch

from dar_probe.checkpoints.header import Shapes
from dar_probe.errors import ProbeError
from dar_probe.runtime import memory
from dar_probe.runtime.memory import GIB


def needed(shapes: Shapes, dtype: torch.dtype, *, activations: int = 0) -> int:
    """Return the bytes of weights of these shapes in ``dtype``, and of ``activations`` beside."""
    return sum(map(math.prod, shapes.values())) * dtype.itemsize + activations


def available(device: torch.device | str = "cpu") -> int:
    """Return the bytes that can still be allocated on ``device``; see ``runtime.memory``."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    return memory.available()


def require(need: int, device: torch.device | str = "cpu") -> None:
    """Require room for ``need`` bytes on ``device``.

    Raises:
        ProbeError: there is less. Running out of memory later has the same exit code, 4.
    """
    device = torch.device(device)
    have, on_cpu = available(device), device.type == "cpu"
    if need > have:
        raise ProbeError(
            f"this needs {need / GIB:.1f} GiB on {device}, and {have / GIB:.1f} GiB are available",
            hint="try --dtype bfloat16, fewer --samples or a smaller --batch-size"
            + (", or --device cuda" if on_cpu and torch.cuda.is_available() else "")
            + f"; --offload {'disk (of a diffusers folder)' if on_cpu else 'cpu'} has a block at a "
            "time in memory",
        )
