"""Two independent measurements of every write must agree before a checkpoint is probed."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dar_probe.errors import CheckpointError, ProbeError, blamed
from dar_probe.probe.recorder import Recorder
from dar_probe.sites.hooks import hooked
from dar_probe.sites.subject import Branch, Subject
from dar_probe.sites.unwrap import does_not_run

AGREE = 1e-4  # of a write; float32 agrees to 1e-6
ROUNDINGS = 4  # of the stream, in units of its type's precision: differences of reads hold them


def prove(
    subject: Subject, args: tuple[Any, ...], kwargs: dict[str, Any], shown: str
) -> tuple[str, ...]:
    """Compare what each branch returns, times its gate, with the difference of reads around it.

    A family's file names sites from outside; a site that is named wrongly, or a term that it
    leaves out, would give plausible wrong numbers. Sublayers without named branches are left out.

    Args:
        subject: the model, frozen and in eval mode, and its sites.
        args: inputs of a sample or more.
        kwargs: inputs by name.
        shown: the file, for the message.

    Returns:
        A sentence where rounding hides what was to be compared.

    Raises:
        CheckpointError: a write is not what its branch returns.
        ProbeError: the model does not run, the sites do not fire as they are named, or the stream
            overflows.
    """
    unproven = 0
    found = writes(subject, args, kwargs)
    for write in found:
        if not math.isfinite(write.error + write.size + write.rounding):
            raise ProbeError(
                f"the stream of {shown} overflows {_named(write.dtype)} at {write.reader!r}",
                hint="try --dtype float64, or an earlier checkpoint: the run may have diverged",
            )
        unproven += 0 < write.size < 2 * write.rounding
        if not write.error <= AGREE * write.size + write.rounding:
            raise CheckpointError(
                f"{shown} cannot be probed: what {write.reader!r} adds to the stream differs by "
                f"{write.difference:.2g} from what its branch returns",
                hint="the file is of a variant that dar-probe does not know; audit measures it",
            )
    if not unproven:
        return ()
    return (
        f"{unproven} of {sum(s.written for s in subject.sources)} writes are too small beside the "
        f"stream to be compared in {_named(found[0].dtype)} with what their branches return: "
        "--dtype float32 does",
    )


@dataclass(frozen=True, kw_only=True)
class Write:
    """One write, measured twice.

    Attributes:
        reader: the name of the sublayer.
        size: norm of what entered the stream.
        error: norm of its difference from what the branch returns, times its gate.
        rounding: the norm up to which rounding alone explains a difference.
        dtype: of the stream.
    """

    reader: str
    size: float
    error: float
    rounding: float
    dtype: torch.dtype

    @property
    def difference(self) -> float:
        """The error over the size; infinite where a branch returns what never enters."""
        if self.size:
            return self.error / self.size
        return math.inf if self.error else 0.0


@torch.no_grad()
def writes(subject: Subject, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Write]:
    """Measure every write of named branches in two ways; the arguments are those of ``prove``.

    Raises:
        ProbeError: the model does not run, or the sites do not fire as they are named.
    """
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        outputs[module] = output

    branches = [branch for reader in subject.readers for branch in reader.branches]
    watched = {b.output for b in branches} | {b.gate for b in branches if b.gate is not None}
    with hooked() as handles:
        handles.extend(module.register_forward_hook(keep) for module in watched)
        with Recorder(subject) as recorder, blamed(does_not_run):
            subject.model(*args, **kwargs)
    recorder.check()
    written = [i for i, source in enumerate(subject.sources) if source.written]
    states = recorder.states() if subject.routes is None else []
    measured = []
    for reader, read, i in zip(subject.readers, recorder.reads, written, strict=False):
        if not reader.branches:
            continue
        found = recorder.writes[i] if subject.routes is not None else states[i] - states[i - 1]
        own = sum(reader.view.take(_output(branch, outputs)) for branch in reader.branches)
        measured.append(
            Write(
                reader=reader.name,
                size=float(found.float().norm()),
                error=float((found - own).float().norm()),
                rounding=float(ROUNDINGS * torch.finfo(read.dtype).eps * read.float().norm()),
                dtype=read.dtype,
            )
        )
    return measured


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _output(branch: Branch, outputs: dict[nn.Module, Tensor]) -> Tensor:
    output = outputs[branch.output]
    if branch.scale is not None:
        output = output * branch.scale
    if branch.gate is None:
        return output
    number, of = branch.chunk
    gate = outputs[branch.gate].chunk(of, dim=-1)[number]
    if gate.ndim == 3:  # by token
        return output * gate
    spatial = output.ndim > 2 and output.shape[1] == gate.shape[1] and output.ndim == 4
    return output * (gate[:, :, None, None] if spatial else gate[:, None])
