"""``dar-probe sample``: a picture of what a checkpoint draws, and the file that FID tools read."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dar_probe.cli.shared import options, panels, startup


def sample(
    checkpoint: options.Checkpoint,
    samples: Annotated[
        int,
        typer.Option(help="How many samples.", metavar="N", min=1, rich_help_panel=panels.SAMPLING),
    ] = 100,
    classes: Annotated[
        str,
        typer.Option(
            help="Class labels, taken in turn, e.g. 3,5.",
            metavar="LABELS",
            show_default="all that the model knows",
            rich_help_panel=panels.SAMPLING,
        ),
    ] = "",
    solver: options.Solver = "heun",
    steps: options.Steps = 50,
    guidance: options.Guidance = 1.0,
    seed: options.Seed = 0,
    batch_size: options.DrawnTogether = 256,
    vae: options.Decoder = None,
    objective: options.Objective = None,
    heads: options.Heads = None,
    family: options.Family = None,
    weights: options.Weights = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the samples.",
            metavar="DIR",
            show_default="dar-probe-out/<checkpoint name>-samples",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = None,
) -> None:
    """Draw samples: samples.png, and samples.npz as the ADM evaluation suite reads it.

    Sample i is a function of the seed, i and its label.

    Example: dar-probe sample fixtures/digits-residual.pt --samples 100 --guidance 2
    """
    from rich.text import Text

    from dar_probe.checkpoints.naming import folder_name
    from dar_probe.cli.shared import terminal
    from dar_probe.cli.shared.console import console_on, printable
    from dar_probe.errors import UsageError
    from dar_probe.files.analysis_folder import OutputFolder, check_target

    try:
        wanted = [int(part) for part in classes.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"--classes {classes!r} are no labels", hint="e.g. 3,5") from None
    if out is not None:
        check_target(out, "sheet")
    checkpoint = options.check_first(checkpoint)
    with startup.imports():
        from dar_probe.diffusion import generation
        from dar_probe.models.generator import load_generator
        from dar_probe.models.options import CheckpointOptions, SamplingOptions
        from dar_probe.runtime.checks import check_counts

    check_counts(samples=samples)
    model = CheckpointOptions(
        path=checkpoint, weights=weights, family=family, objective=objective, heads=heads,
        device=device, dtype=dtype,
    )  # fmt: skip
    sampling = SamplingOptions(
        solver=solver, steps=steps, guidance=guidance, batch_size=batch_size, vae=vae
    )
    made = load_generator(model, sampling)
    target = out or Path("dar-probe-out") / f"{folder_name(checkpoint)}-samples"
    check_target(target, "sheet")
    labels = made.labels(samples, wanted)
    with terminal.progress("sampling", "samples") as tell:
        drawn = made.draw(labels, seed=seed, on_samples=lambda done: tell(done, samples))
    with OutputFolder(target, kind="sheet") as folder:
        folder.publish(lambda path: generation.save(drawn, path))
    lines = [f"{drawn.name}: {drawn.description}, {made.loaded.file['weights']} weights"]
    lines += [f"Assumed: {assumption}" for assumption in made.loaded.assumptions]
    for path in sorted(target.iterdir()):
        lines.append(f"{'Picture' if path.suffix == '.png' else 'Samples'}  {path}")
    for line in lines:
        console_on(sys.stdout).print(Text(printable(line)), soft_wrap=True)
