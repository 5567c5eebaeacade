"""``dar-probe evaluate``: how near samples come to real ones."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dar_probe.cli.shared import options, panels, startup

if TYPE_CHECKING:
    from dar_probe.diffusion.evaluation import Quality

ROWS = {
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "agreement": "agreement with the label",
}


def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint, or a .npz of images.", metavar="CHECKPOINT", show_default=False
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="The real samples: digits, images:DIR or latents:PATH.",
            metavar="DATA",
            rich_help_panel=panels.GRID,
        ),
    ] = "digits",
    features: Annotated[
        str,
        typer.Option(
            help="Model of the features: digits (a classifier), or a folder, e.g. of DINOv2.",
            metavar="NAME",
            rich_help_panel=panels.GRID,
        ),
    ] = "digits",
    samples: Annotated[
        int,
        typer.Option(
            help="Samples to draw for each seed.",
            metavar="N",
            min=1,
            rich_help_panel=panels.SAMPLING,
        ),
    ] = 1000,
    seeds: Annotated[
        int,
        typer.Option(
            help="How many seeds; intervals are over them.",
            metavar="N",
            rich_help_panel=panels.SAMPLING,
        ),
    ] = 3,
    solver: options.Solver = "heun",
    steps: options.Steps = 25,
    guidance: options.Guidance = 1.0,
    batch_size: options.DrawnTogether = 256,
    vae: options.Decoder = None,
    objective: options.Objective = None,
    heads: options.Heads = None,
    family: options.Family = None,
    weights: options.Weights = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    json: options.Json = False,
) -> None:
    """Measure Fréchet and kernel distance, precision and recall of samples, with intervals.

    Samples are compared with the rows that the trainer trains on. The last column compares the
    rows that it holds out, as a floor; they are fewer, which alone makes Fréchet distances larger.

    Example: dar-probe evaluate fixtures/digits-residual.pt --samples 1000
    """
    from dar_probe.cli.shared import terminal
    from dar_probe.errors import UsageError

    if not 1 <= seeds <= 100:
        raise UsageError(f"{seeds} seeds make no interval", hint="--seeds takes 1 to 100")
    if checkpoint.suffix != ".npz":
        checkpoint = options.check_first(checkpoint)
    with startup.imports():
        from dar_probe.models.options import CheckpointOptions, SamplingOptions
        from dar_probe.models.quality import QualityOptions
        from dar_probe.models.quality import evaluate as run

    model = CheckpointOptions(
        path=checkpoint, weights=weights, family=family, objective=objective, heads=heads,
        device=device, dtype=dtype,
    )  # fmt: skip
    sampling = SamplingOptions(
        solver=solver, steps=steps, guidance=guidance, batch_size=batch_size, vae=vae
    )
    wanted = QualityOptions(data=data, space=features, samples=samples, seeds=range(seeds))
    with terminal.progress("sampling", "samples") as tell:
        found = run(model, sampling, wanted, on_samples=tell)
    if json:
        _print_json(found)
    else:
        _show(found)


def _print_json(found: "Quality") -> None:
    import json
    import math
    import sys
    from dataclasses import asdict

    plain = asdict(found)
    for measure in plain["measures"].values():
        for name, value in measure.items():
            measure[name] = None if isinstance(value, float) and math.isnan(value) else value
    sys.stdout.write(json.dumps(plain, indent=2) + "\n")


def _show(found: "Quality") -> None:
    import sys

    from rich.text import Text

    from dar_probe.cli.shared.console import aligned, console_on, printable, write

    console = console_on(sys.stdout)
    write(console, Text(printable(found.name), style="bold"))
    seeds = found.measures["frechet"].seeds
    write(console, Text(found.drawn + (f", {seeds} seeds" if seeds > 1 else ""), style="dim"))
    console.print()
    heads = ("measure", "value", "95 % interval", f"{found.held_out} real ones")
    rows = [[Text(head, style="dim") for head in heads]]
    for name, label in ROWS.items():
        if name in found.measures:
            one = found.measures[name]
            interval = f"{one.low:.3g} to {one.high:.3g}" if seeds > 1 else "one seed"
            rows.append(
                [Text(label), Text(f"{one.value:.4g}"), Text(interval),
                 Text(f"{found.floor[name]:.4g}")]
            )  # fmt: skip
    aligned(console, rows, right=[1, 3])
