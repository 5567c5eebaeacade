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
        row = _row(site.name, site.kind, site.block, site.module, names, site.normed)
        if site.operation is not None:
            row["module"] += f".{site.operation.names[0]}()"
        rows.append(row)

    for source in subject.sources:
        if source.written:
            reader()
        elif source.before is not None:
            rows.append(
                _row(source.name, "fusion", source.block, source.before.module, names, None)
            )
    reader()
    return rows


def writing(subject: Subject) -> dict[str, nn.Module]:
    """Return the module that returns each write, by the source's name; others are left out."""
    if subject.writers is not None:
        return {s.name: m for s, m in zip(subject.sources, subject.writers, strict=True)}
    found = {}
    for reader in subject.readers:
        plain = [b.output for b in reader.branches if b.gate is None and b.scale is None]
        if reader.output is not None:
            found[reader.name] = reader.output
        elif len(plain) == len(reader.branches) == 1:
            found[reader.name] = plain[0]
    return found


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
