"""Devices and number types by name."""

import os

import torch

from dar_probe.errors import UsageError
from dar_probe.runtime.dtype_names import dtype_name


def find_device(name: str) -> torch.device:
    """Return the device called ``name``; "auto" prefers CUDA, each rank its own.

    Raises:
        UsageError: it is not available here.
    """
    if name == "auto":
        own = int(os.environ.get("LOCAL_RANK", "0"))  # torchrun starts one process for each GPU
        return torch.device("cuda", own) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # a meta device computes nothing
    except (RuntimeError, AssertionError):
        raise UsageError(f"the device {name!r} is not available here") from None
    return device


def find_dtype(name: str) -> torch.dtype:
    """Return the type called ``name``, in any usual spelling: "bfloat16" or "bf16".

    Raises:
        UsageError: no known type is called so.
    """
    found = getattr(torch, dtype_name(name))
    assert isinstance(found, torch.dtype)
    return found
