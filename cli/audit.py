"""``dar-probe audit``: judge any module with a pre-norm residual stack."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dar_probe.cli.shared import config_file, options, panels, startup
from dar_probe.runtime.dtype_names import DTYPE_NAMES

if TYPE_CHECKING:
    from torch import nn

    from dar_probe.analysis import Analysis
    from dar_probe.probe.measure import Batch, Loss

Device = Annotated[
    str | None,
    typer.Option(
        help="Move the module there before it is measured: auto, cpu, cuda, ...",
        metavar="NAME",
        show_default="where it is",
        rich_help_panel=panels.MODEL,
        autocompletion=options.one_of("auto", "cpu", "cuda"),
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help=f"Measure a copy of this number type: {options.DTYPE_HELP}",
        metavar="TYPE",
        show_default="the module's own",
        rich_help_panel=panels.MODEL,
        autocompletion=options.one_of(*DTYPE_NAMES),
    ),
]
BATCH_HELP = (
    "return (module, batch) where\n"
    "  def batch(sample_ids, noise_level):\n"
    "      x = ...  # a pure function of each (id, level)\n"
    "      return (x,), {}"
)


def audit(
    factory: Annotated[
        str,
        typer.Argument(help="package.module:callable", metavar="FACTORY", show_default=False),
    ],
    shape: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="Random input of one sample, e.g. 8,64 or 16:long.",
            metavar="SHAPE",
            show_default="from the callable, or the module's config",
            rich_help_panel=panels.GRID,
        ),
    ] = None,
    noise_levels: Annotated[
        str | None,
        typer.Option(
            help="A count, or levels from 0 (data) to 1 (noise).",
            metavar="LEVELS",
            show_default="one level, 0; 5 for a module with a clock of its own",
            rich_help_panel=panels.GRID,
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(help="How many samples.", metavar="N", min=1, rich_help_panel=panels.GRID),
    ] = 8,
    batch_size: Annotated[
        int,
        typer.Option(
            help="Pairs of sample and noise level in one pass.",
            metavar="N",
            min=1,
            rich_help_panel=panels.GRID,
        ),
    ] = 8,
    recompute: options.Recompute = False,
    stream: options.Stream = "image",
    blocks: Annotated[
        str | None,
        typer.Option(
            help="Names of the blocks, e.g. 'encoder.layers.*'.",
            metavar="NAMES",
            show_default="found by watching a forward",
            rich_help_panel=panels.MODEL,
        ),
    ] = None,
    readers: Annotated[
        str | None,
        typer.Option(
            help="Names of the modules that read the stream, e.g. '*.norm*'.",
            metavar="NAMES",
            show_default="found by watching a forward",
            rich_help_panel=panels.MODEL,
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="Axes of the states between blocks: N samples, D features, others tokens; e.g. "
            "'T N D' or '(N T) D'.",
            metavar="AXES",
            show_default="found by two forwards",
            rich_help_panel=panels.MODEL,
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    train_steps: Annotated[
        int,
        typer.Option(
            help="First train a copy for so many steps, and judge the copy.",
            metavar="N",
            min=0,
            rich_help_panel=panels.TRAINING,
        ),
    ] = 0,
    lr: Annotated[
        float,
        typer.Option(
            help="Learning rate of --train-steps.", metavar="X", rich_help_panel=panels.TRAINING
        ),
    ] = 1e-3,
    seed: Annotated[
        int,
        typer.Option(
            help="Random seed of --train-steps.",
            metavar="N",
            min=0,
            rich_help_panel=panels.TRAINING,
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the analysis.",
            metavar="DIR",
            show_default="dar-probe-out/<class of the module>",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            help="A rule in place of the default judgement, e.g. 'inflation > 8'.",
            metavar="RULE",
            show_default="the limits of the three symptoms",
            rich_help_panel=panels.JUDGEMENT,
        ),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option(
            help="Also write the findings as JUnit XML to this file.",
            metavar="FILE",
            show_default="none is written",
            rich_help_panel=panels.JUDGEMENT,
        ),
    ] = None,
    name: options.Name = None,
    overwrite: options.Overwrite = False,
    no_figures: options.NoFigures = False,
    no_report: options.NoReport = False,
    formats: options.Formats = None,
    as_json: options.Json = False,
    config: config_file.Config = None,
) -> None:
    """Judge a module for PreNorm dilution; exit code 1 if the verdict fails.

    The callable returns the module, (module, batch) or (module, batch, loss). The current
    directory is on the import path. Dilution is learnt: --train-steps trains a copy on the batch
    and the loss, judges the copy, and shows what the module was before.

    Example: dar-probe audit mymodels.vit:small --input 16,64
    """
    with startup.imports():
        from dar_probe.cli.shared import terminal
        from dar_probe.cli.shared.announcement import announced
        from dar_probe.cli.shared.names import formats_of
        from dar_probe.errors import ExitCode, UsageError
        from dar_probe.files.analysis_folder import check_target
        from dar_probe.probe.inputs import random_batch
        from dar_probe.probe.options import GridOptions, ModuleOptions, OutputOptions
        from dar_probe.probe.placing import placed
        from dar_probe.probe.runner import refuse_another
        from dar_probe.results.fail_rule import parse_rule
        from dar_probe.training.audit import audit as run
        from dar_probe.training.finetune import FinetuneOptions

    rule = None if fail_on is None else parse_rule(fail_on)
    wanted_formats = formats_of(formats, figures=not no_figures)
    if out is not None:
        check_target(out)
    if junit is not None:
        _check_file(junit)
    training = None
    if train_steps:
        training = FinetuneOptions(steps=train_steps, lr=lr, batch_size=batch_size, seed=seed)
    grid = GridOptions(
        noise_levels=noise_levels, samples=samples, batch_size=batch_size,
        recompute=recompute or None, stream=stream,
    )  # fmt: skip
    module, batch, loss = _call(factory)
    how = ModuleOptions(
        batch=batch, loss=loss, blocks=blocks, readers=readers, layout=layout, name=name
    )
    module, how = placed(module, how, device=device, dtype=dtype)
    if shape is not None:
        if batch is not None:
            raise UsageError(
                "the callable brings a batch function, so that --input would say nothing",
                hint="leave --input out, or let the callable return the module alone",
            )
        how = replace(how, batch=random_batch(module, shape))
    folder = out or Path("dar-probe-out") / type(module).__name__
    output = OutputOptions(
        out=folder, figures=not no_figures, report=not no_report, formats=wanted_formats
    )
    check_target(folder)
    if not overwrite:
        count = sum(parameter.numel() for parameter in module.parameters())
        refuse_another(
            folder,
            lambda there: not there.get("checkpoint") and there["model"].get("parameters") == count,
        )
    with (
        _named(factory),
        announced(
            "measuring", output, show=_show,
            show_json=terminal.show_json if as_json else None,
        ) as said,
    ):  # fmt: skip
        analysis = run(
            module, how, grid, training, rule=rule, on_cells=said.tell,
            on_step=lambda step, steps, value: said.tell(
                step, steps, f"training, loss {value:.4f}", "steps"
            ),
        )  # fmt: skip
        said.verdict(analysis)
        analysis.save(
            folder, figures=output.figures, report=output.report, formats=output.formats,
            on_file=said.tell.phase,
        )  # fmt: skip
    if junit is not None:
        _write_junit(analysis, junit)
    said.files(analysis)
    if analysis.verdict.status == "fail":
        raise typer.Exit(ExitCode.FAILED)
    if rule is not None and analysis.verdict.status == "not measurable":
        raise typer.Exit(ExitCode.UNMEASURABLE)


def _show(analysis: "Analysis") -> None:
    from dar_probe.cli.shared import terminal

    terminal.show_sites(analysis.manifest["sites"])
    terminal.show(analysis)


@contextmanager
def _named(factory: str) -> Iterator[None]:
    """Name the callable where its module's inputs are unknown, and say how to give them."""
    from dar_probe.errors import UsageError
    from dar_probe.files.text import quote
    from dar_probe.probe.module_plan import UnknownInputsError

    try:
        yield
    except UnknownInputsError:
        raise UsageError(
            f"{quote(factory)} gave a module without inputs",
            hint=f"pass --input 8,64 (or 16:long for token ids), or {BATCH_HELP}",
        ) from None


def _check_file(path: Path) -> None:
    """Refuse a file that could not be written, before anything is measured."""
    from dar_probe.errors import UsageError
    from dar_probe.files.atomic import check_place
    from dar_probe.files.text import quote

    if os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path)):
        # A link too: /dev/stdout is one, and would become a file.
        what = "a folder" if os.path.isdir(path) else "a link, a device or a pipe"
        raise UsageError(f"{quote(path)} is {what}", hint="--junit takes a file")
    check_place(path)


def _write_junit(analysis: "Analysis", path: Path) -> None:
    from dar_probe.files.atomic import make_folder, write_atomically
    from dar_probe.reports.pages import junit

    content = junit.render(
        analysis.verdict,
        name=analysis.name,
        rule=analysis.rule.text if analysis.rule else None,
        before=analysis.before.verdict if analysis.before else None,
    )

    def write(target: Path) -> None:
        target.write_bytes(content)

    make_folder(path.parent, path)
    write_atomically(path, write)


def _call(factory: str) -> tuple["nn.Module", "Batch | None", "Loss | None"]:
    """Return what a callable makes: a module without wrappers, its batch function and its loss."""
    from torch import nn

    from dar_probe.errors import UsageError, blamed
    from dar_probe.files.text import quote
    from dar_probe.sites.unwrap import unwrap

    shown = quote(factory)
    home, _, name = factory.partition(":")
    if not home or not name:
        raise UsageError(f"{shown} is no package.module:callable", hint="e.g. mymodels.vit:small")
    sys.path.insert(0, "")
    what = "cannot be imported"

    def refuse(why: str) -> UsageError:
        return UsageError(
            f"{shown} {what}: {why}",
            hint="the current directory is on the import path; the callable takes no arguments",
        )

    with blamed(refuse), redirect_stdout(sys.stderr):  # what is printed is no part of --json
        call = getattr(importlib.import_module(home), name)
        what = "failed"
        made = call() if callable(call) and not isinstance(call, nn.Module) else call
    parts = made if isinstance(made, tuple) else (made,)
    module, batch, loss = (*parts, None, None, None)[:3]
    if not isinstance(module, nn.Module):
        raise UsageError(f"{shown} gave a {type(module).__name__}, not a torch module")
    return unwrap(module), batch, loss
