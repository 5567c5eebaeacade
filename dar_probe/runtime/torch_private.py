"""The four places where torch is asked what its public interface does not tell."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import profile
from torch.utils import checkpoint as checkpointing

NON_REENTRANT = "_checkpoint_without_reentrant_generator"
_OWN = getattr(checkpointing, NON_REENTRANT)


def memory_events(profiler: profile) -> list[int]:
    """Return the bytes of every allocation (above 0) and release (below 0), in order of time.

    The public events of a profiler with ``profile_memory`` have sums for each operator alone.
    """
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    every: list[Any] = profiler.profiler.kineto_results.events()
    events = [event for event in every if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())]


def made_again(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a function whose inner tensors are not kept, but made again in the backward, to its end.

    It works within ``without_checkpointing``, which holds for what the function itself calls; modes
    that meet torch's functions meet those of the function alone.
    """
    outside = getattr(checkpointing, NON_REENTRANT)

    def within(*args: Any, **kwargs: Any) -> Any:
        setattr(checkpointing, NON_REENTRANT, outside)
        with torch._C._EnableTorchFunction():
            return function(*args, **kwargs)

    setattr(checkpointing, NON_REENTRANT, _OWN)
    try:
        with torch._C.DisableTorchFunction(), checkpointing.set_checkpoint_early_stop(False):
            return checkpointing.checkpoint(within, *args, use_reentrant=False, **kwargs)
    finally:
        setattr(checkpointing, NON_REENTRANT, outside)


@contextmanager
def unmet() -> Iterator[None]:
    """Let no mode meet the functions of torch that run within."""
    with torch._C.DisableTorchFunction():
        yield


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """Let ``torch.utils.checkpoint`` run what it is given once, as if it were not there.

    What is run again in the backward would meet other hooks than before, and states within a
    reentrant checkpoint have no gradient that could be asked for. Numbers are the same without.
    """

    def plainly(*_: Any, **__: Any) -> Iterator[None]:
        yield

    own = {NON_REENTRANT: plainly, "CheckpointFunction": _Once}
    theirs = {name: getattr(checkpointing, name) for name in own}
    try:
        for name, stand_in in own.items():
            setattr(checkpointing, name, stand_in)
        yield
    finally:
        for name, thing in theirs.items():
            setattr(checkpointing, name, thing)


def forget_reduction_dtypes(part: Any) -> None:
    """Let a module of ``fully_shard`` look again at which of its parameters are trained.

    At its first forward FSDP notes in which number type gradients are reduced: in none, where all
    parameters are frozen at that moment.
    """
    state = part._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)  # one group alone before torch 2.12
    for group in [state._fsdp_param_group] if groups is None else groups:
        if group is not None:
            group._init_mp_dtypes()


class _Once:
    """Stands in for the function of a reentrant checkpoint."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)
