"""Flows along a path from data to noise: SiT, REPA, MeanFlow, JiT, SD3, Flux."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dar_probe.diffusion.objective import Objective, column, per_sample_loss


@dataclass(frozen=True)
class Flow(Objective):
    """A path of SiT (arXiv 2401.08740; transport/path.py) at time s, with one of its predictions.

    The noise level is the time along the path. The clock reads ``scale * noise_time`` at noise.
    noise_time 0: t = scale (1 - s) (SiT's and LightningDiT's code). noise_time 1: t = scale s
    (REPA; SD3 with scale 1000).

    path "linear": alpha = 1 - s, sigma = s. "gvp": cos(pi s / 2), sin(pi s / 2). "vp":
    alpha^2 = exp(-integral of beta from 0 to s), beta from 0.1 to 20, sigma^2 = 1 - alpha^2.

    prediction "velocity": the derivative of x_s by the clock, over ``scale``; data - noise or
    noise - data on the linear path. "noise": the noise. "score": -noise / sigma; its loss is that
    of the noise which it implies, |sigma prediction + noise|^2, as in SiT's code without weighting.

    two_times: the model takes a second time r and predicts the mean velocity between the two
    (MeanFlow, arXiv 2505.13447). Its loss here is that at r = t, where it is the velocity at t.

    backward: the velocity has the sign of a clock that runs the other way (Open-Sora: t = scale s,
    and data - noise).

    base: where a sample has more numbers than this, samplers take their steps nearer to noise: with
    a = sqrt(numbers / base), even steps u become a u / (1 + (a - 1) u) (SD3, arXiv 2403.03206; RAE
    trains on times shifted alike). None: even steps.
    """

    noise_time: float
    scale: float = 1.0
    path: str = "linear"
    prediction: str = "velocity"
    two_times: bool = False
    backward: bool = False
    base: int | None = None

    @property
    def clock(self) -> str:
        """The name of the direction of time: "repa" where t = s, "sit" where t = 1 - s."""
        return "repa" if self.noise_time == 1 else "sit"

    def reached(self, s: Tensor) -> Tensor:
        """Keep off the ends where a path or what it implies is not finite, by SiT's train_eps."""
        if self.path == "vp":
            return s.clamp(min=1e-5)
        return s if self.prediction == "velocity" else s.clamp(1e-3, 1 - 1e-3)

    def steps(self, count: int, shape: Sequence[int]) -> Tensor:
        even = super().steps(count, shape)
        shift = max(1.0, math.sqrt(math.prod(shape) / self.base)) if self.base else 1.0
        return shift * even / (1 + (shift - 1) * even)

    def alpha_sigma(self, s: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, _, _ = PATHS[self.path](s)
        return alpha.to(s.dtype), sigma.to(s.dtype)

    def model_time(self, s: Tensor) -> Tensor:
        return self.scale * (s if self.noise_time == 1 else 1 - s)

    def target(self, x: Tensor, noise: Tensor, s: Tensor) -> Tensor:
        if self.prediction == "noise":
            return noise
        _, sigma, d_alpha, d_sigma = (column(c, x) for c in PATHS[self.path](s))
        if self.prediction == "score":
            return -noise / sigma
        return self._signed(d_alpha * x + d_sigma * noise)

    def loss(self, prediction: Tensor, x: Tensor, noise: Tensor, s: Tensor) -> Tensor:
        if self.prediction == "score":
            wide = torch.promote_types(prediction.dtype, torch.float32)
            sigma = column(self.alpha_sigma(s)[1], prediction.to(wide))
            return per_sample_loss(sigma * prediction.to(wide), -noise.to(wide))
        return super().loss(prediction, x, noise, s)

    def split(self, x_s: Tensor, prediction: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, d_alpha, d_sigma = PATHS[self.path](s)
        if self.prediction == "velocity":
            # x_s and its slope are two equations in data and noise.
            slope, scale = self._signed(prediction), alpha * d_sigma - sigma * d_alpha
            alpha, sigma, d_alpha, d_sigma = (
                column(c / scale, x_s) for c in (alpha, sigma, d_alpha, d_sigma)
            )
            return d_sigma * x_s - sigma * slope, alpha * slope - d_alpha * x_s
        alpha, sigma = column(alpha, x_s), column(sigma, x_s)
        noise = prediction if self.prediction == "noise" else -sigma * prediction
        return (x_s - sigma * noise) / alpha, noise

    def _signed(self, slope: Tensor) -> Tensor:
        """Turn a derivative by s into what the model predicts, and back."""
        return slope if (self.noise_time == 1) != self.backward else -slope


@dataclass(frozen=True)
class DataFlow(Flow):
    """A flow whose model predicts the data and is trained on the velocity that follows from them.

    After JiT (arXiv 2511.13720): x_s = (1 - s) x + s noise_scale noise, and the slope of the path
    is (x_s - prediction) / max(s, floor). The floor keeps both loss and steps of a sampler finite.
    """

    prediction: str = "data"
    noise_scale: float = 1.0
    floor: float = 0.05

    def reached(self, s: Tensor) -> Tensor:
        return s

    def alpha_sigma(self, s: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - s, self.noise_scale * s

    def start(self, noise: Tensor) -> Tensor:
        return self.noise_scale * noise

    def target(self, x: Tensor, noise: Tensor, s: Tensor) -> Tensor:
        return x

    def loss(self, prediction: Tensor, x: Tensor, noise: Tensor, s: Tensor) -> Tensor:
        found = super().loss(prediction, x, noise, s)
        return found / self._divisor(s).to(found.dtype).square()

    def split(self, x_s: Tensor, prediction: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        slope = (x_s - prediction) / column(self._divisor(s), x_s)
        at = column(s, x_s)
        return x_s - at * slope, (x_s + (1 - at) * slope) / self.noise_scale

    def _divisor(self, s: Tensor) -> Tensor:
        return s.clamp(min=self.floor)


def _linear(s: Tensor) -> tuple[Tensor, ...]:
    return 1 - s, s, -torch.ones_like(s), torch.ones_like(s)


def _gvp(s: Tensor) -> tuple[Tensor, ...]:
    s, quarter = s.double(), math.pi / 2
    alpha, sigma = torch.sin(quarter * (1 - s)), torch.sin(quarter * s)  # exact at both ends
    return alpha, sigma, -quarter * sigma, quarter * alpha


def _vp(s: Tensor) -> tuple[Tensor, ...]:
    s, start, slope = s.double(), 0.1, 19.9
    beta, integral = start + slope * s, start * s + slope * s**2 / 2
    alpha, sigma = torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))
    return alpha, sigma, -beta * alpha / 2, beta * alpha**2 / (2 * sigma)


# Level (N,) to alpha, sigma and their derivatives, (N,) each.
PATHS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "linear": _linear,
    "gvp": _gvp,
    "vp": _vp,
}
FLOW_PREDICTIONS = ("velocity", "noise", "score")
