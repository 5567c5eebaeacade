"""Noise level to model input, model time, target and per-sample loss, for every convention.

The noise level s is 0 for data and 1 for pure noise everywhere in dar-probe; only an Objective
knows which way the model's own clock runs, in which unit, and what the model predicts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dar_probe.errors import UsageError

SCHEDULES = ("linear", "scaled-linear", "cosine")
PREDICTIONS = ("eps", "v", "x0")
MAX_STEPS = 100_000

# The same in the words of a diffusers scheduler config.
DIFFUSERS_SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled-linear",
    "squaredcos_cap_v2": "cosine",
}
DIFFUSERS_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


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

    def log_snr(self, s: Tensor) -> Tensor:
        """Return log(alpha^2 / sigma^2) (N,); infinite at pure data and at pure noise."""
        alpha, sigma = self.alpha_sigma(s)
        return 2 * (alpha.log() - sigma.log())


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
    """

    noise_time: float
    scale: float = 1.0
    path: str = "linear"
    prediction: str = "velocity"

    @property
    def clock(self) -> str:
        """The name of the direction of time: "repa" where t = s, "sit" where t = 1 - s."""
        return "repa" if self.noise_time == 1 else "sit"

    def reached(self, s: Tensor) -> Tensor:
        """Keep off the ends where a path or what it implies is not finite, by SiT's train_eps."""
        if self.path == "vp":
            return s.clamp(min=1e-5)
        return s if self.prediction == "velocity" else s.clamp(1e-3, 1 - 1e-3)

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
        """Turn a derivative by s into one by the clock, and back."""
        return slope if self.noise_time == 1 else -slope


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


def flow(clock: str, path: str = "linear", prediction: str = "velocity") -> Flow:
    """Return the flow of a clock ("sit", "repa"), a path and a prediction.

    Raises:
        UsageError: there is none.
    """
    usual = (path, prediction) == ("linear", "velocity")
    name = clock if usual else f"{clock}:{path}:{prediction}"
    if clock not in ("sit", "repa") or path not in PATHS or prediction not in FLOW_PREDICTIONS:
        raise _unknown("objective", name)
    return Flow(name, float(clock == "repa"), path=path, prediction=prediction)


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


def ddpm(
    name: str,
    *,
    schedule: str = "linear",
    prediction: str = "eps",
    beta_start: float = 1e-4,
    beta_end: float = 2e-2,
    steps: int = 1000,
    trained_betas: Sequence[float] | None = None,
    zero_snr: bool = False,
) -> DDPM:
    """Return the objective of a model trained on discrete steps.

    ``schedule`` and ``prediction`` are also taken in diffusers' spelling. ``trained_betas``
    replace schedule, beta_start, beta_end and steps.

    Raises:
        UsageError: a name is unknown, or the betas are no noise schedule.
    """
    schedule = DIFFUSERS_SCHEDULES.get(schedule, schedule)
    prediction = DIFFUSERS_PREDICTIONS.get(prediction, prediction)
    if prediction not in PREDICTIONS:
        raise _unknown("prediction", prediction)
    count = steps if trained_betas is None else len(trained_betas)
    if not 2 <= count <= MAX_STEPS:
        raise UsageError(f"a noise schedule has 2 to {MAX_STEPS} steps, not {count}")
    given = (beta_start, beta_end) if trained_betas is None else trained_betas
    if not all(0 < beta < 1 for beta in given):
        raise UsageError(
            "the betas of a noise schedule lie between 0 and 1, these do not",
            hint="check beta_start, beta_end and trained_betas",
        )
    if trained_betas is None:
        betas = _betas(schedule, beta_start, beta_end, steps)
    else:
        betas = torch.tensor(trained_betas, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - betas, 0)
    return DDPM(name, prediction, _zero_snr(alpha_bar) if zero_snr else alpha_bar)


def _betas(schedule: str, start: float, end: float, steps: int) -> Tensor:
    """Return the variance (steps,) of the noise that each step adds, float64."""
    if schedule == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if schedule == "scaled-linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    if schedule == "cosine":  # arXiv 2102.09672, eq. 17
        time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        kept = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - kept[1:] / kept[:-1]).clamp(max=0.999)
    raise _unknown("schedule", schedule)


def _zero_snr(alpha_bar: Tensor) -> Tensor:
    """Shift and stretch sqrt(alpha_bar) (steps,) to end at 0 (arXiv 2305.08891, algorithm 1)."""
    alpha = alpha_bar.sqrt()
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


_LDM = ddpm("ddpm:scaled-linear", schedule="scaled-linear", beta_start=0.00085, beta_end=0.012)
OBJECTIVES: dict[str, Objective] = {
    "sit": flow("sit"),
    "repa": flow("repa"),
    "dit": ddpm("dit"),
    "uvit": replace(_LDM, name="uvit", first=1),
    "vp": VPSDE("vp", prediction="eps"),
}
# To be named together with a prediction.
_STEPS = {
    **{name: o for name, o in OBJECTIVES.items() if isinstance(o, DDPM)},
    "ddpm:linear": ddpm("ddpm:linear"),
    "ddpm:scaled-linear": _LDM,
    "ddpm:cosine": ddpm("ddpm:cosine", schedule="cosine"),
}


def get(name: str) -> Objective:
    """Return the objective called ``name``.

    That is one of ``OBJECTIVES``; "sit:PATH:PREDICTION" and "repa:PATH:PREDICTION", see ``Flow``;
    "ddpm:SCHEDULE:PREDICTION", with DiT's betas for linear and Stable Diffusion's for
    scaled-linear; or "dit:PREDICTION" and "uvit:PREDICTION".

    Raises:
        UsageError: there is none.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    clock, *rest = name.split(":")
    if clock in ("sit", "repa") and len(rest) == 2:
        return replace(flow(clock, *rest), name=name)
    steps, _, prediction = name.rpartition(":")
    if steps not in _STEPS or prediction not in PREDICTIONS:
        raise _unknown("objective", name)
    return replace(_STEPS[steps], name=name, prediction=prediction)


def candidates(assumed: Objective) -> dict[str, Objective]:
    """Return the conventions, by name, that a model assumed to follow ``assumed`` may really have.

    Where that is a DDPM, its other predictions on the same steps are among them; where it is a flow
    with a clock in other units, the same with time running the other way; where it is a flow with a
    path and a prediction of its own, all predictions on that path in both directions of time.
    """
    found = {name: OBJECTIVES[name] for name in ("sit", "repa", "dit")}
    found[assumed.name] = assumed
    if isinstance(assumed, Flow) and assumed.scale != 1:
        name = f"{assumed.name}:reversed"
        found[name] = replace(assumed, name=name, noise_time=1 - assumed.noise_time)
    if isinstance(assumed, Flow) and assumed.name.count(":") == 2:
        names = (f"{c}:{assumed.path}:{p}" for c in ("sit", "repa") for p in FLOW_PREDICTIONS)
        found |= {name: get(name) for name in names}
    if isinstance(assumed, DDPM):
        base = assumed.name.removesuffix(f":{assumed.prediction}")
        others = (p for p in PREDICTIONS if p != assumed.prediction)
        found |= {f"{base}:{p}": replace(assumed, name=f"{base}:{p}", prediction=p) for p in others}
    return found


def per_sample_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error (N,) over each sample's elements."""
    return (prediction - target).square().flatten(1).mean(1)


def column(value: Tensor, like: Tensor) -> Tensor:
    """Shape (N,) as (N, 1, ...) to multiply ``like``, in its type."""
    return value.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)


def _unknown(what: str, name: str) -> UsageError:
    return UsageError(
        f"unknown {what} {name!r}",
        hint=f"known: {', '.join(OBJECTIVES)}; ddpm:SCHEDULE:PREDICTION with a schedule of "
        f"{', '.join(SCHEDULES)} and a prediction of {', '.join(PREDICTIONS)}; "
        f"sit:PATH:PREDICTION and repa:PATH:PREDICTION with a path of {', '.join(PATHS)} and a "
        f"prediction of {', '.join(FLOW_PREDICTIONS)}",
    )
