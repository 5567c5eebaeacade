"""Paths that preserve the variance: discrete steps (DDPM, DiT) and the VP SDE."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dar_probe.diffusion.objective import Objective, column

SCHEDULES = ("linear", "scaled-linear", "cosine")
PREDICTIONS = ("eps", "v", "x0")


@dataclass(frozen=True)
class VariancePreserving(Objective):
    """A path with alpha^2 + sigma^2 = 1, so that the noise level is sigma.

    prediction "eps": the noise. "v": alpha noise - sigma data (arXiv 2202.00512, 2.4).
    "x0": the data.
    """

    prediction: str

    def target(self, x: Tensor, noise: Tensor, s: Tensor) -> Tensor:
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return x
        alpha, sigma = (column(c, x) for c in self.alpha_sigma(s))
        return alpha * noise - sigma * x

    def split(self, x_s: Tensor, prediction: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (column(c, x_s) for c in self.alpha_sigma(s))
        if self.prediction == "eps":
            return (x_s - sigma * prediction) / alpha, prediction
        if self.prediction == "x0":
            return prediction, (x_s - alpha * prediction) / sigma
        return alpha * x_s - sigma * prediction, sigma * x_s + alpha * prediction


@dataclass(frozen=True)
class DDPM(VariancePreserving):
    """Integer steps, the cleanest one called ``first``.

    A wanted noise level becomes that of the step whose sqrt(1 - alpha_bar) is nearest.
    ``alpha_bar`` (steps,) in float64 falls from data to noise.
    """

    alpha_bar: Tensor = field(compare=False, repr=False)
    first: int = 0

    @property
    def sigmas(self) -> Tensor:
        """The noise level (steps,) of every step, float64."""
        return torch.sqrt(1 - self.alpha_bar)

    def reached(self, s: Tensor) -> Tensor:
        return self.sigmas.to(s.device)[self._index(s)].to(s.dtype)

    def alpha_sigma(self, s: Tensor) -> tuple[Tensor, Tensor]:
        # From the table: near s = 1 a float32 level leaves nothing of alpha.
        alpha_bar = self.alpha_bar.to(s.device)[self._index(s)]
        return alpha_bar.sqrt().to(s.dtype), torch.sqrt(1 - alpha_bar).to(s.dtype)

    def model_time(self, s: Tensor) -> Tensor:
        return self._index(s) + self.first

    def _index(self, s: Tensor) -> Tensor:
        return (self.sigmas.to(s.device) - s.double()[:, None]).abs().argmin(-1)


@dataclass(frozen=True)
class VPSDE(VariancePreserving):
    """Continuous time t in (0, 1], beta(t) linear (arXiv 2011.13456, C); t = 0 is its clean limit.

    alpha^2 = exp(-integral of beta from 0 to t). The model is fed ``scale * t``.
    """

    beta_start: float = 0.1
    beta_end: float = 20.0
    scale: float = 999.0

    def reached(self, s: Tensor) -> Tensor:
        return s.clamp(max=math.sqrt(-math.expm1(-(self.beta_start + self.beta_end) / 2)))

    def alpha_sigma(self, s: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sqrt(1 - s.double() ** 2).to(s.dtype), s

    def model_time(self, s: Tensor) -> Tensor:
        integral = -torch.log1p(-(s.double() ** 2))
        # The root of beta_start t + slope t^2 / 2 = integral, without the loss of digits near 0.
        slope = self.beta_end - self.beta_start
        t = 2 * integral / (self.beta_start + torch.sqrt(self.beta_start**2 + 2 * slope * integral))
        return (self.scale * t.clamp(max=1)).to(s.dtype)  # a float32 level may round beyond t = 1


def betas(schedule: str, start: float, end: float, steps: int) -> Tensor:
    """Return the variance (steps,) of the noise that each step adds, float64.

    ``schedule`` is one of ``SCHEDULES``.
    """
    if schedule == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if schedule == "scaled-linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    assert schedule == "cosine"  # arXiv 2102.09672, eq. 17
    time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    kept = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - kept[1:] / kept[:-1]).clamp(max=0.999)


def shifted(alpha_bar: Tensor) -> Tensor:
    """Shift and stretch sqrt(alpha_bar) (steps,) to end at 0 (arXiv 2305.08891, algorithm 1)."""
    alpha = alpha_bar.sqrt()
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
