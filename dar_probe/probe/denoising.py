"""The denoising problem of a checkpoint: inputs and loss as functions of (sample id, level)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dar_probe.diffusion import data as datasets
from dar_probe.diffusion.data import Data
from dar_probe.diffusion.objective import Objective
from dar_probe.diffusion.objectives import candidates
from dar_probe.models import offload
from dar_probe.models.loading import ByClass, Call

CHECK_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
CHECK_SAMPLES = 8
CONTRADICTION = 0.8


class Denoising:
    """Noised samples, model times, labels and the per-sample loss of one objective.

    Noise depends on (seed, sample id) alone: it is the same at every noise level.
    """

    def __init__(
        self,
        objective: Objective,
        data: Data,
        *,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        call: Call | None = None,
    ) -> None:
        self.objective = objective
        self.call = call or ByClass()
        self.device, self.dtype = device, dtype
        self._row = {int(i): row for row, i in enumerate(data.ids)}
        self._x = data.latents
        self._y = data.labels
        self._noise = datasets.noise(data.ids, data.latents.shape[1:], seed=seed)

    def batch(
        self, sample_ids: Tensor, noise_level: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the model's inputs at x_s (N, C, h, w), its own time (N,) and labels (N,)."""
        x, noise, s, y = self._rows(sample_ids, noise_level)
        x_s = self.objective.interpolate(x, noise, s)
        return self.call.inputs(x_s, self.objective.model_time(s), sample_ids, y)

    def loss(self, output: Any, sample_ids: Tensor, noise_level: Tensor) -> Tensor:
        """Return the mean squared error (N,) of each sample, in float32 at least."""
        return self.error(self.call.prediction(output), sample_ids, noise_level)

    def error(self, prediction: Tensor, sample_ids: Tensor, noise_level: Tensor) -> Tensor:
        """Return the same of a prediction (N, C, h, w)."""
        x, noise, s, _ = self._rows(sample_ids, noise_level)
        return self.objective.loss(prediction, x, noise, s)

    def _rows(
        self, sample_ids: Tensor, noise_level: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = [self._row[int(i)] for i in sample_ids]
        return (
            self._x[rows].to(self.device, self.dtype),
            self._noise[rows].to(self.device, self.dtype),
            # A clock in half precision would misstate the noise level.
            noise_level.to(self.device, torch.promote_types(self.dtype, torch.float32)),
            self._y[rows].to(self.device),
        )


@torch.no_grad()
def contradiction(
    model: nn.Module,
    assumed: Denoising,
    data: Data,
    *,
    seed: int,
    rivals: Mapping[str, nn.Module] | None = None,
) -> str | None:
    """Compare the losses of the candidates at some levels; say so if another one fits clearly.

    A wrong clock gives plausible wrong numbers, and nothing in a file tells which one is right.
    Losses are relative to that of predicting zero, so that targets of different size compare.
    ``rivals`` are what the same weights may be as well, see ``Family``.
    """
    some = data.take(slice(0, CHECK_SAMPLES))
    found = {
        name: _relative_loss(
            model,
            Denoising(
                o, some, seed=seed, device=assumed.device, dtype=assumed.dtype, call=assumed.call
            ),
            some,
        )
        for name, o in candidates(assumed.objective).items()
    }
    own = assumed.objective.name
    best = min(found, key=lambda name: found[name])
    # Weights that are worse than predicting zero under every convention favour none of them.
    if best == own or not found[best] < min(1, CONTRADICTION * found[own]):
        return _rivalled(found[own], rivals or {}, assumed, some)
    return (
        f"The weights contradict the assumed objective {own!r}: its loss is {found[own]:.2f} of "
        f"predicting zero, that of {best!r} is {found[best]:.2f}. Every number below may be "
        f"wrong; run again with --objective {best}."
    )


def _rivalled(
    own: float, rivals: Mapping[str, nn.Module], problem: Denoising, data: Data
) -> str | None:
    """Say so if the loss of a rival is less than ``own``, under the same objective."""
    found = {name: _relative_loss(rival, problem, data) for name, rival in rivals.items()}
    best = min(found, key=lambda name: found[name], default="")
    if not best or not found[best] < min(1, own):
        return None
    return (
        f"The weights contradict what was assumed of them: their loss is {own:.2f} of predicting "
        f"zero, with {best} it is {found[best]:.2f}. Every number below may be wrong; save the "
        "file with the right setting in its args."
    )


def _relative_loss(model: nn.Module, problem: Denoising, data: Data) -> float:
    losses: list[float] = []
    zeros: list[float] = []
    # Where weights come for each call, one call for all levels reads them once. Two levels tell
    # clocks apart, and of a model that is larger than memory five cost more than its measurement.
    calls = [CHECK_LEVELS[1::2]] if offload.stored(model) else [(s,) for s in CHECK_LEVELS]
    for some in calls:
        levels = torch.tensor(some, dtype=torch.float64)
        ids = data.ids.repeat(len(levels))
        s = problem.objective.reached(levels.repeat_interleave(len(data)))
        args, kwargs = problem.batch(ids, s)
        output = problem.call.prediction(model(*args, **kwargs))
        for found, guess in ((losses, output), (zeros, torch.zeros_like(output))):
            errors = problem.error(guess, ids, s).reshape(len(levels), -1)
            found += [one.mean().item() for one in errors]
    return float(np.mean(losses) / np.mean(zeros))
