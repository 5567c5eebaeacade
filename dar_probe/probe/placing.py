"""A module moved to another device or number type, with inputs and a loss that follow it."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dar_probe.errors import UsageError, blamed
from dar_probe.probe.options import ModuleOptions
from dar_probe.runtime.device import find_device, find_dtype
from dar_probe.runtime.sharded import is_sharded


def placed(
    module: nn.Module,
    options: ModuleOptions,
    *,
    device: str | None,
    dtype: str | None,
    copied: bool = False,
) -> tuple[nn.Module, ModuleOptions]:
    """Return a module where it is asked for, and how it is run there.

    What the caller's batch function returns is moved and cast on its way to the module, and the
    module's output on its way back to the caller's loss, so that neither needs to know.

    Args:
        module: it is moved itself; of another number type a copy is made.
        options: its batch function and its loss; either may be missing.
        device: such as "cuda"; None: where it is.
        dtype: such as "bf16"; None: as it is.
        copied: whether a module that must move is copied first, so that the caller's stays.

    Raises:
        UsageError: there is no such device or type, or the module cannot be copied or moved.
    """
    first = next(module.parameters(), None)
    if first is None or (device is None and dtype is None):
        return module, options
    if is_sharded(module):
        raise UsageError(
            "a module that is sharded over processes is measured where it is, as it is",
            hint="leave device and dtype out",
        )
    home, own = first.device, first.dtype
    place = home if device is None else find_device(device)
    kind = own if dtype is None else find_dtype(dtype)

    def refuse(why: str) -> UsageError:
        return UsageError(
            f"the module cannot be brought to {place} in {str(kind).removeprefix('torch.')}: {why}",
            hint="make it there in the callable, and leave --device and --dtype out",
        )

    with blamed(refuse):
        if kind != own or (copied and place != home):
            module = copy.deepcopy(module).to(kind)
        module = module.to(place)
    batch, loss = options.batch, options.loss
    if batch is not None:
        options = replace(options, batch=_to_module(batch, place, kind))
    if loss is not None:
        options = replace(options, loss=_to_caller(loss, home, own))
    return module, options


def _to_module(batch: Callable[..., Any], place: torch.device, kind: torch.dtype) -> Any:
    def moved(sample_ids: Tensor, noise_level: Tensor) -> Any:
        return _moved(batch(sample_ids, noise_level), place, kind)

    return moved


def _to_caller(loss: Callable[..., Any], place: torch.device, kind: torch.dtype) -> Any:
    def moved(output: Any, sample_ids: Tensor, noise_level: Tensor) -> Any:
        return loss(_moved(output, place, kind), sample_ids, noise_level)

    return moved


def _moved(value: Any, place: torch.device, kind: torch.dtype) -> Any:
    """Return a nest of tensors on a device, the real ones among them in a number type."""
    if isinstance(value, Tensor):
        return value.to(place, kind) if value.is_floating_point() else value.to(place)
    if isinstance(value, dict):
        moved = {key: _moved(part, place, kind) for key, part in value.items()}
        # An output of transformers or diffusers is a dict with attributes.
        return moved if type(value) is dict else type(value)(**moved)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(part, place, kind) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(_moved(part, place, kind) for part in value)
    return value
