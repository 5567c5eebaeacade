"""Samples that a diffusers transformer draws itself, with the scheduler it was saved with."""

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dar_probe.diffusion import data as datasets
from dar_probe.diffusion import samplers
from dar_probe.diffusion.flow import Flow
from dar_probe.diffusion.objective import Objective
from dar_probe.models.diffusers import scheduler as clock
from dar_probe.models.diffusers.inputs import Signature
from dar_probe.models.diffusers.model import dtype_of, quiet, scheduler_class
from dar_probe.models.offload import device_of

STEPS = 25
_STEP = ("self", "model_output", "timestep", "sample")


@torch.no_grad()
def draw(
    model: nn.Module,
    call: Signature,
    objective: Objective,
    scheduler: dict[str, Any] | None,
    *,
    count: int,
    seed: int,
    steps: int = STEPS,
    batch_size: int = 16,
) -> tuple[Tensor, str]:
    """Return samples (count, *shape), float32 on the CPU, and how they were drawn.

    Sample i is a function of (seed, i) alone, whatever the batch. There is no guidance.

    Args:
        model: the transformer, wherever it lies.
        call: how it is called.
        objective: of its training.
        scheduler: the settings of its scheduler; None: Euler's method, even steps.
        count: number of samples.
        seed: random seed of the noise.
        steps: number of calls for each sample, twice that for schedulers of second order.
        batch_size: samples in one call.

    Raises:
        CheckpointError: diffusers has no such scheduler.
    """
    kind = scheduler_class(str(scheduler["_class_name"])) if scheduler is not None else None
    if kind is None or not _can_step(kind):
        method = "Euler steps" if isinstance(objective, Flow) else "DDIM steps"
        why = "no scheduler" if kind is None else f"the scheduler {kind.__name__} not usable here"
        drawn = samplers.draw(
            _Called(model, call), objective, torch.arange(count),
            call.shape,
            seed=seed, sampler=samplers.Sampler(steps=steps),
            place=samplers.Place(
                device=device_of(model), dtype=dtype_of(model), batch_size=batch_size
            ),
        )  # fmt: skip
        return drawn, f"{_many(count)} drawn from the model itself ({steps} {method}, {why})"
    assert scheduler is not None
    batches = []
    for start in range(0, count, batch_size):
        ids = torch.arange(start, min(start + batch_size, count))
        with quiet():
            stepper = kind.from_config(_deterministic(scheduler))
            _set_timesteps(stepper, scheduler, steps, call)
            batches.append(_run(stepper, scheduler, model, call, objective, ids, seed))
    how = f"{steps} steps of {kind.__name__}, no guidance"
    return torch.cat(batches), f"{_many(count)} drawn from the model itself ({how})"


class _Called(nn.Module):
    """The model as our own samplers call it: the sample's id in the place of a label."""

    def __init__(self, model: nn.Module, call: Signature) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x: Tensor, time: Tensor, ids: Tensor) -> Tensor:
        args, kwargs = self.call.inputs(x, time, ids.cpu())
        return self.call.prediction(self.model(*args, **kwargs))


def _run(
    stepper: Any,
    scheduler: dict[str, Any],
    model: nn.Module,
    call: Signature,
    objective: Objective,
    ids: Tensor,
    seed: int,
) -> Tensor:
    """Return one batch of samples."""
    place = device_of(model)
    x = datasets.noise(ids, call.shape, seed=seed).to(place)
    x = x * float(stepper.init_noise_sigma) if hasattr(stepper, "init_noise_sigma") else x
    extra = {}
    if "generator" in inspect.signature(stepper.step).parameters:  # a sample's own, in any batch
        extra["generator"] = [_generator(seed, int(i)) for i in ids]
    # Schedulers integrate noise - data over falling time, or data - noise over rising time.
    own = isinstance(objective, Flow) and objective.noise_time == 0
    sign = -1 if own and not clock.reversed_flow(scheduler) else 1
    for t in stepper.timesteps:
        scaled = x
        if hasattr(stepper, "scale_model_input"):
            scaled = stepper.scale_model_input(x, t)
        time = _model_time(t, objective, scheduler).to(place).expand(len(ids))
        args, kwargs = call.inputs(scaled.to(dtype_of(model)), time, ids)
        predicted = sign * call.prediction(model(*args, **kwargs)).float()
        x = stepper.step(predicted, t, x, return_dict=False, **extra)[0]
    return x.float().cpu()


def _model_time(t: Tensor, objective: Objective, scheduler: dict[str, Any]) -> Tensor:
    """Return what the model is told (1,) at the scheduler's time ``t``."""
    if not isinstance(objective, Flow):
        return t[None]
    s = t[None].float() / clock.trained_steps(scheduler)
    return objective.model_time(1 - s if clock.reversed_flow(scheduler) else s)


def _set_timesteps(stepper: Any, scheduler: dict[str, Any], steps: int, call: Signature) -> None:
    """Fix the steps, shifted by the number of tokens where the scheduler asks for it."""
    taken = inspect.signature(stepper.set_timesteps).parameters
    extra: dict[str, Any] = {}
    if str(scheduler["_class_name"]).startswith("FlowMatch") and "sigmas" in taken:
        # As most pipelines do; left to itself the scheduler would shift its last step twice.
        extra["sigmas"] = np.linspace(1, 1 / steps, steps)
    if scheduler.get("use_dynamic_shifting"):
        low = scheduler.get("base_image_seq_len", 256)
        high = scheduler.get("max_image_seq_len", 4096)
        least, most = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
        extra["mu"] = least + (call.latents.tokens - low) * (most - least) / (high - low)
    stepper.set_timesteps(steps, **extra)


def _deterministic(scheduler: dict[str, Any]) -> dict[str, Any]:
    """Return settings without a learned variance, which ``Call.prediction`` leaves out."""
    if str(scheduler.get("variance_type", "")).startswith("learned"):
        return {**scheduler, "variance_type": "fixed_small"}
    return scheduler


def _can_step(kind: Any) -> bool:
    """Tell whether a scheduler steps from a prediction, a time and a sample alone."""
    parameters = inspect.signature(kind.step).parameters.values()
    needed = {p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    return needed <= set(_STEP)


def _generator(seed: int, sample_id: int) -> torch.Generator:
    state = np.random.default_rng([seed, sample_id, STEPS]).integers(2**62)
    return torch.Generator().manual_seed(int(state))


def _many(count: int) -> str:
    return f"{count} sample{'s' * (count > 1)}"
