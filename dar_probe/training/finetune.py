"""Trains a copy of any module on its own batch and loss, for an audit before and after."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from dar_probe.errors import ProbeError, UsageError, blamed
from dar_probe.probe.measure import check_losses

if TYPE_CHECKING:
    from dar_probe.probe.measure import Batch, Loss

OnStep = Callable[[int, int, float], None]
CLIP = 1.0  # of the gradient norm, as in the bundled trainer
WARMUP = 100  # steps, likewise: without it Adam's first steps alone inflate the stream
SEEDS = 2**31


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """How a copy is trained.

    Attributes:
        steps: how many steps of AdamW, at least 1.
        lr: the learning rate after the warm-up.
        batch_size: samples in one step.
        seed: random seed for sample ids, noise levels and whatever the module draws (dropout).
    """

    steps: int
    lr: float = 1e-3
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UsageError("training takes at least 1 step and a batch of at least 1")
        if not (np.isfinite(self.lr) and self.lr > 0):
            raise UsageError(
                f"a learning rate of {self.lr:g} makes no sense", hint="e.g. --lr 1e-3"
            )
        if not 0 <= self.seed < SEEDS:
            raise UsageError(f"the seed {self.seed} is not between 0 and {SEEDS - 1}")


def train_copy(
    module: nn.Module,
    batch: "Batch",
    loss: "Loss",
    options: FinetuneOptions,
    *,
    noise_levels: Sequence[float],
    first_id: int = 0,
    on_step: OnStep | None = None,
) -> nn.Module:
    """Return a trained copy of a module; the module itself stays bit for bit as it is.

    As the bundled trainer: AdamW without weight decay, a linear warm-up over 100 steps, the
    gradient's norm clipped at 1. The loss is the mean over a batch. The copy trains in train mode,
    and is handed back in the module's modes and without gradients. Frozen parameters stay frozen.
    Compiled parts run eagerly.

    Args:
        module: without wrappers.
        batch: called with sample ids that no other step, and no other seed, has.
        loss: its mean over the samples is minimised.
        options: steps, learning rate, batch size and seed.
        noise_levels: every sample's level is drawn from these, each as likely.
        first_id: no id below it is used, so that samples below it are held out.
        on_step: called with (step, steps, loss) after every step.

    Raises:
        UsageError: nothing can be trained, or the module, its batch or its loss fails on fresh
            samples.
        ProbeError: a loss or a gradient is not finite, or no gradient reaches the copy.
    """
    steps, lr, seed, batch_size = options.steps, options.lr, options.seed, options.batch_size
    twin = _copy(module)
    free = [p for p in twin.parameters() if p.requires_grad]
    if not free:
        raise UsageError(
            "the module has no trainable parameters",
            hint="all of them are frozen (requires_grad is False), or there are none",
        )
    optimiser = torch.optim.AdamW(free, lr=lr, weight_decay=0.0)
    rng = np.random.default_rng([seed, 1])
    devices = sorted({p.device.index for p in twin.parameters() if p.device.type == "cuda"})
    with (
        torch.random.fork_rng(devices=devices),
        torch.enable_grad(),
        torch.compiler.set_stance("force_eager"),
    ):
        torch.manual_seed(seed)
        twin.train()
        for step in range(1, steps + 1):
            start = first_id + (seed * steps + step - 1) * batch_size
            ids = torch.arange(start, start + batch_size)
            levels = torch.from_numpy(rng.choice(np.asarray(noise_levels, float), batch_size))
            for group in optimiser.param_groups:
                group["lr"] = lr * min(1.0, step / WARMUP)
            value = _step(twin, batch, loss, ids, levels, free, step)
            optimiser.step()
            if on_step:
                on_step(step, steps, value)
    for own, theirs in zip(twin.modules(), module.modules(), strict=True):
        own.training = theirs.training
    for parameter in free:
        parameter.grad = None
    return twin


def _copy(module: nn.Module) -> nn.Module:
    hint = "it must not keep tensors of an earlier forward, or open files"
    with blamed(
        lambda why: UsageError(f"the module cannot be copied for training: {why}", hint=hint)
    ):
        twin = copy.deepcopy(module)
    for parameter in twin.parameters():
        parameter.grad = None  # the caller's are copied too
    return twin


def _step(
    twin: nn.Module,
    batch: "Batch",
    loss: "Loss",
    ids: Tensor,
    levels: Tensor,
    free: list[nn.Parameter],
    step: int,
) -> float:
    """Give ``free`` the clipped gradients of one batch, and return its loss."""

    def refuse(why: str) -> UsageError:
        return UsageError(
            f"the module does not train: step {step}: {why}",
            hint=f"training asks the batch function for fresh sample ids, here {int(ids[0])} to "
            f"{int(ids[-1])}; take a table's rows by id modulo its length",
        )

    with blamed(refuse):
        args, kwargs = batch(ids, levels)
        losses = loss(twin(*args, **kwargs), ids, levels)
        _check_losses(losses, ids, step)
        mean = losses.mean()
        # Not backward(): a loss that holds parts of the caller's module must not fill their grad.
        found = torch.autograd.grad(mean, free, allow_unused=True)
    if all(grad is None for grad in found):
        raise ProbeError(
            "the loss does not depend on the trainable parameters of the module's copy",
            hint="the loss must be made from the output that it is given",
        )
    for parameter, grad in zip(free, found, strict=True):
        parameter.grad = grad
    norm = float(nn.utils.clip_grad_norm_(free, CLIP))
    if not np.isfinite(norm):
        raise ProbeError(f"the gradient is not finite at step {step}", hint="try a lower --lr")
    return float(mean.detach())


def _check_losses(losses: Tensor, ids: Tensor, step: int) -> None:
    check_losses(losses, ids)
    if not bool(torch.isfinite(losses).all()):
        raise ProbeError(f"the loss is not finite at step {step}", hint="try a lower --lr")
    if not losses.requires_grad:
        raise ProbeError(
            "the loss does not depend on the module by autograd",
            hint="neither the forward nor the loss may detach it or run without gradients",
        )
