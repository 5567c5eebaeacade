"""``dar-probe analyze``: a checkpoint to a dataset, a verdict, figures and a page."""

from pathlib import Path
from typing import Annotated

import typer


def analyze(
    checkpoint: Annotated[
        Path, typer.Argument(help="A .pt or .safetensors file.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the analysis; default dar-probe-out/<checkpoint name>."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="digits, images:DIR or latents:FILE; default: what fits the model."),
    ] = None,
    noise_levels: Annotated[
        str | None,
        typer.Option(help="A count, or levels from 0 (data) to 1 (noise) such as 0.1,0.5,0.9."),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="How many samples; default 64.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples x noise levels in one pass; default by size.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="sit (t=0 is noise), repa (t=1 is noise) or dit, where unknown."),
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads, where unknown.")] = None,
    weights: Annotated[str, typer.Option(help="auto (prefers EMA), ema or model.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the noise.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float64 or bfloat16.")] = "float32",
    engine: Annotated[
        str, typer.Option(help="hooks, or nnsight: the same numbers the other way.")
    ] = "hooks",
    fail_on: Annotated[
        str | None,
        typer.Option(help="Exit 1 if e.g. 'inflation > 8 or redundancy > 0.97'."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue what was cut off.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Show how information travels across the depth of a checkpoint, over noise levels.

    Example: dar-probe analyze fixtures/digits-residual.pt --noise-levels 10 --samples 64
    """
    from dar_probe.checkpoints import sniff
    from dar_probe.cli import terminal

    with sniff.open_file(checkpoint) as file:
        sniff.check(file, checkpoint)  # a file that is refused costs no import of torch
    from dar_probe import api
    from dar_probe.rule import parse_rule

    if fail_on is not None:
        parse_rule(fail_on)
    folder = out or Path("dar-probe-out") / checkpoint.stem
    with terminal.progress("measuring") as tell:
        analysis = api.analyze(
            checkpoint,
            data=data,
            noise_levels=noise_levels,
            samples=samples,
            batch_size=batch_size,
            seed=seed,
            device=device,
            dtype=dtype,
            objective=objective,
            heads=heads,
            weights=weights,
            engine=engine,
            out=folder,
            resume=resume,
            fail_on=fail_on,
            on_cells=tell,
        )
    terminal.show(analysis, folder, as_json=as_json)
    if fail_on is not None and analysis.verdict.status == "fail":
        raise typer.Exit(1)
