"""The two places where torch is asked what its public interface does not tell."""

from traceback import walk_stack
from typing import Any

from torch.profiler import profile
from torch.utils.checkpoint import CheckpointFunction


def memory_events(profiler: profile) -> list[int]:
    """Return the bytes of every allocation (above 0) and release (below 0), in order of time.

    The public events of a profiler with ``profile_memory`` have sums for each operator alone.
    """
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    every: list[Any] = profiler.profiler.kineto_results.events()
    events = [event for event in every if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())]


def in_reentrant_checkpoint() -> bool:
    """Tell whether the caller runs within torch's checkpoint with ``use_reentrant=True``."""
    code = CheckpointFunction.forward.__code__
    return any(frame.f_code is code for frame, _ in walk_stack(None))
