"""Exponential moving average of a model's parameters."""

import torch
from torch import nn


def decay_at(step: int, decay: float) -> float:
    """Return the decay of update ``step`` (from 1): min(decay, (1 + n) / (10 + n)).

    The second term keeps the average of a short run from being mostly its initial weights.
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, *, step: int, decay: float) -> None:
    """Move every parameter of ``average`` towards ``model``, in place."""
    share = 1 - decay_at(step, decay)
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, share)
