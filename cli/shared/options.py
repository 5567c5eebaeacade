"""Arguments and options that several commands share."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dar_probe.cli.shared import panels
from dar_probe.runtime.dtype_names import DTYPE_NAMES


def _importable(family: str | None) -> str | None:
    """Put the current directory on the import path for a family of the user's own."""
    if family and ":" in family:
        sys.path.insert(0, "")
    return family


def one_of(*names: str) -> Callable[[str], list[str]]:
    """Return what offers these names where a shell completes an option's value."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


Checkpoint = Annotated[
    Path,
    typer.Argument(
        help="A .pt, .safetensors, .gguf or .npz file, a diffusers folder, or the id of one on "
        "Hugging Face Hub, e.g. black-forest-labs/FLUX.1-dev.",
        metavar="CHECKPOINT",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="digits, images:DIR or latents:PATH.",
        metavar="DATA",
        show_default="what fits the model",
        rich_help_panel=panels.GRID,
        autocompletion=one_of("digits", "images:", "latents:"),
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Pairs of sample and noise level in one pass.",
        metavar="N",
        show_default="by the model's size",
        rich_help_panel=panels.GRID,
    ),
]
Recompute = Annotated[
    bool,
    typer.Option(
        "--recompute",
        help="Keep no inner tensors of blocks, make them again: less memory, the same numbers.",
        show_default="once memory runs out",
        rich_help_panel=panels.GRID,
    ),
]
Stream = Annotated[
    str,
    typer.Option(
        help="Of a model whose text is a stream of its own (SD3, Flux): image, text, or all.",
        metavar="NAME",
        rich_help_panel=panels.GRID,
        autocompletion=one_of("image", "text", "all"),
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(
        help="What the model was trained on: sit (t=0 is noise), repa (t=1 is noise), rae, dit, "
        "uvit, vp, edm, jit (or jit:NOISE_SCALE:LEAST), meanflow, jax-flow, jax-dit, or "
        "ddpm:SCHEDULE:PREDICTION (linear, scaled-linear, cosine; eps, v, x0).",
        metavar="NAME",
        show_default="as the file tells, else its family's",
        rich_help_panel=panels.MODEL,
        autocompletion=one_of(
            "sit",
            "repa",
            "rae",
            "open-sora",
            "dit",
            "uvit",
            "vp",
            "edm",
            "jit",
            "meanflow",
            "ddpm:",
        ),
    ),
]
Heads = Annotated[
    int | None,
    typer.Option(
        help="Attention heads.",
        metavar="N",
        show_default="as the file tells",
        rich_help_panel=panels.MODEL,
    ),
]
Family = Annotated[
    str | None,
    typer.Option(
        help="Where the names of weights mislead: sit, uvit, mdt, lightningdit, udit, ddt, rae, "
        "jit, meanflow, maskdit, ditmoe, latte, opensora, fit, or package.module:FAMILY.",
        metavar="NAME",
        show_default="told by the names of its weights",
        rich_help_panel=panels.MODEL,
        callback=_importable,
        autocompletion=one_of(
            "sit",
            "uvit",
            "mdt",
            "lightningdit",
            "udit",
            "ddt",
            "rae",
            "jit",
            "meanflow",
            "maskdit",
            "ditmoe",
            "latte",
            "opensora",
            "fit",
        ),
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        help="auto (the averaged ones if there are any), ema or model.",
        metavar="NAME",
        rich_help_panel=panels.MODEL,
        autocompletion=one_of("auto", "ema", "model"),
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        help="Random seed for noise and samples.",
        metavar="N",
        min=0,
        rich_help_panel=panels.GRID,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="Where the model runs: auto (a GPU if there is one), cpu, cuda, ...",
        metavar="NAME",
        rich_help_panel=panels.MODEL,
        autocompletion=one_of("auto", "cpu", "cuda"),
    ),
]
DTYPE_HELP = "float32 (fp32), float64 (fp64), bfloat16 (bf16) or float16 (fp16)."
Dtype = Annotated[
    str,
    typer.Option(
        help=f"Number type of the weights: {DTYPE_HELP}",
        metavar="TYPE",
        rich_help_panel=panels.MODEL,
        autocompletion=one_of(*DTYPE_NAMES),
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="hooks or nnsight; both give the same numbers.",
        metavar="NAME",
        rich_help_panel=panels.MODEL,
        autocompletion=one_of("hooks", "nnsight"),
    ),
]
Text = Annotated[
    Path | None,
    typer.Option(
        help="Text or other conditions of the model, .safetensors or .npz.",
        metavar="FILE",
        show_default="random ones, or no text",
        rich_help_panel=panels.MODEL,
    ),
]
Adapter = Annotated[
    Path | None,
    typer.Option(
        help="A LoRA adapter of the model, a folder or .safetensors, merged in memory by peft.",
        metavar="PATH",
        show_default="none",
        rich_help_panel=panels.MODEL,
    ),
]
Shard = Annotated[
    bool,
    typer.Option(
        "--shard",
        help="Under torchrun: share the model itself out over the processes (FSDP2).",
        show_default="each holds the whole model",
        rich_help_panel=panels.MODEL,
    ),
]
Offload = Annotated[
    str | None,
    typer.Option(
        help="Where weights stay until their block runs: disk (a diffusers folder larger than "
        "memory) or cpu (host memory, for a GPU). Slower, the same numbers.",
        metavar="PLACE",
        show_default="beside the model",
        rich_help_panel=panels.MODEL,
        autocompletion=one_of("disk", "cpu"),
    ),
]
Solver = Annotated[
    str,
    typer.Option(
        help="euler, heun, sde or dopri5.",
        metavar="NAME",
        rich_help_panel=panels.SAMPLING,
        autocompletion=one_of("euler", "heun", "sde", "dopri5"),
    ),
]
Steps = Annotated[
    int,
    typer.Option(help="Steps from noise to data.", metavar="N", rich_help_panel=panels.SAMPLING),
]
Guidance = Annotated[
    float,
    typer.Option(
        help="Strength of classifier-free guidance; 1 is none.",
        metavar="X",
        rich_help_panel=panels.SAMPLING,
    ),
]
DrawnTogether = Annotated[
    int,
    typer.Option(
        "--batch-size",
        help="Samples that are drawn together.",
        metavar="N",
        rich_help_panel=panels.SAMPLING,
    ),
]
Decoder = Annotated[
    Path | None,
    typer.Option(
        "--vae",
        help="A local AutoencoderKL folder, which makes images of latents.",
        metavar="DIR",
        show_default="latents are kept as they are",
        rich_help_panel=panels.SAMPLING,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        help="What figures and tables call the model.",
        metavar="NAME",
        show_default="its file, with its run where that tells but a step",
        rich_help_panel=panels.OUTPUT,
    ),
]
Names = Annotated[
    str | None,
    typer.Option(
        help="What to call the analyses, one name each, with commas.",
        metavar="NAMES",
        show_default="as they call themselves",
        rich_help_panel=panels.OUTPUT,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace the analysis of another checkpoint in the folder.",
        rich_help_panel=panels.OUTPUT,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Continue an analysis that was cut off.", rich_help_panel=panels.OUTPUT
    ),
]
NoFigures = Annotated[
    bool,
    typer.Option(
        "--no-figures",
        help="Write no printed figures (figures/).",
        rich_help_panel=panels.OUTPUT,
    ),
]
NoReport = Annotated[
    bool,
    typer.Option(
        "--no-report",
        help="Write no page (report.html).",
        rich_help_panel=panels.OUTPUT,
    ),
]
Formats = Annotated[
    str | None,
    typer.Option(
        help="Of the printed figures: some of png, pdf and svg, with commas.",
        metavar="NAMES",
        show_default="png; of the paper's figures pdf as well",
        rich_help_panel=panels.OUTPUT,
        autocompletion=one_of("png", "pdf", "svg"),
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON, and nothing else.", rich_help_panel=panels.OUTPUT),
]


def check_first(path: Path) -> Path:
    """Refuse a file by its first bytes, before torch is imported.

    Returns:
        The path, or where the model of the Hugging Face Hub lies whose id it is; a trainer's
        folder as it is, because its name tells the run and the step.

    Raises:
        CheckpointError: it is none, or no checkpoint.
    """
    from dar_probe.checkpoints import folders, hub, shards
    from dar_probe.checkpoints.diffusers_folder import is_folder
    from dar_probe.files import kinds

    path = hub.local(path, on_download=_say_download)
    model = folders.model_file(path)
    for part in () if is_folder(model) else shards.files(model):
        with kinds.open_file(part) as file:
            kinds.check(file, part)
    return path


def _say_download(name: str) -> None:
    from dar_probe.cli.shared.terminal import say

    say(f"Downloading the transformer of {name} from the Hugging Face Hub ...")
