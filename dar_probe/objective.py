"""Noise level to model input, model time, target and per-sample loss, for every convention.

The noise level s is 0 for data and 1 for pure noise everywhere in dar-probe; only an Objective
knows which way the model's own clock runs.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dar_probe.errors import UsageError


@dataclass(frozen=True)
class Objective:
    """A path x_s = alpha x + sigma noise, a clock and a prediction type."""

    name: str

    def reached(self, s: Tensor) -> Tensor:
        """Return the noise level (N,) that the clock can really reach for a wanted ``s`` (N,)."""
        return s

    def alpha_sigma(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coefficients of data and noise, (N,) each, at reached levels ``s``."""
        raise NotImplementedError

    def model_time(self, s: Tensor) -> Tensor:
        """Return what the model takes as t (N,) at reached levels ``s``."""
        raise NotImplementedError

    def target(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return what the model is trained to predict, in the shape of ``x`` (N, C, h, w)."""
        raise NotImplementedError

    def split(self, x_s: Tensor, prediction: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the data and the noise (N, C, h, w) that a prediction at level ``s`` implies."""
        raise NotImplementedError

    def interpolate(self, x: Tensor, noise: Tensor, s: Tensor) -> Tensor:
        """Return x_s (N, C, h, w)."""
        alpha, sigma = self.alpha_sigma(s)
        return column(alpha, x) * x + column(sigma, x) * noise

    def log_snr(self, s: Tensor) -> Tensor:
        """Return log(alpha^2 / sigma^2) (N,); infinite at the clean end."""
        alpha, sigma = self.alpha_sigma(s)
        return 2 * (alpha.log() - sigma.log())


@dataclass(frozen=True)
class Flow(Objective):
    """Linear interpolant with velocity target; the clock reads ``noise_time`` at pure noise.

    noise_time 0: t = 1 - s, target data - noise (SiT's and LightningDiT's code).
    noise_time 1: t = s, target noise - data (REPA; the SiT paper's text).
    """

    noise_time: float

    def alpha_sigma(self, s: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - s, s

    def model_time(self, s: Tensor) -> Tensor:
        return s if self.noise_time == 1 else 1 - s

    def target(self, x: Tensor, noise: Tensor) -> Tensor:
        return noise - x if self.noise_time == 1 else x - noise

    def split(self, x_s: Tensor, prediction: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        to_noise = prediction if self.noise_time == 1 else -prediction  # noise - data
        s = column(s, x_s)
        return x_s - s * to_noise, x_s + (1 - s) * to_noise


@dataclass(frozen=True)
class DDPM(Objective):
    """Noise prediction on DiT's 1,000 steps with linear betas from 1e-4 to 2e-2.

    The noise level is sqrt(1 - alpha_bar) of the integer step nearest to the wanted level.
    """

    steps: int = 1000

    @cached_property
    def sigmas(self) -> Tensor:
        """sqrt(1 - alpha_bar) (steps,) in float64."""
        betas = torch.linspace(1e-4, 2e-2, self.steps, dtype=torch.float64)
        return torch.sqrt(1 - torch.cumprod(1 - betas, 0))

    def reached(self, s: Tensor) -> Tensor:
        return self.sigmas.to(s.device)[self.model_time(s)].to(s.dtype)

    def alpha_sigma(self, s: Tensor) -> tuple[Tensor, Tensor]:
        # 1 - s^2 in float64: near s = 1 float32 leaves nothing of alpha.
        alpha = torch.sqrt((1 - s.double() ** 2).clamp(min=0)).to(s.dtype)
        return alpha, s

    def model_time(self, s: Tensor) -> Tensor:
        return (self.sigmas.to(s.device) - s.double()[:, None]).abs().argmin(-1)

    def target(self, x: Tensor, noise: Tensor) -> Tensor:
        return noise

    def split(self, x_s: Tensor, prediction: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.alpha_sigma(s)
        return (x_s - column(sigma, x_s) * prediction) / column(alpha, x_s), prediction


OBJECTIVES: dict[str, Objective] = {
    "sit": Flow("sit", noise_time=0.0),
    "repa": Flow("repa", noise_time=1.0),
    "dit": DDPM("dit"),
}


def get(name: str) -> Objective:
    """Return the objective called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in OBJECTIVES:
        raise UsageError(f"unknown objective {name!r}", hint=f"known: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def per_sample_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error (N,) over each sample's elements."""
    return (prediction - target).square().flatten(1).mean(1)


def column(value: Tensor, like: Tensor) -> Tensor:
    """Shape (N,) as (N, 1, ...) to multiply ``like``, in its type."""
    return value.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)
