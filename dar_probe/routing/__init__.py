"""How sublayers share their results across depth: one Stream per scheme.

A scheme is a class with ``@register`` in any file of this folder. Nothing here lists the files:
``make`` imports the one that it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dar_probe.routing.dar import DAR
    from dar_probe.routing.residual import Residual
    from dar_probe.routing.stream import Layout, Stream, make, register

__all__ = ["DAR", "Layout", "Residual", "Stream", "make", "register"]

# Importing the package loads no torch: ``train --help`` reads ``schemes``, which needs none.
_HOMES = {"DAR": "dar", "Residual": "residual"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dar_probe.routing' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'stream')}"), name)
