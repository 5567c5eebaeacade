"""A checkpoint turned into a model: read, identified, checked, built."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dar_probe import checkpoints, objective, subjects
from dar_probe.checkpoints.header import Header
from dar_probe.checkpoints.reader import Checkpoint, Weights, check_finite
from dar_probe.errors import UsageError
from dar_probe.objective import Objective
from dar_probe.subjects import Identified, Subject


class Call(Protocol):
    """How a model is called, and what of its output is the prediction."""

    def inputs(
        self, x: Tensor, time: Tensor, ids: Tensor, labels: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) for noised samples (N, *shape), times, ids and labels (N,)."""

    def prediction(self, output: Any) -> Tensor:
        """Return what is compared with the target, in the shape of the samples."""


class ByClass:
    """Models that are called as model(x, t, y) and return the prediction."""

    def inputs(
        self, x: Tensor, time: Tensor, ids: Tensor, labels: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return ((x, time, labels), {})."""
        return (x, time, labels), {}

    def prediction(self, output: Any) -> Tensor:
        """Return the output as it is."""
        assert isinstance(output, Tensor)
        return output


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A checkpoint turned into a model, with what was read and what was assumed."""

    checkpoint: Checkpoint
    identified: Identified
    model: nn.Module
    subject: Subject
    objective: Objective
    assumptions: list[str]
    call: Call


def load(
    path: str | Path,
    *,
    weights: str = "auto",
    heads: int | None = None,
    objective_name: str | None = None,
    family: str | None = None,
) -> Loaded:
    """Read a checkpoint and build its model on the CPU, in float32 at least and in eval mode.

    Raises:
        CheckpointError: the file is refused or of no known layout.
        ProbeError: its weights hold NaN or Inf.
        UsageError: an option does not fit.
    """
    checkpoint = checkpoints.read(path, weights=check_weights(weights))
    header = checkpoint.header
    kind = subjects.family_of(header, family)
    found = kind.identify(header, heads)
    model = blank(header, kind, found)
    check_finite(checkpoint.state)
    model.load_state_dict({k: _wide(v) for k, v in checkpoint.state.items()}, assign=True)
    make_tables(model)
    chosen, assumption = choose_objective(found, objective_name)
    subject = kind.subject(model.eval(), found)
    return Loaded(
        checkpoint=checkpoint,
        identified=found,
        model=model,
        subject=subject,
        objective=chosen,
        assumptions=[*found.assumptions, *assumption, *subject.assumptions],
        call=ByClass(),
    )


def blank(header: Header, family: subjects.Family, found: Identified) -> nn.Module:
    """Build the model without memory for weights, and hold the file to its names and shapes.

    Raises:
        CheckpointError: a weight is missing, left over, or of another shape.
    """
    with torch.device("meta"):
        model = family.build(found)
    header.compare({key: tuple(value.shape) for key, value in model.state_dict().items()})
    return model


def make_tables(model: nn.Module) -> None:
    """Let modules compute what is in no file, such as tables of positions."""
    for module in model.modules():
        make = getattr(module, "make_tables", None)
        if make is not None:
            make()


def check_weights(weights: str) -> Weights:
    """Return the choice of weights.

    Raises:
        UsageError: there is no such choice.
    """
    known: Sequence[Weights] = ("auto", "ema", "model")
    for name in known:
        if weights == name:
            return name
    raise UsageError(f"unknown weights {weights!r}", hint="--weights takes auto, ema or model")


def choose_objective(found: Identified, name: str | None) -> tuple[Objective, list[str]]:
    """Return the objective of a file, or the one asked for, and what that assumes."""
    if name is not None:
        return objective.get(name), [f"objective {name!r}, as asked for"]
    return objective.get(found.objective), []


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
