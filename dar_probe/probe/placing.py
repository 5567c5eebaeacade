"""A module moved to another device or number type, with inputs and a loss that follow it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dar_probe.errors import UsageError, blamed
from dar_probe.models.offload import check_cpu, streamed
from dar_probe.probe.options import ModuleOptions
from dar_probe.runtime.device import find_device, find_dtype
from dar_probe.runtime.sharded import is_sharded
from dar_probe.sites.unwrap import unwrap


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


@contextmanager
def offloaded(
    module: nn.Module, options: ModuleOptions
) -> Iterator[tuple[nn.Module, ModuleOptions]]:
    """Let a module in host memory run on a GPU, to which the weights of each block come as it runs.

    Yields:
        The module without wrappers, and how it is run there: what the caller's batch function
        returns is moved to the GPU, and the output back for the caller's loss. Afterwards the
        module is as it was. Where nothing is to be offloaded, both as they are.

    Raises:
        UsageError: the module is not in host memory, or there is no GPU.
    """
    if options.offload is None:
        yield module, options
        return
    first = next(module.parameters(), None)
    home = torch.device("cpu") if first is None else first.device
    if options.offload == "disk":
        raise UsageError(
            "the weights of this module lie in memory already, and streaming them from the disk "
            "would spare none of it",
            hint="of a model of diffusers: model.save_pretrained(FOLDER), and in a new process "
            'dp.analyze(FOLDER, offload="disk")',
        )
    if home.type != "cpu":
        raise UsageError(
            f'the weights of this module lie on {home} already, and offload="cpu" keeps them in '
            "host memory",
            hint="move it there first: module.to('cpu')",
        )
    place = find_device("auto")
    check_cpu(place)
    module = unwrap(module)
    batch, loss = options.batch, options.loss
    if batch is not None:
        options = replace(options, batch=_to_module(_at(batch, home), place, None))
    if loss is not None:
        options = replace(options, loss=_to_caller(_at(loss, home), home, None))
    with streamed(module, place):
        yield module, options


def _at(function: Callable[..., Any], place: torch.device) -> Any:
    """Return a function of the caller that gets ids and noise levels on a device."""

    def called(*args: Any) -> Any:
        return function(*(_moved(arg, place, None) for arg in args))

    return called


def _to_module(batch: Callable[..., Any], place: torch.device, kind: torch.dtype | None) -> Any:
    def moved(sample_ids: Tensor, noise_level: Tensor) -> Any:
        return _moved(batch(sample_ids, noise_level), place, kind)

    return moved


def _to_caller(loss: Callable[..., Any], place: torch.device, kind: torch.dtype | None) -> Any:
    def moved(output: Any, sample_ids: Tensor, noise_level: Tensor) -> Any:
        return loss(_moved(output, place, kind), sample_ids, noise_level)

    return moved


def _moved(value: Any, place: torch.device, kind: torch.dtype | None) -> Any:
    """Return a nest of tensors on a device, the real ones among them in a number type, if any."""
    if isinstance(value, Tensor):
        return (
            value.to(place, kind or value.dtype) if value.is_floating_point() else value.to(place)
        )
    if isinstance(value, dict):
        moved = {key: _moved(part, place, kind) for key, part in value.items()}
        # An output of transformers or diffusers is a dict with attributes.
        return moved if type(value) is dict else type(value)(**moved)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(part, place, kind) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(_moved(part, place, kind) for part in value)
    return value
