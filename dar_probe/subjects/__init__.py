"""One file per family: builds the model and names its sites."""

from typing import Any

from torch import nn

from dar_probe.models.sit import SiT
from dar_probe.subjects import discover, sit
from dar_probe.subjects.subject import Reader, Source, Subject

__all__ = ["Reader", "Source", "Subject", "find"]


def find(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Subject:
    """Name the sites of any module: known families by their file, others by discovery."""
    if isinstance(module, SiT):
        return sit.subject(module)
    return discover.discover(module, args, kwargs)
