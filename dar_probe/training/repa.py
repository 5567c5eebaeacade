"""Representation alignment (REPA, arXiv 2410.06940): hidden tokens that agree with an encoder's.

The term is minus the mean cosine similarity between projected tokens of the model and the patch
tokens that a frozen encoder finds in the clean image.
"""

import math
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dar_probe.diffusion.features import ImageModel
from dar_probe.errors import UsageError

Encoder = Callable[[Tensor], Tensor]


def encoder(spec: str, device: torch.device | str = "cpu") -> Encoder:
    """Return a frozen encoder: images (N, C, H, W) in [-1, 1] -> tokens (N, T, width), a square.

    ``spec`` is "digits", a shipped network's features on a 4 x 4 grid (another one than the
    classifier in whose features samples are judged), or a local folder of transformers, such as a
    DINOv2's.

    Raises:
        UsageError: there is no such encoder, or the package for it is missing.
    """
    if spec == "digits":
        with as_file(files("dar_probe.digits") / "encoder.safetensors") as path:
            digits = DigitsEncoder()
            digits.load_state_dict(load_file(path))
        return digits.eval().requires_grad_(False).to(device)
    model = ImageModel(Path(spec), device)
    count = (model.size // model.model.config.patch_size) ** 2

    def tokens(images: Tensor) -> Tensor:
        found: Tensor = model(images).last_hidden_state[:, -count:]  # those of its class come first
        return found

    return tokens


def width(encoder: Encoder, x: Tensor) -> int:
    """Return the width of an encoder's tokens, tried on samples ``x`` (N, C, H, W).

    Raises:
        UsageError: it does not take them.
    """
    try:
        return int(encoder(x).shape[-1])
    except RuntimeError as error:
        raise UsageError(
            f"the encoder of REPA takes no samples of shape {tuple(x.shape[1:])}",
            hint="repa_encoder must be one for such images; latents are none",
        ) from error


def misalignment(projected: Tensor, tokens: Tensor) -> Tensor:
    """Return minus the mean cosine similarity (N,) of tokens (N, T, D) and the encoder's.

    The encoder's (N, T', D) are resized to the other's grid, bilinearly, where the two differ.
    """
    side, own = (math.isqrt(t.shape[1]) for t in (projected, tokens))
    if side != own:
        grid = tokens.transpose(1, 2).reshape(len(tokens), -1, own, own)
        grid = F.interpolate(grid, size=(side, side), mode="bilinear")
        tokens = grid.flatten(2).transpose(1, 2)
    return -F.cosine_similarity(projected.float(), tokens.float(), dim=-1).mean(1)


class DigitsEncoder(nn.Module):
    """Three convolutions, (N, 1, 8, 8) -> (N, 16, 48); trained by fixtures/encoder.py."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.GELU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(48, 48, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens of images."""
        return self.layers(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]
