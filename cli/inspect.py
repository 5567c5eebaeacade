"""``dar-probe inspect``: what a checkpoint is, without reading its weights."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dar_probe.cli.shared import options

if TYPE_CHECKING:
    from dar_probe.models.inspection import Survey


def inspect(
    checkpoint: options.Checkpoint,
    heads: options.Heads = None,
    family: options.Family = None,
    weights: options.Weights = "auto",
    objective: options.Objective = None,
    as_json: options.Json = False,
) -> None:
    """Print what a checkpoint is: family, sizes, parameters by part, FLOPs, sites, assumptions.

    Example: dar-probe inspect fixtures/digits-dar-static.pt
    """
    checkpoint = options.check_first(checkpoint)
    from dar_probe.models.inspection import survey
    from dar_probe.models.options import CheckpointOptions

    found = survey(
        CheckpointOptions(
            path=checkpoint, heads=heads, family=family, weights=weights, objective=objective
        )
    )
    if as_json:
        facts = asdict(found)
        flat = {
            "file": facts["file"].pop("name"),
            **facts.pop("file"),
            **facts.pop("sizes"),
            **facts,
        }
        sys.stdout.write(json.dumps(flat, indent=2) + "\n")
    else:
        _show(found)


def _show(found: "Survey") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dar_probe.cli.shared.terminal import printable

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))

    def row(name: str, value: Any) -> None:
        shown = Text(printable(_words(name, value)), overflow="fold")
        table.add_row(Text(name.replace("_", " "), style="dim"), shown)

    for name, value in found.file.items():
        row("file" if name == "name" else name, value)
    row("family", f"{found.family} ({found.why})")
    row("objective", found.objective)
    row("sample", " x ".join(map(str, found.shape)))
    for name, value in found.sizes.items():
        row(name, value)
    row("parameters", found.parameters)
    for name, count in found.parts.items():
        row("", f"{count:>15,}  {name}")
    if found.flops is None:
        row("FLOPs", f"not counted: {found.unknown_flops}")
    else:
        row("FLOPs", f"{found.flops / 1e9:.3g} G for the forward of one sample")
    for line in found.sites:
        row("sites" if line == found.sites[0] else "", line)
    console = Console(highlight=False)
    console.print(table)
    for assumption in found.assumptions:
        console.print(Text(f"Assumed: {printable(assumption)}"))


def _words(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("bytes", "parameters"):
        return f"{value:,}"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
