"""Walks noise levels x samples in mixed batches: one forward and one backward measure all."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dar_probe.errors import ProbeError
from dar_probe.probe import gates, statistics
from dar_probe.probe.recorder import Recorder, untouched
from dar_probe.subjects.entrance import entrance, with_grad
from dar_probe.subjects.subject import Subject

Arrays = dict[str, np.ndarray]


class Batch(Protocol):
    """Makes a model's inputs: a pure function of each (sample id, noise level)."""

    def __call__(
        self, sample_ids: Tensor, noise_level: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) for ids (N,) and levels (N,)."""


class Loss(Protocol):
    """Judges a model's output, sample by sample."""

    def __call__(self, output: Any, sample_ids: Tensor, noise_level: Tensor) -> Tensor:
        """Return the loss (N,)."""


class Shards(Protocol):
    """Keeps the finished part of a walk; see ``dar_probe.store``."""

    def load(self, index: int) -> Arrays | None:
        """Return shard ``index`` if it is there and whole."""

    def save(self, index: int, arrays: Arrays) -> None:
        """Keep shard ``index``."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is walked: every sample at every noise level.

    Attributes:
        levels: noise levels, rising.
        ids: sample ids.
        batch_size: cells of the grid in one forward.
    """

    levels: tuple[float, ...]
    ids: tuple[int, ...]
    batch_size: int

    @property
    def cells(self) -> int:
        """Number of (level, sample) pairs."""
        return len(self.levels) * len(self.ids)

    def chunks(self) -> Iterator[tuple[int, slice]]:
        """Number and cells of every batch; cell c is level c // samples, sample c % samples."""
        for index, start in enumerate(range(0, self.cells, self.batch_size)):
            yield index, slice(start, min(start + self.batch_size, self.cells))


def walk(
    subject: Subject,
    grid: Grid,
    batch: Batch,
    loss: Loss,
    *,
    shards: Shards | None = None,
    on_cells: Callable[[int], None] | None = None,
) -> Arrays:
    """Measure every variable of the schema; arrays are (levels, samples, ...).

    Args:
        subject: the model and its sites; afterwards bit for bit as it was.
        grid: noise levels, samples and the batch size, which changes no number beyond rounding.
        batch: inputs for a mixed batch.
        loss: loss per sample.
        shards: where finished batches are kept, to continue a run that was cut off.
        on_cells: told the number of finished cells after every batch.

    Raises:
        ProbeError: loss or states are not finite, samples depend on each other, or a site did
            not fire as expected.
    """
    levels, ids = np.meshgrid(np.array(grid.levels), np.array(grid.ids), indexing="ij")
    all_levels, all_ids = torch.from_numpy(levels.ravel()), torch.from_numpy(ids.ravel())
    parts: list[Arrays] = []
    with untouched(subject.model):
        for index, cells in grid.chunks():
            part = shards.load(index) if shards else None
            if part is None:
                cell_ids, cell_levels = all_ids[cells], all_levels[cells]
                tensors = measure(subject, batch, loss, cell_ids, cell_levels)
                part = {name: value.cpu().numpy() for name, value in tensors.items()}
                if index == 0:
                    _check_independence(subject, batch, loss, cell_ids, cell_levels, part["loss"])
                if shards:
                    shards.save(index, part)
            parts.append(part)
            if on_cells:
                on_cells(cells.stop)
    shape = (len(grid.levels), len(grid.ids))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: value.reshape(*shape, *value.shape[1:]) for name, value in joined.items()}


def measure(
    subject: Subject, batch: Batch, loss: Loss, sample_ids: Tensor, noise_level: Tensor
) -> dict[str, Tensor]:
    """Return every variable of the schema for one mixed batch, (N, ...) each.

    The model must be frozen and in eval mode (``untouched``).
    """
    args, kwargs = batch(sample_ids, noise_level)
    # With frozen parameters autograd records nothing before something requires grad.
    start = nullcontext() if subject.entrance is None else entrance(subject.entrance)
    with start, Recorder(subject) as recorder:
        output = subject.model(*map(with_grad, args[:1]), *args[1:], **kwargs)
    recorder.check()
    if recorder.reads[0].ndim != 3 or len(recorder.reads[0]) != len(sample_ids):
        raise ProbeError(
            f"the stream has shape {tuple(recorder.reads[0].shape)} for {len(sample_ids)} samples",
            hint="the probe needs (N, T, D), one row a sample",
        )
    losses = loss(output, sample_ids, noise_level)
    _check_finite(losses, recorder, subject, sample_ids, noise_level)
    rows = subject.block_readers
    wanted = [*recorder.taps, *(recorder.reads[i] for i in rows)]
    if subject.routes is not None:
        wanted += recorder.writes
    found = torch.autograd.grad(losses.sum(), wanted, allow_unused=True)
    for reader, grad in zip(subject.readers, found, strict=False):
        if grad is None:
            raise ProbeError(f"the loss does not depend on what {reader.name!r} reads")
    with torch.no_grad():
        return _reduce(subject, recorder, list(found), losses.detach(), rows)


def _reduce(
    subject: Subject, recorder: Recorder, found: list[Any], losses: Tensor, rows: list[int]
) -> dict[str, Tensor]:
    readers, reads = len(subject.readers), recorder.reads
    grads, by_block = found[:readers], found[readers : readers + len(rows)]
    norms = torch.stack([statistics.token_norms(read) for read in reads])  # (R, N, T)
    read_rms = statistics.rms(norms[:-1], reads[0].shape[-1]).T
    result = statistics.block_statistics([reads[row] for row in rows], norms[rows], by_block)
    lost = torch.full_like(read_rms, math.nan)
    if subject.routes is not None:
        assert recorder.state is not None
        weights = _dense(subject.routes(recorder.state), subject.offered).to(norms.dtype)
        gate, error = gates.routed(grads, reads, recorder.writes, weights)
        result |= statistics.route_statistics(weights)
        write_norms = torch.stack([statistics.token_norms(v) for v in recorder.writes[1:]])
        write_rms = statistics.rms(write_norms, reads[0].shape[-1]).T
    else:
        gate = gates.additive(grads, reads)
        result |= statistics.plain_routes(gate)
        if rounding := recorder.rounding:
            write_rms, lost, error = rounding.result()
        else:
            write_rms, error = statistics.write_rms(reads), torch.full_like(norms, math.nan)
    offered = torch.zeros(gate.shape[1:], dtype=torch.bool, device=gate.device)
    for row, ids in enumerate(subject.offered):
        offered[row, list(ids)] = True
    for name in ("route", "route_token_std"):
        result[name] = result[name].masked_fill(~offered, math.nan)
    gate = gate.masked_fill(~offered, math.nan)
    conservation = gate.nansum(-1).abs() / gate.abs().nan_to_num().amax(-1)
    shares = torch.full_like(gate[:, 0], math.nan)
    if subject.routes is not None:
        shares = statistics.query_share(gate, recorder.writes, found[readers + len(rows) :])
    return {
        **result,
        "write_rms": write_rms,
        "write_ratio": torch.where(read_rms > 0, write_rms / read_rms, math.nan),
        "write_lost": lost,
        "gate": gate,
        "gate_conservation": conservation.masked_fill(offered.sum(1) < 2, math.nan),
        "read_residual": (error / norms).mean(-1).T,
        "query_share": shares,
        "loss": losses.to(norms.dtype),
    }


def _dense(weights: list[Tensor], offered: tuple[tuple[int, ...], ...]) -> Tensor:
    """Weights over the offered sources, (N, T, n) per reader -> (N, T, R, S), zeros elsewhere."""
    n, tokens, _ = weights[-1].shape
    dense = weights[-1].new_zeros(n, tokens, len(offered), len(offered))
    for row, ids in enumerate(offered):
        dense[:, :, row, list(ids)] = weights[row]
    return dense


def _check_finite(
    losses: Tensor, recorder: Recorder, subject: Subject, ids: Tensor, levels: Tensor
) -> None:
    if not isinstance(losses, Tensor) or losses.shape != ids.shape:
        shape = tuple(getattr(losses, "shape", ()))
        raise ProbeError(
            f"the loss has shape {shape}, expected a tensor of shape ({len(ids)},)",
            hint="the loss function must return one number per sample",
        )
    if not losses.requires_grad:
        raise ProbeError(
            "the loss does not depend on the model's states by autograd",
            hint="neither the forward nor the loss may detach them or run without gradients",
        )
    if bool(torch.isfinite(losses).all()):
        return
    bad = int(torch.nonzero(~torch.isfinite(losses))[0, 0])
    where = "the output"
    for reader, read in zip(subject.readers, recorder.reads, strict=True):
        if not bool(torch.isfinite(read).all()):
            where = f"what {reader.name!r} reads"
            break
    raise ProbeError(
        f"the loss of sample {int(ids[bad])} at noise level {float(levels[bad]):.3g} is not finite;"
        f" the first NaN or Inf is in {where}",
        hint="a wider --dtype may help if the weights are sound",
    )


def _check_independence(
    subject: Subject, batch: Batch, loss: Loss, ids: Tensor, levels: Tensor, losses: np.ndarray
) -> None:
    """The first and the last sample alone must give the losses that they have in a batch."""
    if len(ids) < 2:
        return
    exact = next(subject.model.parameters()).dtype in (torch.float32, torch.float64)
    for row in (0, len(ids) - 1):
        one = slice(row, row + 1)
        with torch.no_grad():
            args, kwargs = batch(ids[one], levels[one])
            alone = float(loss(subject.model(*args, **kwargs), ids[one], levels[one])[0])
        tolerance = 1e-3 if exact else 0.05
        if not math.isclose(alone, float(losses[row]), rel_tol=tolerance, abs_tol=1e-6):
            raise ProbeError(
                f"sample {int(ids[row])} has the loss {float(losses[row]):.6g} in a batch and "
                f"{alone:.6g} alone: the model couples samples",
                hint="batch statistics cannot be probed sample by sample; try --batch-size 1",
            )
