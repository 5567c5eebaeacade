"""The two places where torch is asked what its public interface does not tell."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.profiler import profile
from torch.utils import checkpoint as checkpointing

NON_REENTRANT = "_checkpoint_without_reentrant_generator"


def memory_events(profiler: profile) -> list[int]:
    """Return the bytes of every allocation (above 0) and release (below 0), in order of time.

    The public events of a profiler with ``profile_memory`` have sums for each operator alone.
    """
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    every: list[Any] = profiler.profiler.kineto_results.events()
    events = [event for event in every if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())]


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


class _Once:
    """Stands in for the function of a reentrant checkpoint."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)
