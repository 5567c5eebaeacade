"""Draws samples from a model: steps from pure noise to data, along the ODE or with fresh noise."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dar_probe.diffusion import data as datasets
from dar_probe.diffusion.flow import Flow
from dar_probe.diffusion.objective import Objective, column
from dar_probe.errors import UsageError

MOST = 100_000  # steps
SOLVERS = ("euler", "heun", "sde", "dopri5")
TOLERANCE = {"rtol": 1e-3, "atol": 1e-6}  # of dopri5, as SiT samples


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How samples are drawn.

    Attributes:
        solver: "euler": Euler's method for flows, DDIM (arXiv 2010.02502) for DDPM models. "heun":
            its second-order form (arXiv 2206.00364, algorithm 1; the last step is Euler's). "sde":
            ancestral steps, DDIM's with eta 1. "dopri5": torchdiffeq's adaptive ODE solver. Of a
            model of mean velocities (MeanFlow) euler takes its own steps, each by the mean
            velocity up to its end; one is enough. The other solvers take the velocity at r = t.
        steps: in the noise level, even but for objectives that say otherwise; heun calls the model
            twice in each, dopri5 has none.
        guidance: classifier-free guidance (arXiv 2207.12598): 1 is the conditional model.
        null_class: the label of the unconditional model; None where there is none.
        given: returns further arguments of the model for samples ids (N,) and their x.
    """

    solver: str = "euler"
    steps: int = 25
    guidance: float = 1.0
    null_class: int | None = None
    given: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise UsageError(f"unknown solver {self.solver!r}", hint=f"known: {', '.join(SOLVERS)}")
        if not 1 <= self.steps <= MOST:
            raise UsageError(
                f"{self.steps} steps draw no samples", hint=f"--steps takes 1 to {MOST}"
            )
        if not np.isfinite(self.guidance):
            raise UsageError(f"guidance {self.guidance:g} makes no sense", hint="e.g. --guidance 4")
        if self.guidance != 1 and self.null_class is None:
            raise UsageError(
                "guidance needs a model that was trained with dropped labels",
                hint="leave out --guidance; this model has no null class",
            )


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a model draws samples, in which type, and how many at a time."""

    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    batch_size: int = 16


@torch.no_grad()
def draw(
    model: nn.Module,
    objective: Objective,
    labels: Tensor,
    shape: tuple[int, ...],
    *,
    seed: int,
    sampler: Sampler | None = None,
    place: Place | None = None,
    on_samples: Callable[[int], None] | None = None,
) -> Tensor:
    """Return samples (N, *shape) for ``labels`` (N,), float32 on the CPU.

    Sample i is a function of (seed, i) and its label alone, in whatever batch (dopri5 chooses its
    steps for a batch). ``on_samples`` is called with the number that is drawn, after each batch.

    Raises:
        UsageError: dopri5 without torchdiffeq, or for a model with discrete steps.
    """
    sampler, place = sampler or Sampler(), place or Place()
    drawn = []
    for start in range(0, len(labels), place.batch_size):
        ids = torch.arange(start, min(start + place.batch_size, len(labels)))
        noise = datasets.noise(ids, shape, seed=seed).to(place.device, place.dtype)
        x = objective.start(noise)
        given = sampler.given(ids, x) if sampler.given else {}
        predict = _predictor(model, objective, labels[ids].to(place.device), sampler, given)
        split = _implied(predict, objective)
        if sampler.solver == "dopri5":
            x = _adaptive(split, objective, x)
        elif sampler.solver == "euler" and has_two_times(objective):
            x = _by_mean_velocity(predict, x, sampler.steps)
        else:
            x = _stepped(split, objective, x, sampler, ids, seed)
        drawn.append((objective.spread * x).float().cpu())
        if on_samples:
            on_samples(int(ids[-1]) + 1)
    return torch.cat(drawn)


def has_two_times(objective: Objective) -> bool:
    """Tell whether a model of this objective takes a second time and predicts mean velocities."""
    return isinstance(objective, Flow) and objective.two_times


Predict = Callable[..., Tensor]
Split = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _predictor(
    model: nn.Module, objective: Objective, y: Tensor, sampler: Sampler, given: dict[str, Tensor]
) -> Predict:
    """Return a function of x_s and the level s, and for mean velocities of the step's end."""
    null = sampler.null_class if sampler.guidance != 1 else None

    def predict(x: Tensor, *levels: Tensor) -> Tensor:
        times = [objective.model_time(level.to(x.device).expand(len(x))) for level in levels]
        more = {**given, **({"r": times[1]} if times[1:] else {})}
        prediction: Tensor = model(x, times[0], y, **more)
        if null is not None:
            free = model(x, times[0], torch.full_like(y, null), **more)
            prediction = free + sampler.guidance * (prediction - free)
        return prediction

    return predict


def _implied(predict: Predict, objective: Objective) -> Split:
    """Return a function of x_s and the level s: the data and the noise that the model implies."""

    def split(x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        return objective.split(x, predict(x, level), level.to(x.device).expand(len(x)))

    return split


def _by_mean_velocity(predict: Predict, x: Tensor, steps: int) -> Tensor:
    """Return x_r = x_t - (t - r) u(x_t, r, t), step by step: arXiv 2505.13447, equation 12."""
    levels = torch.from_numpy(np.linspace(1, 0, steps + 1))
    for here, there in itertools.pairwise(levels):
        x = x + (there - here).to(x) * predict(x, here, there)
    return x


def _stepped(
    split: Split, objective: Objective, x: Tensor, sampler: Sampler, ids: Tensor, seed: int
) -> Tensor:
    """Each step mixes the data and the noise that the model sees anew, for the next level."""
    levels = objective.reached(objective.steps(sampler.steps, x.shape[1:]))
    alphas, sigmas = objective.alpha_sigma(levels)
    for k in range(sampler.steps):
        clean, noise = split(x, levels[k])
        if sampler.solver == "sde":
            x = _renoised(clean, noise, alphas[k : k + 2], sigmas[k : k + 2], (ids, seed, k))
            continue
        there = alphas[k + 1].to(x) * clean + sigmas[k + 1].to(x) * noise
        if sampler.solver == "heun" and k + 1 < sampler.steps:
            clean_there, noise_there = split(there, levels[k + 1])
            there = x + (alphas[k + 1] - alphas[k]).to(x) * (clean + clean_there) / 2
            there += (sigmas[k + 1] - sigmas[k]).to(x) * (noise + noise_there) / 2
        x = there
    return x


def _renoised(
    clean: Tensor, noise: Tensor, alphas: Tensor, sigmas: Tensor, key: tuple[Tensor, int, int]
) -> Tensor:
    """Return a draw from q(x_there | x_here, clean): arXiv 2010.02502, equation 16, eta 1."""
    ids, seed, step = key
    kept = alphas[0] * sigmas[1] / (sigmas[0] * alphas[1])  # of the noise that is here
    fresh = (1 - kept.square()).clamp(min=0).sqrt()
    drawn = torch.stack([
        torch.from_numpy(
            np.random.default_rng([seed, int(i), step + 1]).standard_normal(clean.shape[1:])
        )
        for i in ids
    ])  # fmt: skip
    mixed = kept.to(clean) * noise + fresh.to(clean) * drawn.to(clean)
    return alphas[1].to(clean) * clean + sigmas[1].to(clean) * mixed


def _adaptive(split: Split, objective: Objective, x: Tensor) -> Tensor:
    """Integrate dx/ds = alpha'(s) data + sigma'(s) noise from pure noise to data."""
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise UsageError(
            "the solver dopri5 needs torchdiffeq", hint="pip install torchdiffeq, or use heun"
        ) from None

    def slope(s: Tensor, x_s: Tensor) -> Tensor:
        alpha, sigma = _slopes(objective, s)
        clean, noise = split(x_s, s)
        return column(alpha, x_s) * clean + column(sigma, x_s) * noise

    _slopes(objective, torch.tensor(0.5))  # refuses before the model is called
    ends = objective.reached(torch.tensor([1.0, 0.0], device=x.device))  # as far as it is finite
    # A step over the last end would ask for levels that no clock has.
    options = {"step_t": ends[1:]}
    solved: Any = odeint(slope, x, ends, method="dopri5", options=options, **TOLERANCE)
    return solved[-1]  # type: ignore[no-any-return]


def _slopes(objective: Objective, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return d alpha / ds and d sigma / ds, of shape (1,) each, at a level ``s``."""
    with torch.enable_grad():
        at = s.detach().reshape(1).double().requires_grad_()
        pair = objective.alpha_sigma(at)
        if not all(c.requires_grad for c in pair):
            raise UsageError(
                f"dopri5 needs a continuous path, {objective.name} has discrete steps",
                hint="use euler, heun or sde",
            )
        slopes = [torch.autograd.grad(c.sum(), at)[0] for c in pair]
    return slopes[0], slopes[1]
