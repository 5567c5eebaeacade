"""``dar-probe ablate``: real interventions beside gradients."""

from pathlib import Path
from typing import Annotated

import typer

from dar_probe.cli.shared import options

DIGITS = 9  # of the number of a reader or a source


def ablate(
    checkpoint: options.Checkpoint,
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
        typer.Option(
            help="Noise level (nearest) whose weights frozen routers take; default: the middle."
        ),
    ] = None,
    data: options.Data = None,
    noise_levels: Annotated[
        str, typer.Option(help="A count, or levels from 0 (data) to 1 (noise).")
    ] = "5",
    samples: Annotated[int, typer.Option(help="How many samples.", min=1)] = 16,
    batch_size: options.BatchSize = None,
    objective: options.Objective = None,
    heads: options.Heads = None,
    family: options.Family = None,
    weights: options.Weights = "auto",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    text: options.Text = None,
    engine: options.Engine = "hooks",
    resume: options.Resume = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every effect.")] = False,
) -> None:
    """Set gates to zero, skip blocks, replace routers' weights: does the loss do as predicted?

    Every intervention is one more forward of all samples at all noise levels. Gates are named as
    reader:source; reader 1 is the first sublayer, source 0 the embedding.

    Example: dar-probe ablate fixtures/digits-residual.pt --kinds source,block --samples 8
    """
    from dar_probe.cli.shared import intervention_table, terminal

    options.check_first(checkpoint)
    pairs_wanted = [_pair(text) for text in gate or []]
    from dar_probe import api
    from dar_probe.checkpoints.diffusers_folder import name_of

    folder = out or Path("dar-probe-out") / f"{name_of(checkpoint)}-ablation"
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
            family=family,
            weights=weights,
            seed=seed,
            device=device,
            dtype=dtype,
            text=text,
            engine=engine,
            out=folder,
            resume=resume,
            on_cells=tell,
        )
    intervention_table.show(analysis, folder, as_json=as_json)


def _pair(text: str) -> tuple[int, int]:
    from dar_probe.errors import UsageError
    from dar_probe.files.kinds import quote

    reader, _, source = text.partition(":")
    if not all(number.isdecimal() and len(number) <= DIGITS for number in (reader, source)):
        raise UsageError(f"{quote(text)} is no gate", hint="reader:source, such as --gate 57:0")
    return int(reader), int(source)
