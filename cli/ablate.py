"""``dar-probe ablate``: real interventions beside gradients."""

from pathlib import Path
from typing import Annotated

import typer

from dar_probe.cli.shared import config_file, options, panels, startup

DIGITS = 9  # of the number of a reader or a source


def ablate(
    checkpoint: options.Checkpoint,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the analysis.",
            metavar="DIR",
            show_default="dar-probe-out/<checkpoint name>-ablation",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(
            help="Some of gate, source, block, uniform, frozen, with commas.",
            metavar="NAMES",
            show_default="all that the model has",
            rich_help_panel=panels.INTERVENTIONS,
        ),
    ] = None,
    pairs: Annotated[
        int,
        typer.Option(
            help="How many single gates: half the largest, half drawn at random.",
            metavar="N",
            min=0,
            rich_help_panel=panels.INTERVENTIONS,
        ),
    ] = 32,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="One more gate, reader:source such as 57:0; may be repeated.",
            metavar="R:S",
            show_default="none",
            rich_help_panel=panels.INTERVENTIONS,
        ),
    ] = None,
    frozen_at: Annotated[
        float | None,
        typer.Option(
            help="Noise level whose weights frozen routers take, nearest one.",
            metavar="LEVEL",
            show_default="the middle one",
            rich_help_panel=panels.INTERVENTIONS,
        ),
    ] = None,
    data: options.Data = None,
    noise_levels: Annotated[
        str,
        typer.Option(
            help="A count, or levels from 0 (data) to 1 (noise).",
            metavar="LEVELS",
            rich_help_panel=panels.GRID,
        ),
    ] = "5",
    samples: Annotated[
        int,
        typer.Option(help="How many samples.", metavar="N", min=1, rich_help_panel=panels.GRID),
    ] = 16,
    batch_size: options.BatchSize = None,
    recompute: options.Recompute = False,
    stream: options.Stream = "image",
    objective: options.Objective = None,
    heads: options.Heads = None,
    family: options.Family = None,
    weights: options.Weights = "auto",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    text: options.Text = None,
    adapter: options.Adapter = None,
    shard: options.Shard = False,
    offload: options.Offload = None,
    engine: options.Engine = "hooks",
    name: options.Name = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    no_figures: options.NoFigures = False,
    no_report: options.NoReport = False,
    formats: options.Formats = None,
    as_json: options.Json = False,
    config: config_file.Config = None,
) -> None:
    """Set gates to zero, skip blocks, replace routers' weights: does the loss do as predicted?

    Every intervention is one more forward of all samples at all noise levels. Gates are named as
    reader:source; reader 1 is the first sublayer, source 0 the embedding.

    Example: dar-probe ablate fixtures/digits-residual.pt --kinds source,block --samples 8
    """
    checkpoint = options.check_first(checkpoint)
    gates = tuple(_pair(text) for text in gate or ())
    with startup.imports():
        from dar_probe.checkpoints.naming import folder_name
        from dar_probe.cli.shared import intervention_table
        from dar_probe.cli.shared.announcement import announced
        from dar_probe.cli.shared.names import formats_of
        from dar_probe.models.options import CheckpointOptions
        from dar_probe.probe import analyses
        from dar_probe.probe.options import GridOptions, InterventionOptions, OutputOptions

    model = CheckpointOptions(
        path=checkpoint, weights=weights, family=family, objective=objective, heads=heads,
        device=device, dtype=dtype, text=text, name=name, adapter=adapter,
        shard=shard,
        offload=offload,
    )  # fmt: skip
    grid = GridOptions(
        noise_levels=noise_levels,
        samples=samples,
        batch_size=batch_size,
        seed=seed,
        data=data,
        recompute=recompute or None,
        stream=stream,
    )
    wanted = InterventionOptions(
        kinds=None if kinds is None else tuple(kinds.split(",")),
        pairs=pairs,
        gates=gates,
        frozen_at=frozen_at,
    )
    output = OutputOptions(
        out=out or Path("dar-probe-out") / f"{folder_name(checkpoint, adapter)}-ablation",
        resume=resume, overwrite=overwrite,
        figures=not no_figures, report=not no_report,
        formats=formats_of(formats, figures=not no_figures),
    )  # fmt: skip
    with announced(
        "intervening", output, show=intervention_table.show,
        show_json=intervention_table.show_json if as_json else None,
    ) as said:  # fmt: skip
        analysis = analyses.ablate(
            model, grid, wanted, output, engine=engine,
            on_cells=said.tell, on_verdict=said.verdict, on_file=said.tell.phase,
        )  # fmt: skip
    said.files(analysis)


def _pair(text: str) -> tuple[int, int]:
    from dar_probe.errors import UsageError
    from dar_probe.files.text import quote

    reader, _, source = text.partition(":")
    if not all(number.isdecimal() and len(number) <= DIGITS for number in (reader, source)):
        raise UsageError(f"{quote(text)} is no gate", hint="reader:source, such as --gate 57:0")
    return int(reader), int(source)
