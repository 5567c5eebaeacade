"""``dar-probe ablate``: real interventions beside gradients."""

from pathlib import Path
from typing import Annotated

import typer


def ablate(
    checkpoint: Annotated[
        Path, typer.Argument(help="A .pt or .safetensors file.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder; default dar-probe-out/<checkpoint name>-ablation."),
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(help="Some of gate,source,block,uniform,frozen; default: all it has."),
    ] = None,
    pairs: Annotated[
        int, typer.Option(help="Single gates: half the largest, half drawn.", min=0)
    ] = 32,
    gate: Annotated[
        list[str] | None,
        typer.Option(help="One gate more, reader:source such as 57:0; may be repeated."),
    ] = None,
    frozen_at: Annotated[
        float | None,
        typer.Option(help="Noise level whose weights frozen routers take; default: the middle."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="digits, images:DIR or latents:FILE; default: what fits the model."),
    ] = None,
    noise_levels: Annotated[
        str, typer.Option(help="A count, or levels from 0 (data) to 1 (noise).")
    ] = "5",
    samples: Annotated[int, typer.Option(help="How many samples.", min=1)] = 16,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples x noise levels in one pass; default by size.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="sit (t=0 is noise), repa (t=1 is noise) or dit.")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads, where unknown.")] = None,
    weights: Annotated[str, typer.Option(help="auto (prefers EMA), ema or model.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the noise and of drawn gates.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float64 or bfloat16.")] = "float32",
    resume: Annotated[bool, typer.Option("--resume", help="Continue what was cut off.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every effect.")] = False,
) -> None:
    """Set gates to zero, skip blocks, replace routers' weights: does the loss do as predicted?

    Every intervention is one more forward of all samples at all noise levels. Gates are named as
    reader:source; reader 1 is the first sublayer, source 0 the embedding.

    Example: dar-probe ablate fixtures/digits-residual.pt --kinds source,block --samples 8
    """
    from dar_probe.checkpoints import sniff
    from dar_probe.cli import effects, terminal

    with sniff.open_file(checkpoint) as file:
        sniff.check(file, checkpoint)  # a file that is refused costs no import of torch
    pairs_wanted = [_pair(text) for text in gate or []]
    from dar_probe import api

    folder = out or Path("dar-probe-out") / f"{checkpoint.stem}-ablation"
    with terminal.progress("intervening") as tell:
        analysis = api.ablate(
            checkpoint,
            kinds=None if kinds is None else kinds.split(","),
            pairs=pairs,
            gates=pairs_wanted,
            frozen_at=frozen_at,
            data=data,
            noise_levels=noise_levels,
            samples=samples,
            batch_size=batch_size,
            objective=objective,
            heads=heads,
            weights=weights,
            seed=seed,
            device=device,
            dtype=dtype,
            out=folder,
            resume=resume,
            on_cells=tell,
        )
    effects.show(analysis, folder, as_json=as_json)


def _pair(text: str) -> tuple[int, int]:
    from dar_probe.errors import UsageError

    reader, _, source = text.partition(":")
    if not (reader.isdecimal() and source.isdecimal()):
        raise UsageError(f"{text!r} is no gate", hint="reader:source, such as --gate 57:0")
    return int(reader), int(source)
