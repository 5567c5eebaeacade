"""Inputs for a module that comes alone, from its own configuration.

Neither transformers nor diffusers is imported: a class is known by the package of its ancestors,
what it takes by the signature of its forward, and how large by ``module.config``.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dar_probe.diffusion import data as datasets
from dar_probe.diffusion.objective import Objective, per_sample_loss
from dar_probe.models.diffusers import inputs, scheduler
from dar_probe.models.offload import device_of
from dar_probe.probe.measure import Batch, Loss
from dar_probe.runtime.sharded import class_of

TOKENS = 64  # at most, in one sequence
CHANNELS = 3  # where the config does not say
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a module's configuration gives.

    Attributes:
        batch: inputs of each (seed, sample id) alone, the same at every noise level.
        loss: the model's own; None where only a task would give one.
        name, description: of the data, for the manifest and the list of assumptions.
        objective: of a model with a time of its own, which gives noise levels a meaning.
        stand_in: what ``loss`` is, in words.
        assumptions: one sentence for each other thing that was taken for granted.
    """

    batch: Batch
    loss: Loss | None
    name: str
    description: str
    objective: Objective | None = None
    stand_in: str = ""
    assumptions: tuple[str, ...] = ()


def find(module: nn.Module) -> Inputs | None:
    """Return inputs for ``module``; None where its class or its config does not tell."""
    for library, make in MAKERS.items():
        if any(kind.__module__.partition(".")[0] == library for kind in type(module).__mro__):
            return make(module)
    return None


def _transformers(module: nn.Module) -> Inputs | None:
    """Token ids for a forward that takes ``input_ids``, images for one with ``pixel_values``."""
    takes = inspect.signature(module.forward).parameters
    config: Any = getattr(module, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False):
        return None  # a part of a model, or two stacks with an input each
    if "input_ids" in takes:
        return _tokens(module, config.get_text_config(), "attention_mask" in takes)
    if "pixel_values" in takes:
        return _images(module, config)
    return None


def _tokens(module: nn.Module, config: Any, masked: bool) -> Inputs | None:
    vocabulary = getattr(config, "vocab_size", None)
    if not vocabulary:
        return None
    # Half: some classes number their positions from the padding id on.
    longest = getattr(config, "max_position_embeddings", None)
    # None, or -1 as XLNet has it: as many as one likes.
    length = max(2, min(TOKENS, longest // 2)) if longest and longest > 0 else TOKENS
    options = _options(module)

    def rows(sample_ids: Tensor) -> Tensor:
        drawn = [
            np.random.default_rng([SEED, int(i)]).integers(0, vocabulary, length)
            for i in sample_ids
        ]
        return torch.from_numpy(np.stack(drawn))

    def batch(sample_ids: Tensor, noise_level: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids = rows(sample_ids).to(device_of(module))
        mask = {"attention_mask": torch.ones_like(ids)} if masked else {}
        return (), {"input_ids": ids, **mask, **options}

    def next_token(output: Any, sample_ids: Tensor, noise_level: Tensor) -> Tensor:
        logits = (output["logits"] if isinstance(output, dict) else output[0]).float()
        wanted = rows(sample_ids)[:, 1:].to(logits.device)
        each = functional.cross_entropy(logits[:, :-1].mT, wanted, reduction="none")
        return each.mean(1)

    causal = bool(module.can_generate())  # type: ignore[operator]
    return Inputs(
        batch=batch,
        loss=next_token if causal else None,
        name="random tokens",
        description=f"{length} random token ids each, of a vocabulary of {vocabulary:,}",
        stand_in="the model's own next-token cross entropy",
    )


def _images(module: nn.Module, config: Any) -> Inputs | None:
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None)
    if not size:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    shape = (getattr(config, "num_channels", CHANNELS), height, width)
    options = _options(module)

    def batch(sample_ids: Tensor, noise_level: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        pixels = datasets.noise(sample_ids, shape, seed=SEED)
        dtype = next(module.parameters()).dtype
        return (), {"pixel_values": pixels.to(device_of(module), dtype), **options}

    return Inputs(
        batch=batch,
        loss=None,
        name="random images",
        description=f"images of normal noise, {'x'.join(map(str, shape))}",
    )


def _diffusers(module: nn.Module) -> Inputs | None:
    """Normal noise for latents, noised along the path of the class, and its denoising loss."""
    settings: Any = module.config
    name, config = class_of(module).__name__, dict(settings)
    call = inputs.plan(name, config, seed=SEED)
    objective, assumed = scheduler.of_class(name, config)

    def rows(sample_ids: Tensor, noise_level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        like, place = next(module.parameters()), device_of(module)
        x, noise = (
            datasets.noise(sample_ids, call.shape, seed=seed).to(place, like.dtype)
            for seed in (SEED, SEED + 1)
        )
        return x, noise, noise_level.to(place)

    def batch(sample_ids: Tensor, noise_level: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x, noise, s = rows(sample_ids, noise_level)
        return call.inputs(objective.interpolate(x, noise, s), objective.model_time(s), sample_ids)

    def denoising(output: Any, sample_ids: Tensor, noise_level: Tensor) -> Tensor:
        target = objective.target(*rows(sample_ids, noise_level))
        return per_sample_loss(call.prediction(output).float(), target.float())

    return Inputs(
        batch=batch,
        loss=denoising,
        name="random latents",
        description=f"latents of normal noise, {'x'.join(map(str, call.shape))}",
        objective=objective,
        stand_in=f"the denoising loss of the objective {objective.name!r}",
        assumptions=(*assumed, *call.assumptions),
    )


def _options(module: nn.Module) -> dict[str, Any]:
    takes = inspect.signature(module.forward).parameters
    return {"use_cache": False} if "use_cache" in takes else {}


# One entry a library.
MAKERS: dict[str, Callable[[nn.Module], Inputs | None]] = {
    "transformers": _transformers,
    "diffusers": _diffusers,
}
