"""One file per family: builds the model and names its sites."""

from dataclasses import replace
from typing import Any

from torch import nn

from dar_probe.models.sit import SiT
from dar_probe.subjects import discover, sit
from dar_probe.subjects.subject import Reader, Source, Subject
from dar_probe.subjects.wrapping import check_forward, plain_name, unwrap

__all__ = ["Reader", "Source", "Subject", "find", "unwrap"]


def find(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Subject:
    """Name the sites of any module: known families by their file, others by discovery.

    The module must be without wrappers (``unwrap``), frozen and in eval mode.
    """
    check_forward(module, args, kwargs)
    if isinstance(module, SiT):
        return sit.subject(module)
    found = discover.discover(module, args, kwargs)
    return replace(
        found,
        readers=tuple(replace(site, name=plain_name(site.name)) for site in found.readers),
        sources=tuple(replace(site, name=plain_name(site.name)) for site in found.sources),
    )
