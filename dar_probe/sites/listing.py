"""The sites of a subject as plain data, for the manifest and for a person to look over."""

from typing import Any

from torch import nn

from dar_probe.sites.subject import Subject
from dar_probe.sites.unwrap import plain_name


def describe(subject: Subject) -> list[dict[str, Any]]:
    """Return one row for each reader and each fusion, in the order of the stream.

    Rows hold the name, the kind, the block, the module's own name, and for readers whether the
    branch starts with a norm.
    """
    names = {module: plain_name(name) for name, module in subject.model.named_modules()}
    readers = iter(subject.readers)
    rows: list[dict[str, Any]] = []

    def reader() -> None:
        site = next(readers)
        rows.append(_row(site.name, site.kind, site.block, site.module, names, site.normed))

    for source in subject.sources:
        if source.written:
            reader()
        elif source.before is not None:
            rows.append(
                _row(source.name, "fusion", source.block, source.before.module, names, None)
            )
    reader()
    return rows


def is_fresh(model: nn.Module) -> bool:
    """Tell whether every norm still has its initial gain and offset: then nothing was learnt.

    The first step of any training moves them. A model without such parameters tells nothing.
    """
    parameters = [
        parameter
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    ]
    # Some gains are stored as their difference from one.
    initial = [bool((p == 0).all()) or bool((p == 1).all()) for p in parameters]
    return bool(initial) and all(initial)


def _row(
    name: str,
    kind: str,
    block: int,
    module: nn.Module,
    names: dict[nn.Module, str],
    normed: bool | None,
) -> dict[str, Any]:
    row = {"name": name, "kind": kind, "block": block, "module": names[module]}
    return row if normed is None else {**row, "normed": normed}
