"""Hooks that are gone afterwards, however it ends."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked() -> Iterator[list[RemovableHandle]]:
    """Yield a list of handles, to be extended one by one; all of them are removed at the end.

    The list is there first: where registering fails half-way, the other half is not left behind.
    """
    handles: list[RemovableHandle] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()
