"""Representation alignment (REPA, arXiv 2410.06940): hidden tokens that agree with an encoder's.

The term is minus the mean cosine similarity between projected tokens of the model and the patch
tokens that a frozen encoder finds in the clean image.
"""

import math
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dar_probe.errors import UsageError

Encoder = Callable[[Tensor], Tensor]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def encoder(spec: str, device: torch.device | str = "cpu") -> Encoder:
    """Return a frozen encoder: images (N, C, H, W) in [-1, 1] -> tokens (N, T, width), a square.

    ``spec`` is "digits", the shipped classifier's features on a 4 x 4 grid, or a local folder of
    transformers, such as a DINOv2's, whose images are normalised as ImageNet's.

    Raises:
        UsageError: there is no such encoder, or the package for it is missing.
    """
    if spec == "digits":
        with as_file(files("dar_probe.digits") / "encoder.safetensors") as path:
            model: nn.Module = DigitsEncoder()
            model.load_state_dict(load_file(path))
        return _frozen(model, device)
    if not Path(spec).is_dir():
        raise UsageError(
            f"there is no encoder {spec!r}", hint='repa_encoder is "digits" or a local folder'
        )
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise UsageError(
            "an encoder from a folder needs transformers", hint="pip install transformers"
        ) from error
    try:
        model = AutoModel.from_pretrained(
            spec, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # transformers has no common error for what it does not know
        raise UsageError(
            f"the folder {spec!r} is no encoder that transformers opens",
            hint="it takes a config.json and safetensors weights, of a class of the library",
        ) from error
    return _Folder(_frozen(model, device))


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


class _Folder:
    """Feeds a transformers encoder: its own size, channels and normalisation; drops its class."""

    def __init__(self, model: Any) -> None:
        self.model, config = model, model.config
        self.size, self.channels = config.image_size, config.num_channels
        self.tokens = (config.image_size // config.patch_size) ** 2

    def __call__(self, x: Tensor) -> Tensor:
        x = F.interpolate((x + 1) / 2, size=(self.size, self.size), mode="bicubic")
        x = x.expand(-1, self.channels, -1, -1)
        if self.channels == 3:
            mean, std = (x.new_tensor(v).reshape(1, 3, 1, 1) for v in IMAGENET)
            x = (x - mean) / std
        found: Tensor = self.model(pixel_values=x).last_hidden_state[:, -self.tokens :]
        return found


def _frozen(model: nn.Module, device: torch.device | str) -> nn.Module:
    return model.eval().requires_grad_(False).to(device)
