"""One mixed batch: one forward and one backward say everything about its samples."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dar_probe.errors import ProbeError
from dar_probe.probe import gates, statistics
from dar_probe.probe.recorder import Recorder, Together, Visitor
from dar_probe.runtime.sharded import gathered
from dar_probe.sites.autograd_entry import entering, entrance, nothing_overwritten
from dar_probe.sites.subject import Subject

SECOND = "second_"  # begins the names of what is measured of a second stream
PAIRS = ("gate", "route", "route_token_std")  # over readers and sources
Engine = Callable[[Visitor, tuple[Any, ...], dict[str, Any]], Any]
LOSS_HINT = (
    "keep one number for each sample: (output - target).square().flatten(1).mean(1), or "
    'reduction="none" and then .flatten(1).mean(1)'
)


class Batch(Protocol):
    """Makes a model's inputs: a pure function of each (sample id, noise level)."""

    def __call__(
        self, sample_ids: Tensor, noise_level: Tensor, /
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) for ids (N,) and levels (N,)."""


class Loss(Protocol):
    """Judges a model's output, sample by sample."""

    def __call__(self, output: Any, sample_ids: Tensor, noise_level: Tensor, /) -> Tensor:
        """Return the loss (N,)."""


def hooks(visitor: Visitor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the visitor's subject once with plain hooks at its sites; return the output."""
    with visitor:
        return visitor.subject.model(*args, **kwargs)


def measure(
    subject: Subject,
    batch: Batch,
    loss: Loss,
    sample_ids: Tensor,
    noise_level: Tensor,
    *,
    engine: Engine = hooks,
) -> dict[str, Tensor]:
    """Return every variable of the schema for one mixed batch, (N, ...) each.

    In place of ``decoded_level``, which is fitted on the whole walk, it holds ``pooled``
    (N, R, D): the token means of what every reader reads. Of a second stream it holds the same
    under names that begin with ``SECOND``. The model must be frozen and in eval mode
    (``untouched``).
    """
    recorded = record(subject, batch, loss, sample_ids, noise_level, engine=engine)
    with torch.no_grad():
        found = reduce(recorded)
        if recorded.second is not None:
            found |= {f"{SECOND}{name}": v for name, v in reduce(recorded.second).items()}
        return found


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One forward and one backward.

    Attributes:
        recorder: the states of the forward.
        losses: (N,).
        grads: dLoss/dh_l by each reader's branch (N, T, D), l = 1..L+1.
        by_block: dLoss/dz_k (N, T, D), k = 0..B.
        by_write: dLoss/dv_i (N, T, D), i = 0..L, under a router; else empty.
        second: the same of a second stream, if the subject has one.
    """

    recorder: Recorder
    losses: Tensor
    grads: list[Tensor]
    by_block: list[Tensor]
    by_write: list[Tensor]
    second: "Recorded | None" = None

    def weights(self) -> Tensor:
        """Return the weights w (N, T, R, S) of a router, zero where not offered."""
        subject, state = self.recorder.subject, self.recorder.state
        assert subject.routes is not None and state is not None
        with gathered(subject.model, subject.router):
            routes = subject.routes(state)
        return statistics.wide(_dense(routes, subject.offered, like=self.recorder.writes[0]))


@nothing_overwritten()
def record(
    subject: Subject,
    batch: Batch,
    loss: Loss,
    sample_ids: Tensor,
    noise_level: Tensor,
    *,
    engine: Engine = hooks,
) -> Recorded:
    """Run one mixed batch forward and, to its states alone, backward.

    Raises:
        ProbeError: see ``walk``.
    """
    args, kwargs = batch(sample_ids, noise_level)
    # With frozen parameters autograd records nothing before something requires grad.
    subjects = [subject] if subject.second is None else [subject, subject.second]
    tapped: dict[int, tuple[Tensor, Tensor]] = {}
    recorders = [Recorder(one, tapped if subject.second else None) for one in subjects]
    recorder = recorders[0]
    with ExitStack() as stack:
        for one in subjects:
            if one.entrance is not None:
                stack.enter_context(entrance(one.entrance, first=subject.sharded))
        visitor = recorder if subject.second is None else Together(recorders)
        output = engine(visitor, *entering(args, kwargs))
    for watching in recorders:
        watching.check()
    if recorder.reads[0].ndim != 3 or len(recorder.reads[0]) != len(sample_ids):
        raise ProbeError(
            f"the stream has shape {tuple(recorder.reads[0].shape)} for {len(sample_ids)} samples",
            hint="the probe needs (N, T, D), one row a sample",
        )
    losses = loss(output, sample_ids, noise_level)
    _check_finite(losses, recorder, subject, sample_ids, noise_level)
    wanted = [_wanted(one) for one in recorders]
    found = list(torch.autograd.grad(losses.sum(), sum(wanted, []), allow_unused=True))
    parts = [
        _recorded(one, losses.detach(), [found.pop(0) for _ in own])
        for one, own in zip(recorders, wanted, strict=True)
    ]
    return parts[0] if len(parts) == 1 else replace(parts[0], second=parts[1])


def _wanted(recorder: Recorder) -> list[Tensor]:
    """Return what gradients are taken of: taps, states between blocks, writes of a router."""
    subject = recorder.subject
    blocks = [recorder.origins[row] for row in subject.block_readers]
    writes = recorder.writes if subject.routes is not None else ()
    return [*recorder.taps, *blocks, *writes]


def _recorded(recorder: Recorder, losses: Tensor, found: list[Tensor | None]) -> Recorded:
    """Return one stream of a pass, with the gradients of what ``_wanted`` names.

    Raises:
        ProbeError: the loss does not depend on what a reader reads.
    """
    subject, rows = recorder.subject, recorder.subject.block_readers
    for reader, grad in zip(subject.readers, found, strict=False):
        if grad is None:
            raise ProbeError(
                f"the loss does not depend on what {reader.name!r} reads",
                hint="name what reads the stream with --readers",
            )
    views = [reader.view for reader in subject.readers]
    readers, states = len(views), len(views) + len(rows)
    grads = cast("list[Tensor]", found)
    by_block = zip(rows, grads[readers:states], strict=True)
    return Recorded(
        recorder=recorder,
        losses=losses,
        grads=[view.take(grad) for view, grad in zip(views, grads, strict=False)],
        by_block=[views[row].take(grad) for row, grad in by_block],
        by_write=grads[states:],
    )


def reduce(recorded: Recorded) -> dict[str, Tensor]:
    """Return what ``measure`` does, from one recorded pass; call it under ``no_grad``."""
    subject = recorded.recorder.subject
    parts = [_stage(recorded, readers, sources) for readers, sources in subject.stages]
    widest = max(part["pooled"].shape[-1] for part in parts)
    for part in parts:
        part["pooled"] = F.pad(part["pooled"], (0, widest - part["pooled"].shape[-1]))
    result = {
        name: torch.cat([part[name] for part in parts], 1) for name in parts[0] if name not in PAIRS
    }
    for name in PAIRS:
        like = parts[0][name]
        whole = like.new_full((len(like), *subject.offered_mask.shape), math.nan)
        for part, (readers, sources) in zip(parts, subject.stages, strict=True):
            whole[:, readers, sources] = part[name]
        result[name] = whole
    return result | {"loss": recorded.losses.to(result["rms"].dtype)}


def _stage(recorded: Recorded, readers: slice, sources: slice) -> dict[str, Tensor]:
    """Reduce one stretch of depth that has one stream of one shape."""
    recorder, subject = recorded.recorder, recorded.recorder.subject
    reads = recorder.reads[readers]
    width = reads[0].shape[-1]
    rows = {row: k for k, row in enumerate(subject.block_readers)}
    rows = {row: k for row, k in rows.items() if readers.start <= row < readers.stop}
    norms = torch.stack([statistics.token_norms(read) for read in reads])  # (R, N, T)
    result = statistics.block_statistics(
        [recorder.reads[row] for row in rows],
        norms[[row - readers.start for row in rows]],
        [recorded.by_block[k] for k in rows.values()],
    )
    written = [i for i, source in enumerate(subject.sources[sources]) if source.written]
    read_rms = statistics.rms(norms[: len(written)], width).T
    offered = subject.offered_mask[readers, sources].to(norms.device)
    error = torch.full_like(norms, math.nan)
    write_rms, lost = torch.full_like(read_rms, math.nan), torch.full_like(read_rms, math.nan)
    gate = norms.new_full((norms.shape[1], *offered.shape), math.nan)
    shares = torch.full_like(gate[:, 0], math.nan)
    routes = statistics.plain_routes(offered, like=gate)
    if subject.routes is not None:
        weights = recorded.weights()
        gate, error = gates.routed(recorded.grads, reads, recorder.writes, weights)
        routes = statistics.route_statistics(weights)
        write_norms = [statistics.token_norms(write) for write in recorder.writes[1:]]
        write_rms = statistics.rms(torch.stack(write_norms, 1), width)
        shares = statistics.query_share(gate, recorder.writes, recorded.by_write)
    elif subject.granularity == "sublayer":
        states = recorder.states()[sources]
        last = [i - sources.start for i in subject.last_source[readers]]
        gate = gates.additive(recorded.grads[readers], states, last)
        if rounding := recorder.rounding:
            write_rms, lost, error = rounding.result()
        else:
            write_rms = statistics.write_rms(states)[:, [i - 1 for i in written]]
    pairs = {"gate": gate, **routes}
    pairs |= {name: pairs[name].masked_fill(~offered, math.nan) for name in PAIRS}
    gate = pairs["gate"]
    conservation = gate.nansum(-1).abs() / gate.abs().nan_to_num().amax(-1)
    normed = torch.tensor([r.normed for r in subject.readers[readers]], device=gate.device)
    return {
        **result,
        **pairs,
        "write_rms": write_rms,
        "write_ratio": torch.where(read_rms > 0, write_rms / read_rms, math.nan),
        "write_lost": lost,
        "gate_conservation": conservation.masked_fill(~normed | (offered.sum(1) < 2), math.nan),
        "read_residual": (error / norms).mean(-1).T,
        "query_share": shares,
        "pooled": torch.stack([statistics.wide(read).mean(1) for read in reads], 1),
    }


def check_losses(losses: Any, sample_ids: Tensor) -> None:
    """Refuse a loss that is not (N,).

    Raises:
        ProbeError: naming what it is.
    """
    count = len(sample_ids)
    if isinstance(losses, Tensor) and losses.shape == sample_ids.shape:
        return
    if not isinstance(losses, Tensor):
        what = f"a {type(losses).__name__}"
    elif losses.numel() == 1:
        what = "one number for all samples"
    else:
        what = f"a tensor of shape {tuple(losses.shape)}"
    raise ProbeError(
        f"the loss function returned {what}, expected one of shape ({count},)", hint=LOSS_HINT
    )


def _dense(weights: list[Tensor], offered: tuple[tuple[int, ...], ...], like: Tensor) -> Tensor:
    """Weights over the offered sources -> (N, T, R, S), zeros elsewhere.

    Each reader's are (N, T, n), or (n,) where they are the same everywhere; ``like`` (N, T, D).
    """
    dense = like.new_zeros(*like.shape[:2], len(offered), len(offered))
    for row, ids in enumerate(offered):
        dense[:, :, row, list(ids)] = weights[row]
    return dense


def _check_finite(
    losses: Tensor, recorder: Recorder, subject: Subject, ids: Tensor, levels: Tensor
) -> None:
    check_losses(losses, ids)
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
