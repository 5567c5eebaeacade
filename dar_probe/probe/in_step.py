"""Processes that share one module must be given the same inputs, and see the same states."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dar_probe.errors import ProbeError, UsageError
from dar_probe.probe.sharding import different
from dar_probe.probe.user_functions import tensors
from dar_probe.runtime.ranks import Ranks
from dar_probe.runtime.sharded import is_dtensor
from dar_probe.sites.block_lists import members, named
from dar_probe.sites.hooks import hooked
from dar_probe.sites.layout import Inputs
from dar_probe.sites.unwrap import plain_name

NEAR = 1e-3  # relative: sums of the same states on two devices


def check_same_question(ranks: Ranks, *asked: Any) -> None:
    """Make sure that all processes of a sharded module ask for the same.

    Args:
        ranks: this process among those of the module.
        asked: plain data that tells what is done.

    Raises:
        UsageError: they do not.
    """
    if ranks.in_step and len(set(ranks.gather(repr(asked)))) > 1:
        raise UsageError(
            "the processes of a sharded module ask for different things of it",
            hint="call with the same arguments in every process, out included: one of them writes",
        )


def check_in_step(
    module: nn.Module, run: Callable[[], Inputs], ranks: Ranks, *, blocks: str | None = None
) -> None:
    """Compare over all processes what a sharded module is given, and its states between blocks.

    What each of them would find in other states may ask for another number of forwards, and
    processes out of step wait for each other for ever. The module must be ``untouched``.

    Args:
        module: without wrappers.
        run: runs the module once, and returns the args and kwargs that it did so on.
        ranks: this process among those of the module.
        blocks: patterns of the names of blocks. None: the members of its lists.

    Raises:
        ProbeError: the states between blocks are spread over processes.
        UsageError: the inputs differ.
    """
    states: list[tuple[str, Any]] = []
    names = {part: plain_name(name) for name, part in module.named_modules()}

    def enter(part: nn.Module, args: Any, kwargs: Any) -> None:
        states.extend((names[part], v) for v in (*args, *kwargs.values()) if _is_real(v))

    def leave(part: nn.Module, args: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple | list) else (output,)
        states.extend((names[part], v) for v in parts if _is_real(v))

    with hooked() as handles:
        for block in named(module, blocks) if blocks else members(module):
            handles.append(block.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
            handles.append(block.register_forward_hook(leave))
        args, kwargs = run()
    digests = ranks.gather(_digest([*tensors(args), *tensors(kwargs)]))
    if len(set(digests)) > 1:
        raise UsageError(
            "the batch function gives the processes of a sharded module different inputs",
            hint="make it a function of each sample's id alone, not of the rank",
        )
    spread = next((name for name, value in states if is_dtensor(value)), None)
    if spread is not None:
        raise ProbeError(
            f"what {spread!r} takes or returns is spread over processes (a DTensor): its stream is "
            "nowhere whole, as in sequence parallelism",
            hint="let blocks take and return whole tensors: without SequenceParallel, and "
            "use_local_output=True",
        )
    own = [(tuple(v.shape), *_sums(v)) for _, v in states]
    said = ranks.gather(own)
    if not all(_near(own, other) for other in said):
        raise different()


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@torch.no_grad()
def _sums(value: Tensor) -> tuple[float, float]:
    if is_dtensor(value):
        return 0.0, 0.0
    flat = value.detach().double().reshape(-1)
    weights = torch.linspace(1, 2, len(flat), dtype=torch.float64, device=flat.device)
    return float(flat.abs().sum()), float((flat.abs() * weights).sum())


def _near(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> bool:
    if [shape for shape, *_ in one] != [shape for shape, *_ in other]:
        return False
    mine, theirs = ([sums for _, *sums in each] for each in (one, other))
    return bool(np.allclose(mine, theirs, rtol=NEAR, equal_nan=True))


def _digest(values: list[Tensor]) -> str:
    found = hashlib.sha256()
    for value in values:
        if not is_dtensor(value):
            raw = value.detach().cpu().contiguous().reshape(-1)
            found.update(f"{value.dtype}:{tuple(value.shape)}".encode())
            found.update(raw.view(torch.uint8).numpy().data)
    return found.hexdigest()
