"""``dar-probe sample``: a picture of what a checkpoint draws, and the file that FID tools read."""

from pathlib import Path
from typing import Annotated

import typer


def sample(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file.", show_default=False)],
    samples: Annotated[int, typer.Option(help="How many.")] = 100,
    classes: Annotated[
        str, typer.Option(help="Labels in turn, e.g. 3,5; default: all of them.")
    ] = "",
    solver: Annotated[str, typer.Option(help="euler, heun, sde or dopri5.")] = "heun",
    steps: Annotated[int, typer.Option(help="Steps from noise to data.")] = 50,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1: none.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Sample i is a function of (seed, i).")] = 0,
    batch_size: Annotated[int, typer.Option(help="Samples drawn together.")] = 256,
    vae: Annotated[
        Path | None, typer.Option(help="A local AutoencoderKL folder, which decodes latents.")
    ] = None,
    weights: Annotated[str, typer.Option(help="auto, ema or model.")] = "auto",
    objective: Annotated[
        str | None, typer.Option(help="sit, repa, dit, ...: where the file does not tell.")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Where the file does not tell.")] = None,
    family: Annotated[str | None, typer.Option(help="package.module:NAME of your own.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float64 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder; default dar-probe-out/<name>-samples.")
    ] = None,
) -> None:
    """Draw samples: samples.png, and samples.npz as the ADM evaluation suite reads it.

    Example: dar-probe sample fixtures/digits-residual.pt --samples 100 --guidance 2
    """
    import sys

    from rich.text import Text

    from dar_probe import generation
    from dar_probe.cli import terminal
    from dar_probe.cli.console import console_on, printable
    from dar_probe.errors import UsageError
    from dar_probe.hub.folder import name_of
    from dar_probe.output import OutputFolder

    if not 1 <= samples <= generation.MOST:
        raise UsageError(
            f"{samples} samples cannot be drawn", hint=f"--samples takes 1 to {generation.MOST}"
        )
    try:
        wanted = [int(part) for part in classes.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"--classes {classes!r} are no labels", hint="e.g. 3,5") from None
    target = out or Path("dar-probe-out") / f"{name_of(checkpoint)}-samples"
    with OutputFolder(target, kind="sheet") as folder:
        made = generation.generator(
            checkpoint, solver=solver, steps=steps, guidance=guidance, batch_size=batch_size,
            vae=vae, weights=weights, objective=objective, heads=heads, family=family,
            dtype=dtype, device=device,
        )  # fmt: skip
        labels = made.labels(samples, wanted)
        with terminal.progress("sampling", "samples") as tell:
            drawn = made.draw(labels, seed=seed, on_samples=lambda done: tell(done, samples, ""))
        folder.publish(lambda path: generation.save(drawn, path))
    lines = [f"{drawn.name}: {drawn.description}, {made.loaded.file['weights']} weights"]
    lines += [f"Assumed: {assumption}" for assumption in made.loaded.assumptions]
    for path in sorted(target.iterdir()):
        lines.append(f"{'Picture' if path.suffix == '.png' else 'Samples'}  {path}")
    for line in lines:
        console_on(sys.stdout).print(Text(printable(line)), soft_wrap=True)
