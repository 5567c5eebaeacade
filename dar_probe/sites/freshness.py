"""Whether a model is still as it was made, so that there is nothing learnt to measure."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dar_probe.runtime.sharded import class_of, whole

NORMS = "every norm still has its initial parameters"
LAYERS = "its linear layers hold what PyTorch draws for new ones"
ENOUGH = 1024  # weights of a layer, from which their spread is known to a few percent
MOST = 24  # layers that are looked at, evenly over the depth
SHARE = 0.9  # of them, that must be as drawn: some are initialised by other means


def freshness(model: nn.Module, elsewhere: Mapping[str, Tensor] | None = None) -> str:
    """Say why nothing can have been learnt; empty where something was, or where nobody can tell.

    The first step of any training in float32 moves gains of norms from one and offsets from zero.
    In 16 bits it does not: one and a small step round to one. There, and where norms have no gains,
    linear layers tell: PyTorch draws their weights evenly between -1 / sqrt(n) and 1 / sqrt(n) of n
    inputs, and the first step carries some beyond.

    Args:
        model: in float32, float64, bfloat16 or float16.
        elsewhere: parameters by name that the model holds on the meta device; they are read one
            by one.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def value(parameter: Tensor) -> Tensor:
        return (
            elsewhere[names[id(parameter)]] if elsewhere and parameter.is_meta else whole(parameter)
        )

    parameters = [
        parameter
        for module in model.modules()
        if "norm" in class_of(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    ]
    # Some gains are stored as their difference from one.
    if not all(bool((p == 0).all()) or bool((p == 1).all()) for p in map(value, parameters)):
        return ""
    weights = [one.get_parameter("weight") for one in model.modules() if class_of(one) is nn.Linear]
    if parameters and not (weights and all(map(_of_16_bits, map(value, weights[:MOST])))):
        return NORMS
    layers = [weight for weight in weights if weight.numel() >= ENOUGH]
    seen = layers[:: max(len(layers) // MOST, 1)]
    drawn = [_as_drawn(value(weight)) for weight in seen]
    return LAYERS if drawn and sum(drawn) >= SHARE * len(drawn) else ""


@torch.no_grad()
def _of_16_bits(weight: torch.Tensor) -> bool:
    """Return whether numbers are those of 16 bits, also where they are stored in more."""
    return bool((weight == weight.to(torch.bfloat16)).all() or (weight == weight.half()).all())


@torch.no_grad()
def _as_drawn(weight: torch.Tensor) -> bool:
    """Return whether weights (out, in) are within the bound of new ones and fill it evenly."""
    bound = 1 / math.sqrt(weight.shape[1])
    rounded = 2 * torch.finfo(weight.dtype).eps
    within = float(weight.abs().max()) <= bound * (1 + rounded)
    spread = float(weight.float().std()) * math.sqrt(3) / bound
    return within and abs(spread - 1) < 0.05
