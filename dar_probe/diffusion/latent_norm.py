"""What brings a VAE's latents into the space that a model is trained in."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dar_probe.errors import CheckpointError

MEAN, VARIANCE = "bn.running_mean", "bn.running_var"
EPS = 1e-4  # REPA-E's (arXiv 2504.10483; models/sit.py); added to the variance
FACTOR = 0.18215  # of Stable Diffusion's VAE, in DiT, SiT and REPA
CHANNELS = 4  # of that VAE
# What nobody wonders about: spreads of normalised and of scaled channels, and means of the former.
USUAL, SCALED, FAR = (0.5, 2.0), (0.4, 3.0), 1.0
ROWS = 64  # that are widened at once


@dataclass(frozen=True, kw_only=True)
class LatentNorm:
    """(x - mean) / std, before noise is added.

    Attributes:
        mean, std: (C,) per channel, or (1,) of all, float64, on the CPU.
        by: what it is, for messages, after "normalised by" or "scaled by".
        centred: mean and std are those of the data, so that 0 and 1 are left of them.
    """

    mean: Tensor
    std: Tensor
    by: str
    centred: bool = True

    def apply(self, latents: Tensor) -> Tensor:
        """Return latents (N, C, h, w) of the VAE's space as the model takes them, in float32."""
        mean, std = self._columns(latents)
        out = torch.empty(latents.shape)
        for at in range(0, len(latents), ROWS):
            out[at : at + ROWS] = (latents[at : at + ROWS].double() - mean) / std
        return out

    def undo(self, latents: Tensor) -> Tensor:
        """Return latents (N, C, h, w) that the model drew in the VAE's space."""
        mean, std = self._columns(latents)
        return (latents.double() * std + mean).to(latents.dtype)

    @property
    def said(self) -> str:
        """What it does, in a few words."""
        return f"{'normalised' if self.centred else 'scaled'} by {self.by}"

    def doubt(self, latents: Tensor) -> str | None:
        """Say where latents (N, C, h, w) behind it are hardly those that it was made for."""
        channels = latents[:1000].double().transpose(0, 1).flatten(1)
        spread = float(channels.std(1, correction=0).median())
        offset = float(channels.mean(1).square().mean().sqrt())
        low, high = USUAL if self.centred else SCALED
        if low <= spread <= high and (offset <= FAR or not self.centred):
            return None
        return (
            f"{self.said[0].upper()}{self.said[1:]}, a channel of the latents has a standard "
            f"deviation of {spread:.3g} and a mean of {offset:.3g} away from 0, instead of about 1 "
            "and 0: they were scaled or normalised before, or are of another VAE, and every number "
            "below is wrong. Give what the VAE itself returns."
        )

    def _columns(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (latents.ndim - 2))
        return self.mean.reshape(shape), self.std.reshape(shape)


STABLE_DIFFUSION = LatentNorm(
    mean=torch.zeros(1, dtype=torch.float64),
    std=1 / torch.tensor([FACTOR], dtype=torch.float64),
    by=f"{FACTOR}, the factor of Stable Diffusion's VAE",
    centred=False,
)


def of_weights(state: Mapping[str, Tensor]) -> LatentNorm | None:
    """Return the norm that a file holds as a batch norm called "bn"; None where there is none.

    The model itself never applies it: REPA-E's training does so before it adds noise.

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
    return LatentNorm(
        mean=state[MEAN].double(),
        std=(variance + EPS).sqrt(),
        by="the batch norm in the model's file (bn)",
    )
