"""Devices and number types by name."""

import torch

from dar_probe.errors import UsageError

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def find_device(name: str) -> torch.device:
    """Return the device called ``name``; "auto" prefers CUDA.

    Raises:
        UsageError: it is not available here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # a meta device computes nothing
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"the device {name!r} is not available here") from error
    return device


def find_dtype(name: str) -> torch.dtype:
    """Return the type called ``name``.

    Raises:
        UsageError: it is none of ``DTYPES``.
    """
    if name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}", hint=f"known: {', '.join(DTYPES)}")
    return DTYPES[name]
