"""Draws samples from a model: deterministic steps from pure noise to data."""

import numpy as np
import torch
from torch import Tensor, nn

from dar_probe.objective import Objective, column
from dar_probe.train import data as datasets


@torch.no_grad()
def draw(
    model: nn.Module,
    objective: Objective,
    labels: Tensor,
    shape: tuple[int, ...],
    *,
    seed: int,
    steps: int = 25,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 16,
) -> Tensor:
    """Return samples (N, *shape) for ``labels`` (N,), float32 on the CPU.

    Each step splits x_s into the data and the noise that the prediction implies and mixes them
    anew at the next level: Euler's method for flows, DDIM (arXiv 2010.02502) for DDPM models.
    """
    levels = objective.reached(torch.from_numpy(np.linspace(1, 0, steps + 1)))
    drawn = []
    for start in range(0, len(labels), batch_size):
        ids = torch.arange(start, min(start + batch_size, len(labels)))
        x = datasets.noise(ids, shape, seed=seed).to(device, dtype)
        y = labels[ids].to(device)
        for here, there in zip(levels[:-1], levels[1:], strict=True):
            s = here.expand(len(ids)).to(device)
            prediction = model(x, objective.model_time(s), y)
            clean, noise = objective.split(x, prediction, s)
            alpha, sigma = objective.alpha_sigma(there.expand(len(ids)).to(device))
            x = column(alpha, x) * clean + column(sigma, x) * noise
        drawn.append(x.float().cpu())
    return torch.cat(drawn)
