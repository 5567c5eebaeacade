"""``dar-probe train``: makes the checkpoints that the probe inspects."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dar_probe.cli.shared import options, panels, startup, typer_command


@dataclass(frozen=True)
class Setting:
    """A field of ``TrainSettings`` that is an option too; left out, it is as in the config.

    Attributes:
        type: of its value.
        help: what the option's help says, or a function that tells it when help is asked for.
        metavar: what stands for its value.
        panel: of the help.
        default: what the help says where the field's own default says little.
        names: of the option, where they do not follow from the field's name.
        complete: offers values to a shell.
    """

    type: type
    help: str | Callable[[], str]
    metavar: str = "NAME"
    panel: str = panels.TRAINING
    default: str = ""
    names: tuple[str, ...] = ()
    complete: Callable[[str], list[str]] | None = None


def _schemes() -> str:
    from dar_probe.routing import schemes

    *names, last = schemes.known()
    return f"How sublayers share results: {', '.join(names)} or {last}."


def _for(option: str, text: str) -> Callable[[], str]:
    def tell() -> str:
        from dar_probe.routing import schemes

        return f"For {schemes.takers(option)}: {text}."

    return tell


def _complete_routing(incomplete: str) -> list[str]:
    from dar_probe.routing import schemes

    return [name for name in schemes.known() if name.startswith(incomplete)]


SETTINGS = {
    "routing": Setting(str, _schemes, panel=panels.MODEL, complete=_complete_routing),
    "query": Setting(
        str, _for("query", "static, static+t or dynamic"), panel=panels.MODEL,
        complete=options.one_of("static", "static+t", "dynamic"),
    ),
    "chunk_size": Setting(
        int, _for("chunk_size", "number of sublayers in a chunk"), "N", panels.MODEL
    ),
    "streams": Setting(int, _for("streams", "number of parallel streams"), "N", panels.MODEL),
    "depth": Setting(int, "Number of blocks.", "N", panels.MODEL),
    "width": Setting(int, "Features of a token.", "N", panels.MODEL),
    "heads": Setting(int, "Attention heads.", "N", panels.MODEL, "width/32, at least 1"),
    "patch": Setting(int, "Side of a patch.", "N", panels.MODEL),
    "init_from": Setting(
        str, "Start from the weights of this checkpoint, whatever its routing.", "CHECKPOINT",
        panels.MODEL, "random weights",
    ),
    "data": Setting(str, "digits, images:DIR or latents:PATH.", "DATA", panels.GRID),
    "batch_size": Setting(int, "Samples in a step.", "N", panels.GRID),
    "seed": Setting(int, "Random seed for weights, batches, noise and labels.", "N", panels.GRID),
    "steps": Setting(int, "Optimiser steps.", "N"),
    "lr": Setting(float, "Learning rate of AdamW.", "X"),
    "objective": Setting(str, "The clock: sit (t=0 is noise) or repa (t=1 is noise)."),
    "path": Setting(str, "From data to noise: linear, gvp or vp, as in SiT."),
    "prediction": Setting(str, "What the model predicts: velocity, noise or score."),
    "time_sampling": Setting(str, "How noise levels are drawn: uniform or logit-normal."),
    "autocast": Setting(str, "Precision of the forward: none or bf16."),
    "compile": Setting(
        bool, "Train the compiled model.", default="no-compile", names=("--compile/--no-compile",)
    ),
    "probe_every": Setting(
        int, "Steps from one diagnosis to the next, written to trajectory.nc; 0: none.", "N",
        panels.OUTPUT,
    ),
}  # fmt: skip


class Command(typer_command.Command):
    """The command; it looks schemes and defaults up only where somebody asks for help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Complete the texts and the defaults of the options, and show them."""
        from dar_probe.training.settings import TrainSettings

        defaults = TrainSettings()
        for parameter in self.params:
            option: Any = parameter
            setting = SETTINGS.get(str(option.name))
            if setting is None:
                continue
            option.show_default = setting.default or str(getattr(defaults, option.name))
            if callable(setting.help):
                option.help = setting.help()
        super().format_help(ctx, formatter)


def train(
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of the run.",
            metavar="DIR",
            show_default=False,
            rich_help_panel=panels.OUTPUT,
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            help="A TOML file of settings; flags win over it.", metavar="FILE", show_default="none"
        ),
    ] = None,
    device: options.Device = "auto",
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard",
            help="Also write scalars to OUT/tensorboard.",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue a run that was cut off.", rich_help_panel=panels.OUTPUT
        ),
    ] = False,
    **settings: Any,
) -> None:
    """Train a model on the digits, images or latents; checkpoints in the official layout.

    Every setting of a run can also stand in a TOML file (--config), under its flag's name with
    underscores; dilation, period, accumulate, ema, warmup, clip, label_dropout, weight_decay,
    learn_sigma, qk_norm, routing_lr, zero_time, time_mean, time_std, repa_depth, repa_weight,
    repa_encoder, repa_width, validate_every, checkpoint_every, validation_samples, probe_samples
    and probe_levels can stand only there.

    Example: dar-probe train --routing dar --query static+t --steps 2000 --out runs/dar
    """
    with startup.imports():
        from dar_probe.cli.shared import terminal
        from dar_probe.runtime.device import find_device
        from dar_probe.training import loop
        from dar_probe.training.gathering import gather

    place = str(find_device(device))
    wanted = gather({name: v for name, v in settings.items() if v is not None}, config)
    with terminal.progress("training", "steps") as tell:

        def on_step(step: loop.Progress) -> None:
            tell(step.step, step.steps, f"loss {step.loss:.4f}")

        last = loop.train(
            wanted, out, resume=resume, device=place, tensorboard=tensorboard,
            on_start=_say_origin, on_notice=terminal.say, on_step=on_step,
        )  # fmt: skip
    terminal.say(f"Checkpoint  {last}")
    terminal.say(f"Losses      {out / 'metrics.csv'}")
    if wanted.probe_every:
        terminal.say(f"Trajectory  {out / 'trajectory.nc'}")


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command one option for each of ``SETTINGS``, after its first parameter."""
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                setting.type | None,
                typer.Option(
                    *setting.names,
                    help=None if callable(setting.help) else setting.help,
                    metavar=setting.metavar,
                    rich_help_panel=setting.panel,
                    autocompletion=setting.complete,
                ),
            ],
        )
        for name, setting in SETTINGS.items()
    ]
    signature = inspect.signature(command)
    first, *others, _ = (
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in signature.parameters.values()
    )
    parameters = [first, *added, *others]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
    return command


_with_settings(train)


def _say_origin(origin: dict[str, Any]) -> None:
    from dar_probe.cli.shared import terminal

    if origin:
        name, distance = origin["name"], origin["distance"]
        terminal.say(
            f"Started from {name}; outputs differed from its by {distance:.2g} of their size"
        )
