"""A bar for Python, in a notebook or a terminal, for whoever asks for one."""

from collections.abc import Callable
from typing import Any


def progress_bar(what: str = "measuring", unit: str = "cells") -> Callable[[int, int], None]:
    """Return what draws a bar when it is called with (done, total), for ``on_cells``.

    It is tqdm's, which nnsight brings along: HTML in a notebook that has ipywidgets, else text.

    Example:
        >>> dp.analyze("ckpt.pt", on_cells=dp.progress_bar())  # doctest: +SKIP
    """
    from tqdm.auto import tqdm

    bar: Any = None

    def tell(done: int, total: int) -> None:
        nonlocal bar
        if bar is not None and (done < bar.n or bar.total != total):  # another walk
            bar.close()
            bar = None
        if bar is None:
            bar = tqdm(total=total, desc=what, unit=f" {unit}")
        bar.update(done - bar.n)
        if done >= total:
            bar.close()
            bar = None

    return tell
