"""Latents that a model's training normalises per channel, by statistics in the model's own file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from dar_probe.diffusion.data import AS_THEY_ARE, Data
from dar_probe.errors import CheckpointError

MEAN, VARIANCE = "bn.running_mean", "bn.running_var"
EPS = 1e-4  # REPA-E's (arXiv 2504.10483; models/sit.py); added to the variance
USUAL, FAR = (0.5, 2.0), 1.0  # of normalised channels: usual spreads, and how far a mean may be


@dataclass(frozen=True, kw_only=True)
class LatentNorm:
    """(x - mean) / std per channel, before noise is added; the model itself never does it.

    Attributes:
        mean, std: (C,), float64, on the CPU.
    """

    mean: Tensor
    std: Tensor

    def apply(self, data: Data) -> Data:
        """Return latents (N, C, h, w) of the VAE's space as the model was trained on them."""
        mean, std = self._columns(data.latents)
        values = ((data.latents.double() - mean) / std).float()
        channels = values.double().transpose(0, 1).flatten(1)
        spread = float(channels.std(1, correction=0).median())
        offset = float(channels.mean(1).square().mean().sqrt())
        doubt = (
            "Normalised by the file's own batch norm, a channel of the latents has a standard "
            f"deviation of {spread:.3g} and a mean of {offset:.3g} away from 0, instead of about 1 "
            "and 0: they were scaled or normalised before, or are of another VAE, and every number "
            "below is wrong. Give what the VAE itself returns."
        )
        return replace(
            data,
            latents=values,
            description=f"{data.description.removesuffix(AS_THEY_ARE)}, normalised by the model's "
            "own batch norm",
            changes=(
                *data.changes,
                "the data were normalised per channel by the batch norm in the file (bn), as in "
                "its training",
            ),
            doubts=() if USUAL[0] <= spread <= USUAL[1] and offset <= FAR else (doubt,),
        )

    def undo(self, latents: Tensor) -> Tensor:
        """Return latents (N, C, h, w) that the model drew in the VAE's space."""
        mean, std = self._columns(latents)
        return (latents.double() * std + mean).to(latents.dtype)

    def _columns(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (latents.ndim - 2))
        return self.mean.reshape(shape), self.std.reshape(shape)


def of_weights(state: Mapping[str, Tensor]) -> LatentNorm | None:
    """Return the norm that a file holds as a batch norm called "bn"; None where there is none.

    Raises:
        CheckpointError: a variance is below zero.
    """
    if MEAN not in state:
        return None
    variance = state[VARIANCE].double()
    if bool((variance < 0).any()):
        raise CheckpointError(
            f"{VARIANCE!r} holds a variance of {float(variance.min()):.3g}, below zero",
            hint="the file was edited or is damaged: download or save it again",
        )
    return LatentNorm(mean=state[MEAN].double(), std=(variance + EPS).sqrt())
