"""``dar-probe train``: makes the checkpoints that the probe inspects."""

from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run.", show_default=False)],
    routing: Annotated[
        str | None,
        typer.Option(
            help="residual, highway, rezero, layerscale, deepnorm, siamesenorm, uvit, hunyuan, "
            "densenet, denseformer, hc-static, hc-dynamic, mhc, mhc-lite, attnres, attnres-block, "
            "delta-attnres, dar, dar-uvit, sigmoid or time-mix."
        ),
    ] = None,
    query: Annotated[
        str | None, typer.Option(help="Of dar, dar-uvit, sigmoid: static, static+t or dynamic.")
    ] = None,
    chunk_size: Annotated[
        int | None,
        typer.Option(help="Of all dar, sigmoid, time-mix, attnres-block: sublayers in a chunk."),
    ] = None,
    streams: Annotated[
        int | None, typer.Option(help="Of hc-static, hc-dynamic, mhc, mhc-lite.")
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Blocks.")] = None,
    width: Annotated[int | None, typer.Option(help="Features.")] = None,
    heads: Annotated[int | None, typer.Option(help="Default width/32, at least 1.")] = None,
    patch: Annotated[int | None, typer.Option(help="Side of a patch.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples in a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of AdamW.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    data: Annotated[str | None, typer.Option(help="digits, images:DIR or latents:FILE.")] = None,
    objective: Annotated[
        str | None, typer.Option(help="sit (t=0 is noise) or repa (t=1 is noise).")
    ] = None,
    path: Annotated[str | None, typer.Option(help="linear, gvp or vp, as in SiT.")] = None,
    prediction: Annotated[str | None, typer.Option(help="velocity, noise or score.")] = None,
    time_sampling: Annotated[
        str | None, typer.Option(help="Of noise levels: uniform or logit-normal.")
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(help="A checkpoint whose weights to start from, whatever its routing."),
    ] = None,
    probe_every: Annotated[
        int | None,
        typer.Option(help="Steps from one diagnosis to the next, into trajectory.nc; 0: none."),
    ] = None,
    autocast: Annotated[str | None, typer.Option(help="none or bf16.")] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Train the compiled model.")
    ] = None,
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
) -> None:
    """Train a model on the digits, images or latents; checkpoints in the official layout.

    Every setting of a run can also stand in a TOML file (--config), under its flag's name with
    underscores; accumulate, ema, warmup, clip, label_dropout, weight_decay, learn_sigma, qk_norm,
    routing_lr, zero_time, time_mean, time_std, repa_depth, repa_weight, repa_encoder, repa_width,
    validate_every, checkpoint_every, validation_samples, probe_samples and probe_levels can stand
    only there.

    Example: dar-probe train --routing dar --query static+t --steps 2000 --out runs/dar
    """
    flags: dict[str, Any] = {
        name: value
        for name, value in locals().items()
        if value is not None and name not in ("out", "config", "device", "tensorboard", "resume")
    }
    from dar_probe.adapt import warm_start
    from dar_probe.cli.shared import terminal
    from dar_probe.runtime.device import find_device
    from dar_probe.training import config as configs
    from dar_probe.training import loop

    place = str(find_device(device))
    if config:
        flags = {**configs.read_toml(config), **flags}
    if isinstance(flags.get("init_from"), str) and flags["init_from"]:
        flags = {**warm_start.sizes(flags["init_from"]), **flags}
    settings = configs.from_dict(flags)
    with terminal.progress("training", "steps") as tell:

        def on_step(step: loop.Progress) -> None:
            tell(step.step, step.steps, f"loss {step.loss:.4f}")

        last = loop.train(
            settings, out, resume=resume, device=place, tensorboard=tensorboard,
            on_start=_say_origin, on_step=on_step,
        )  # fmt: skip
    terminal.say(f"Checkpoint  {last}")
    terminal.say(f"Losses      {out / 'metrics.csv'}")
    if settings.probe_every:
        terminal.say(f"Trajectory  {out / 'trajectory.nc'}")


def _say_origin(origin: dict[str, Any]) -> None:
    from dar_probe.cli.shared import terminal

    if origin:
        name, distance = origin["name"], origin["distance"]
        terminal.say(
            f"Started from {name}; outputs differed from its by {distance:.2g} of their size"
        )
