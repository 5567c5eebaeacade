"""``dar-probe train``: makes the checkpoints that the probe inspects."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dar_probe.cli.shared import startup


@dataclass(frozen=True)
class Setting:
    """A field of ``TrainConfig`` that is an option too; left out, it is as in the config.

    Attributes:
        type: of its value.
        help: what the option's help says, or a function that tells it when help is asked for.
        names: of the option, where they do not follow from the field's name.
    """

    type: type
    help: str | Callable[[], str]
    names: tuple[str, ...] = ()


def _schemes() -> str:
    from dar_probe.routing import schemes

    *names, last = schemes.known()
    return f"How sublayers share results: {', '.join(names)} or {last}."


def _for(option: str, text: str) -> Callable[[], str]:
    def tell() -> str:
        from dar_probe.routing import schemes

        return f"For {schemes.takers(option)}: {text}."

    return tell


SETTINGS = {
    "routing": Setting(str, _schemes),
    "query": Setting(str, _for("query", "static, static+t or dynamic")),
    "chunk_size": Setting(int, _for("chunk_size", "number of sublayers in a chunk")),
    "streams": Setting(int, _for("streams", "number of parallel streams")),
    "depth": Setting(int, "Number of blocks."),
    "width": Setting(int, "Features of a token."),
    "heads": Setting(int, "Attention heads; default width/32, at least 1."),
    "patch": Setting(int, "Side of a patch."),
    "steps": Setting(int, "Optimiser steps."),
    "batch_size": Setting(int, "Samples in a step."),
    "lr": Setting(float, "Learning rate of AdamW."),
    "seed": Setting(int, "Random seed for weights, batches, noise and labels."),
    "data": Setting(str, "digits, images:DIR or latents:FILE."),
    "objective": Setting(str, "The clock: sit (t=0 is noise) or repa (t=1 is noise)."),
    "path": Setting(str, "From data to noise: linear, gvp or vp, as in SiT."),
    "prediction": Setting(str, "What the model predicts: velocity, noise or score."),
    "time_sampling": Setting(str, "How noise levels are drawn: uniform or logit-normal."),
    "init_from": Setting(str, "Start from the weights of this checkpoint, whatever its routing."),
    "probe_every": Setting(
        int, "Steps from one diagnosis to the next, written to trajectory.nc; 0: none."
    ),
    "autocast": Setting(str, "Precision of the forward: none or bf16."),
    "compile": Setting(bool, "Train the compiled model.", ("--compile/--no-compile",)),
}


class Command(TyperCommand):
    """The command; it looks the routing schemes up only where somebody asks for help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Complete the texts of the options, and show them."""
        for parameter in self.params:
            setting = SETTINGS.get(str(parameter.name))
            if setting and callable(setting.help):
                parameter.help = setting.help()  # type: ignore[attr-defined]  # all are options
        super().format_help(ctx, formatter)


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option(help="A TOML file of settings; flags win over it.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write scalars to OUT/tensorboard.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run that was cut off.")
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
        from dar_probe.training.settings import gather

    place = str(find_device(device))
    wanted = gather({name: v for name, v in settings.items() if v is not None}, config)
    with terminal.progress("training", "steps") as tell:

        def on_step(step: loop.Progress) -> None:
            tell(step.step, step.steps, f"loss {step.loss:.4f}")

        last = loop.train(
            wanted, out, resume=resume, device=place, tensorboard=tensorboard,
            on_start=_say_origin, on_step=on_step,
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
                typer.Option(*setting.names, help=None if callable(setting.help) else setting.help),
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
