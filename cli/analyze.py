"""``dar-probe analyze``: a checkpoint to a dataset, a verdict, figures and a page."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dar_probe.cli.shared import config_file, options, panels, startup


def analyze(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            help="A .pt, .safetensors, .gguf or .npz file, or a diffusers folder; or several "
            "checkpoints of one training run, told apart by the last number in their names.",
            metavar="CHECKPOINT...",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the analysis.",
            metavar="DIR",
            show_default="dar-probe-out/<checkpoint, with its run where that tells but a step>",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = None,
    data: options.Data = None,
    noise_levels: Annotated[
        str | None,
        typer.Option(
            help="A count, or levels from 0 (data) to 1 (noise) such as 0.1,0.5,0.9.",
            metavar="LEVELS",
            show_default="10; 5 for a large model on a CPU",
            rich_help_panel=panels.GRID,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="How many samples.",
            metavar="N",
            show_default="64; 8 for a large model on a CPU",
            rich_help_panel=panels.GRID,
        ),
    ] = None,
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
    fail_on: Annotated[
        str | None,
        typer.Option(
            help="Exit 1 if e.g. 'inflation > 8 or redundancy > 0.97'.",
            metavar="RULE",
            show_default="exit 0 whatever the verdict",
            rich_help_panel=panels.JUDGEMENT,
        ),
    ] = None,
    name: options.Name = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Print the time, memory and disk that the analysis will need, and end there.",
            rich_help_panel=panels.GRID,
        ),
    ] = False,
    no_figures: options.NoFigures = False,
    no_report: options.NoReport = False,
    formats: options.Formats = None,
    as_json: options.Json = False,
    config: config_file.Config = None,
) -> None:
    """Show how information travels across the depth of a checkpoint, over noise levels.

    Several checkpoints give one trajectory over the training steps; the verdict is the last one's.

    Example: dar-probe analyze fixtures/digits-residual.pt --noise-levels 10 --samples 64
    """
    checkpoints = [options.check_first(checkpoint) for checkpoint in checkpoints]
    with startup.imports():
        from dar_probe.cli.shared import terminal
        from dar_probe.cli.shared.announcement import announced
        from dar_probe.cli.shared.names import formats_of
        from dar_probe.errors import ExitCode, UsageError
        from dar_probe.models.options import CheckpointOptions
        from dar_probe.probe import analyses
        from dar_probe.probe.options import GridOptions, OutputOptions

    wanted = [
        CheckpointOptions(
            path=path, weights=weights, family=family, objective=objective, heads=heads,
            device=device, dtype=dtype, text=text, name=name, adapter=adapter,
            shard=shard,
            offload=offload,
        )
        for path in checkpoints
    ]  # fmt: skip
    grid = GridOptions(
        noise_levels=noise_levels,
        samples=samples,
        batch_size=batch_size,
        seed=seed,
        data=data,
        recompute=recompute or None,
        stream=stream,
    )
    if estimate and len(wanted) > 1:
        raise UsageError(
            "--estimate is of one checkpoint",
            hint="give one of them: the others take as long, one after another",
        )
    if estimate:
        terminal.show_estimate(analyses.estimate(wanted[0], grid, engine=engine), as_json=as_json)
        return
    folder = out or Path("dar-probe-out") / _name(checkpoints, adapter)
    output = OutputOptions(
        out=folder,
        resume=resume, overwrite=overwrite, fail_on=fail_on,
        figures=not no_figures, report=not no_report,
        formats=formats_of(formats, figures=not no_figures),
    )  # fmt: skip
    with announced(
        "measuring", output,
        show=partial(
            terminal.show, checkpoint=checkpoints[-1], adapter=adapter, folder=folder
        ),
        show_json=terminal.show_json if as_json else None,
    ) as said:  # fmt: skip
        analysis = analyses.analyze(
            wanted, grid, output, engine=engine,
            on_cells=said.tell, on_verdict=said.verdict, on_file=said.tell.phase,
        )  # fmt: skip
    said.files(analysis)
    if fail_on is not None and analysis.verdict.status == "fail":
        raise typer.Exit(ExitCode.FAILED)
    if fail_on is not None and analysis.verdict.status == "not measurable":
        raise typer.Exit(ExitCode.UNMEASURABLE)


def _name(checkpoints: list[Path], adapter: Path | None) -> str:
    """Return a folder's name: the checkpoint's, or that of the run which several come from."""
    from dar_probe.checkpoints.naming import folder_name

    if len(checkpoints) == 1:
        return folder_name(checkpoints[0], adapter)
    home = Path(os.path.realpath(checkpoints[-1])).parent
    return (home.parent if home.name == "checkpoints" else home).name or "trajectory"
