"""Arguments and options that several commands share."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def _importable(family: str | None) -> str | None:
    """Put the current directory on the import path for a family of the user's own."""
    if family and ":" in family:
        sys.path.insert(0, "")
    return family


Checkpoint = Annotated[
    Path,
    typer.Argument(help="A .pt or .safetensors file, or a diffusers folder.", show_default=False),
]
Data = Annotated[
    str | None,
    typer.Option(help="digits, images:DIR or latents:FILE; default: what fits the model."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Pairs of sample and noise level in one pass; default: by the model's size."),
]
Objective = Annotated[
    str | None,
    typer.Option(
        help="Where the file does not tell: sit (t=0 is noise), repa (t=1 is noise), dit, uvit, "
        "vp, or "
        "ddpm:SCHEDULE:PREDICTION (linear, scaled-linear, cosine; eps, v, x0)."
    ),
]
Heads = Annotated[int | None, typer.Option(help="Attention heads, where the file does not tell.")]
Family = Annotated[
    str | None,
    typer.Option(
        help="Where the names of weights mislead: sit, uvit, mdt, lightningdit, udit, or "
        "package.module:FAMILY.",
        callback=_importable,
    ),
]
Weights = Annotated[
    str, typer.Option(help="auto (the averaged ones if there are any), ema or model.")
]
Seed = Annotated[int, typer.Option(help="Random seed for noise and samples.", min=0)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Dtype = Annotated[str, typer.Option(help="float32, float64 or bfloat16.")]
Engine = Annotated[str, typer.Option(help="hooks or nnsight; both give the same numbers.")]
Solver = Annotated[str, typer.Option(help="euler, heun, sde or dopri5.")]
Steps = Annotated[int, typer.Option(help="Steps from noise to data.")]
Guidance = Annotated[float, typer.Option(help="Strength of classifier-free guidance; 1 is none.")]
DrawnTogether = Annotated[
    int, typer.Option("--batch-size", help="Samples that are drawn together.")
]
Decoder = Annotated[
    Path | None,
    typer.Option("--vae", help="A local AutoencoderKL folder, which makes images of latents."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an analysis that was cut off.")]
NoFigures = Annotated[
    bool,
    typer.Option("--no-figures", help="Write no printed figures (figures/), only data and page."),
]
Text = Annotated[
    Path | None,
    typer.Option(
        help="Conditions for a diffusers model, .safetensors or .npz; default: random ones."
    ),
]


def check_first(path: Path) -> None:
    """Refuse a file by its first bytes, before torch is imported.

    Raises:
        CheckpointError: it is none, or no checkpoint.
    """
    from dar_probe.checkpoints.diffusers_folder import is_folder
    from dar_probe.files import kinds

    if not is_folder(path):
        with kinds.open_file(path) as file:
            kinds.check(file, path)
