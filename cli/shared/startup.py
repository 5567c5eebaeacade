"""Lets a command import what it needs in less time."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

OWN_PROCESS = False  # whether the command line is all that this process does, see ``app.main``


@contextmanager
def imports() -> Iterator[None]:
    """Keep the garbage collector away while modules are loaded, and from them ever after.

    What torch, xarray and matplotlib load stays until the end; the collector would look through
    all of it again and again, for a sixth of the time that ``analyze`` of a small model takes.
    In a process that does other things as well nothing changes.
    """
    if not OWN_PROCESS:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # triton reports what is left at the end as leaks
