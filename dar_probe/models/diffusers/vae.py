"""Latents to images, with a local folder of diffusers' AutoencoderKL."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dar_probe.errors import UsageError, blamed
from dar_probe.models.diffusers.model import quiet

BATCH = 8


def load_decoder(
    folder: Path, device: torch.device, *, scaled: bool = True
) -> Callable[[Tensor], Tensor]:
    """Return a function of latents (N, C, h, w) to images (N, 3, H, W) in [-1, 1].

    Args:
        folder: with config.json and safetensors.
        device: where it runs.
        scaled: latents are scaled as most models take them; else they are the VAE's own.

    Raises:
        UsageError: diffusers is not there, or the folder holds no such model.
    """
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"there is no VAE in {str(folder)!r}",
            hint="--vae takes a local folder of AutoencoderKL, with config.json and safetensors",
        )
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise UsageError(
            "a VAE needs diffusers", hint="pip install 'dar-probe[diffusers]'"
        ) from None

    def refuse(why: str) -> UsageError:
        return UsageError(f"the VAE in {str(folder)!r} does not decode these latents: {why}")

    with blamed(refuse), quiet():
        kind: Any = AutoencoderKL
        vae = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
        )
        vae = vae.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def decode(latents: Tensor) -> Tensor:
        if scaled:
            latents = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        with blamed(refuse):
            parts = [
                vae.decode(part.to(device)).sample.cpu() for part in torch.split(latents, BATCH)
            ]
        return torch.cat(parts).clamp(-1, 1)

    return decode
