"""A checkpoint turned into a model: read, identified, checked, built."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from dar_probe import checkpoints, objective
from dar_probe.checkpoints.family import Identified, identify
from dar_probe.checkpoints.reader import Checkpoint, check_finite
from dar_probe.errors import UsageError
from dar_probe.models.sit import SiT, SiTConfig
from dar_probe.subjects import sit

Weights = Literal["auto", "ema", "model"]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A checkpoint turned into a model, with what was read and what was assumed."""

    checkpoint: Checkpoint
    identified: Identified
    model: SiT
    objective: objective.Objective
    assumptions: list[str]


def load(
    path: str | Path,
    *,
    weights: str = "auto",
    heads: int | None = None,
    objective_name: str | None = None,
) -> Loaded:
    """Read a checkpoint and build its model on the CPU, in eval mode.

    Raises:
        CheckpointError: the file is refused or of no known layout.
        ProbeError: its weights hold NaN or Inf.
        UsageError: an option does not fit.
    """
    if weights not in ("auto", "ema", "model"):
        raise UsageError(f"unknown weights {weights!r}", hint="--weights takes auto, ema or model")
    checkpoint = checkpoints.read(path, weights=cast(Weights, weights))
    found = identify(checkpoint, heads=heads)
    check_finite(checkpoint.state)
    config = SiTConfig(
        depth=found.depth,
        width=found.width,
        heads=found.heads,
        patch=found.patch,
        in_channels=found.in_channels,
        input_size=found.input_size,
        num_classes=found.num_classes,
        null_class=found.class_dropout,
        mlp_ratio=found.mlp_ratio,
        learn_sigma=found.learn_sigma,
        qk_norm=found.qk_norm,
        projectors=tuple(found.projectors),
        **found.routing,
    )
    chosen, assumption = _choose_objective(checkpoint, found, objective_name)
    return Loaded(
        checkpoint=checkpoint,
        identified=found,
        model=sit.build(config, checkpoint.state),
        objective=chosen,
        assumptions=[*found.assumptions, *assumption],
    )


def _choose_objective(
    checkpoint: Checkpoint, found: Identified, name: str | None
) -> tuple[objective.Objective, list[str]]:
    if name is not None:
        return objective.get(name), [f"objective {name!r}, as asked for"]
    if found.family == "dar-probe":
        return objective.get(str(checkpoint.args.get("objective", "sit"))), []
    return objective.get(found.family), []
