"""EDM: a network between factors that depend on the size of the noise (arXiv 2206.00364)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dar_probe.diffusion.objective import Objective, column


@dataclass(frozen=True)
class EDM(Objective):
    """Data y with noise of size sigma on top, as the network F inside the factors sees them.

    The denoiser is D = c_skip (y + sigma n) + c_out F(c_in (y + sigma n), ln(sigma) / 4), with
    c_in = 1 / sqrt(sigma^2 + sigma_data^2), c_skip = (sigma_data c_in)^2 and
    c_out = sigma sigma_data c_in (table 1). F is what is measured, so that x_s is its input
    c_in (y + sigma n) and the model's time is ln(sigma) / 4.

    The noise level is the coefficient of the noise in x_s, sigma / sqrt(sigma^2 + sigma_data^2),
    as in the paths that preserve the variance: this is one of them, of data over ``sigma_data``.
    Training draws ln(sigma) from N(-1.2, 1.2^2): half of it lies below level 0.52.

    The target is that of F, (y - c_skip (y + sigma n)) / c_out. The weight of training,
    1 / c_out^2, makes the error of D the plain error of F.

    ``sigma_min`` and ``sigma_max`` are the ends of the authors' sampler, beyond which the clock is
    not followed: it is infinite at both ends.
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    @property
    def spread(self) -> float:
        return self.sigma_data

    def reached(self, s: Tensor) -> Tensor:
        low, high = (x / math.hypot(x, self.sigma_data) for x in (self.sigma_min, self.sigma_max))
        return s.clamp(low, high)

    def alpha_sigma(self, s: Tensor) -> tuple[Tensor, Tensor]:
        return (_kept(s) / self.sigma_data).to(s.dtype), s

    def model_time(self, s: Tensor) -> Tensor:
        return (torch.log(self.sigma_data * s.double() / _kept(s)) / 4).to(s.dtype)

    def target(self, x: Tensor, noise: Tensor, s: Tensor) -> Tensor:
        # What is left of the definition where x_s has unit variance: -v of arXiv 2202.00512.
        return column(s / self.sigma_data, x) * x - column(_kept(s), x) * noise

    def split(self, x_s: Tensor, prediction: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = column(_kept(s), x_s), column(s, x_s)
        data = self.sigma_data * (alpha * x_s + sigma * prediction)
        return data, sigma * x_s - alpha * prediction


def _kept(s: Tensor) -> Tensor:
    """Return sigma_data / sqrt(sigma^2 + sigma_data^2) (N,) at levels ``s``, float64."""
    return torch.sqrt(1 - s.double() ** 2)
