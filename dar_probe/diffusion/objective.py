"""What an objective tells: path, clock, target and loss of a diffusion model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """A path x_s = alpha x + sigma noise, a clock and a prediction type."""

    name: str

    @property
    def spread(self) -> float:
        """What data are divided by on the path: x_s at pure data, times this, are the data."""
        return 1.0

    def reached(self, s: Tensor) -> Tensor:
        """Return the noise level (N,) that the clock can really reach for a wanted ``s`` (N,)."""
        return s

    def steps(self, count: int, shape: Sequence[int]) -> Tensor:
        """Return the noise levels (count + 1,) of a sampler's steps from noise to data.

        ``shape`` is that of one sample.
        """
        return torch.from_numpy(np.linspace(1, 0, count + 1))

    def alpha_sigma(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coefficients of data and noise, (N,) each, at reached levels ``s``."""
        raise NotImplementedError

    def model_time(self, s: Tensor) -> Tensor:
        """Return what the model takes as t (N,) at reached levels ``s``."""
        raise NotImplementedError

    def target(self, x: Tensor, noise: Tensor, s: Tensor) -> Tensor:
        """Return what the model is trained to predict at levels ``s``, like ``x`` (N, C, h, w)."""
        raise NotImplementedError

    def loss(self, prediction: Tensor, x: Tensor, noise: Tensor, s: Tensor) -> Tensor:
        """Return what training minimises, (N,), in float32 at least.

        That is the mean squared error over each sample's elements.
        """
        wide = torch.promote_types(prediction.dtype, torch.float32)
        return per_sample_loss(prediction.to(wide), self.target(x, noise, s).to(wide))

    def split(self, x_s: Tensor, prediction: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the data and the noise (N, C, h, w) that a prediction at level ``s`` implies.

        Not finite only where they do not follow: data from the noise at pure noise, noise from the
        data at pure data.
        """
        raise NotImplementedError

    def interpolate(self, x: Tensor, noise: Tensor, s: Tensor) -> Tensor:
        """Return x_s (N, C, h, w)."""
        alpha, sigma = self.alpha_sigma(s)
        return column(alpha, x) * x + column(sigma, x) * noise

    def start(self, noise: Tensor) -> Tensor:
        """Return x_1 (N, C, h, w), where samplers begin, from noise of unit variance."""
        return noise

    def log_snr(self, s: Tensor) -> Tensor:
        """Return log(alpha^2 / sigma^2) (N,); infinite at pure data and at pure noise."""
        alpha, sigma = self.alpha_sigma(s)
        return 2 * (alpha.log() - sigma.log())


def per_sample_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error (N,) over each sample's elements."""
    return (prediction - target).square().flatten(1).mean(1)


def column(value: Tensor, like: Tensor) -> Tensor:
    """Shape (N,) as (N, 1, ...) to multiply ``like``, in its type."""
    return value.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)
