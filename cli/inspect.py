"""``dar-probe inspect``: what a checkpoint is, without measuring anything."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dar_probe.cli import options


def inspect(
    checkpoint: Annotated[
        Path, typer.Argument(help="A .pt or .safetensors file.", show_default=False)
    ],
    heads: Annotated[int | None, typer.Option(help="Attention heads, where unknown.")] = None,
    weights: Annotated[str, typer.Option(help="auto (prefers EMA), ema or model.")] = "auto",
    objective: options.Objective = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print family, sizes, routing, parameters and assumptions of a checkpoint.

    Example: dar-probe inspect fixtures/digits-dar-static.pt
    """
    options.check_first(checkpoint)
    from dar_probe.loading import load

    loaded = load(checkpoint, heads=heads, weights=weights, objective_name=objective)
    facts = {
        "file": checkpoint.name,
        "sha256": loaded.checkpoint.sha256,
        "bytes": loaded.checkpoint.bytes,
        "weights": loaded.checkpoint.weights,
        "family": loaded.identified.family,
        "objective": loaded.objective.name,
        **loaded.identified.sizes,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "routing_parameters": sum(
            p.numel() for name, p in loaded.model.named_parameters() if name.startswith("stream.")
        ),
        "assumptions": loaded.assumptions,
    }
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        _show(facts)


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dar_probe.cli.terminal import printable

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    assumptions = facts.pop("assumptions")
    routed = facts.get("routing") == "dar"
    for name, value in facts.items():
        if not routed and name in ("query", "chunk_size", "routing_parameters"):
            continue
        shown = Text(printable(_words(name, value)), overflow="fold")
        table.add_row(Text(name.replace("_", " "), style="dim"), shown)
    console = Console(highlight=False)
    console.print(table)
    for assumption in assumptions:
        console.print(Text(f"Assumed: {printable(assumption)}"))


def _words(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("bytes", "parameters", "routing_parameters"):
        return f"{value:,}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)
