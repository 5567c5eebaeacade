"""``dar-probe bench``: what the complete diagnosis costs here, against the bare pass."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dar_probe.cli.shared import options, panels

if TYPE_CHECKING:
    from dar_probe.probe.bench import Price, Workload


def bench(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="A .pt, .safetensors, .gguf or .npz file, a diffusers folder, or the id of one on "
            "Hugging Face Hub.",
            metavar="CHECKPOINT",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Random weights instead of a file, e.g. SiT-B/2.",
            metavar="NAME",
            show_default="the weights of CHECKPOINT",
            rich_help_panel=panels.MODEL,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Samples in one pass.",
            metavar="N",
            show_default="as in analyze; 8 with --model",
            min=1,
            rich_help_panel=panels.GRID,
        ),
    ] = None,
    repeats: Annotated[
        int,
        typer.Option(help="Timed rounds.", metavar="N", min=1, rich_help_panel=panels.GRID),
    ] = 10,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads on the CPU.",
            metavar="N",
            show_default="torch's own choice",
            min=1,
            max=512,
            rich_help_panel=panels.MODEL,
        ),
    ] = None,
    heads: options.Heads = None,
    family: options.Family = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    as_json: options.Json = False,
) -> None:
    """Time the diagnosis against the bare forward and backward of the same batch.

    The floor is the forward and the backward to the activations alone, without hooks.

    Example: dar-probe bench fixtures/digits-residual.pt --repeats 20
    """
    from dar_probe.errors import UsageError

    if (checkpoint is None) == (model is None):
        raise UsageError(
            "bench takes a checkpoint or --model, one of them", hint="e.g. --model SiT-B/2"
        )
    if checkpoint is not None:
        checkpoint = options.check_first(checkpoint)
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    from dar_probe.checkpoints.diffusers_folder import name_of
    from dar_probe.cli.shared import terminal
    from dar_probe.models.options import CheckpointOptions
    from dar_probe.probe import bench as core

    with terminal.progress("preparing", None):
        if checkpoint is not None:
            wanted = CheckpointOptions(
                path=checkpoint, heads=heads, family=family, device=device, dtype=dtype
            )
            work = core.of_checkpoint(wanted, batch_size=batch_size)
        else:
            assert model is not None
            work = core.of_preset(model, batch_size=batch_size or 8, device=device, dtype=dtype)
    with terminal.progress("timing", None):
        price = core.bench(work, repeats=repeats)
    name = str(model)
    if checkpoint is not None:
        name = name_of(checkpoint) if checkpoint.is_dir() else checkpoint.name
    facts = _facts(name, work, price, repeats)
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        _show(facts)


def _facts(name: str, work: "Workload", price: "Price", repeats: int) -> dict[str, Any]:
    from dar_probe.probe.bench import machine

    model = {key: work.subject.facts[key] for key in ("depth", "width", "tokens", "routing")}
    dtype = next(work.subject.model.parameters()).dtype
    return {
        "name": name,
        "model": model,
        "batch_size": price.cells,
        "dtype": str(dtype).removeprefix("torch."),
        "repeats": repeats,
        "floor": {"seconds": price.floor.seconds, "peak_bytes": price.floor.peak_bytes},
        "probe": {"seconds": price.probe.seconds, "peak_bytes": price.probe.peak_bytes},
        "ratio": price.probe.ratio,
        "ratio_quartiles": [price.probe.low, price.probe.high],
        "memory_ratio": price.memory_ratio,
        "samples_per_second": price.samples_per_second,
        "machine": machine(work.device),
    }


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dar_probe.cli.shared.terminal import printable

    model, machine = facts["model"], facts["machine"]
    console = Console(highlight=False)
    console.print(Text(printable(facts["name"]), style="bold"))
    console.print(
        Text(
            f"{model['depth']} blocks x {model['width']}, {model['tokens']} tokens, "
            f"{model['routing']}; batch of {facts['batch_size']}, {facts['dtype']}, "
            f"{facts['repeats']} rounds",
            style="dim",
        )
    )
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("pass", no_wrap=True)
    for column in ("time", "ratio", "peak memory", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, ratios in (("floor", (1.0, 1.0)), ("probe", (facts["ratio"], facts["memory_ratio"]))):
        seconds, size = facts[name]["seconds"], facts[name]["peak_bytes"]
        table.add_row(
            name, _time(seconds), f"{ratios[0]:.2f}", f"{size / 1e6:,.1f} MB", f"{ratios[1]:.2f}"
        )
    console.print(table)
    console.print()
    low, high = facts["ratio_quartiles"]
    console.print(
        Text(f"The complete diagnosis costs {facts['ratio']:.2f} of the bare pass.", style="bold")
    )
    console.print(
        Text(
            f"Half of the rounds lie between {low:.2f} and {high:.2f}; "
            f"{facts['samples_per_second']:.3g} samples a second."
        )
    )
    console.print(
        Text(
            f"Machine: {printable(machine['name'])} ({machine['device']}), "
            f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}, "
            f"torch {machine['torch']}",
            style="dim",
        )
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
