"""Leaves out pages and figures, which take most of the time of most commands.

For tests of what is measured, stored, said and refused. What pages and figures show is tested in
tests/reports, and the shared analyses of tests/conftest.py are drawn in full.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def lighten(patch: pytest.MonkeyPatch | None = None) -> None:
    """Replace what draws and renders; for good, unless ``patch`` undoes it."""
    from dar_probe.reports import printing
    from dar_probe.reports.draw import matplotlib
    from dar_probe.reports.pages import analysis, comparison, study

    def save(figure: Any, path: Path, **_: Any) -> None:
        path.touch()

    def write_all(ds: Any, folder: Path, **_: Any) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        return []

    put = setattr if patch is None else patch.setattr
    for module in (matplotlib, printing):
        put(module, "save", save)
        put(module, "draw", lambda *_, **__: None)
    put(printing, "write_all", write_all)
    for module in (analysis, comparison, study):
        put(module, "render", lambda *_, **__: "")


@contextmanager
def lightened() -> Iterator[None]:
    """Leave out pages and figures within a block."""
    with pytest.MonkeyPatch.context() as patch:
        lighten(patch)
        yield
