"""Whether autograd's derivative of the loss is the true one.

Code may detach what it computes, or compute it without autograd: states and loss are right then,
and every gradient is wrong in silence. The loss itself tells, changed by a step each way.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dar_probe.errors import ProbeError
from dar_probe.probe.measure import Batch, Loss, hooks, record
from dar_probe.probe.recorder import Visitor
from dar_probe.sites.subject import Subject

PRECISE = (torch.float32, torch.float64)  # in 16 bits a small step drowns in rounding
STEP = 1e-3  # of the loss, by which a step should change it
WIDEST = 0.05  # of what is read, beyond which no step goes
LEAST = 1e-5  # of the loss, below which a change is rounding in float32
SAME = 1e-6  # relative difference of the losses of two equal forwards
WRONG = 0.05  # relative difference from which the derivative is not the true one


def wrong_derivative(
    subject: Subject, batch: Batch, loss: Loss, ids: Sequence[int], level: float
) -> str:
    """Return half a sentence where autograd and the loss itself disagree; empty where they agree.

    Along its gradient, what the first sublayer reads is moved both ways, and what the loss does is
    held against the derivative, at two sizes of the step. A branch that is detached and makes
    less than ``WRONG`` of the derivative is not found. The model must be ``untouched``.

    Args:
        subject: a model in float32 or float64; of others nothing can be told.
        batch: as for ``measure``.
        loss: as for ``measure``.
        ids: of one sample.
        level: a noise level.
    """
    if next(subject.model.parameters()).dtype not in PRECISE:
        return ""
    at = torch.tensor(list(ids)), torch.full((len(ids),), level, dtype=torch.float64)
    try:
        recorded = record(subject, batch, loss, *at)
    except ProbeError:
        return ""  # the measurement itself says what is wrong
    read, gradient = recorded.recorder.reads[0].detach(), recorded.grads[0]
    slope, size = float(gradient.double().norm()), abs(float(recorded.losses.sum()))
    if not slope or read.dtype not in PRECISE:  # FSDP may cast what it gathers
        return ""
    direction = gradient / slope

    def moved(step: float) -> float:
        nudge = _Nudge(subject, step * direction)
        args, kwargs = batch(*at)
        return float(loss(hooks(nudge, args, kwargs), *at).double().sum())

    step = min(STEP * size / slope, WIDEST * float(read.double().norm()))
    with torch.no_grad():
        if step * slope < LEAST * size or abs(abs(moved(0.0)) - size) > SAME * size:
            return ""  # too small to tell, or a forward that is another each time
        true = [(moved(each) - moved(-each)) / (2 * each) for each in (step, step / 2)]
    wrong = [abs(one - slope) > WRONG * max(abs(one), slope) for one in true]
    if not all(wrong) or abs(true[0] - true[1]) > 0.5 * abs(true[1] - slope):
        return ""
    return (
        f"the loss changes by {true[1]:.3g} a step along the stream where its gradient says "
        f"{slope:.3g}: something in the blocks is detached or runs without autograd"
    )


class _Nudge(Visitor):
    """Moves what the first reader reads."""

    def __init__(self, subject: Subject, by: Tensor) -> None:
        super().__init__(subject)
        self._by = by

    def read(self, index: int, value: Tensor) -> Tensor:
        if index:
            return value
        view = self.subject.readers[0].view
        return view.put(value, view.take(value) + self._by)

    def write(self, index: int, value: Tensor) -> None: ...

    def see(self, source: int, value: Tensor) -> None: ...

    def remember(self, state: tuple[Any, ...]) -> None: ...
