"""Samples that a checkpoint draws, and the files that they are kept in."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dar_probe.diffusion import samplers as drawing
from dar_probe.diffusion.data import Data
from dar_probe.diffusion.latent_norm import LatentNorm
from dar_probe.diffusion.objective import Objective
from dar_probe.diffusion.samplers import Sampler
from dar_probe.errors import ProbeError, UsageError
from dar_probe.files.text import quote

COLUMNS, TILES, SIDE, GUTTER = 16, 256, 48, 2  # of the picture; a tile is SIDE pixels or more


class Identity(Protocol):
    """What is drawn from a checkpoint, as its file tells."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample of the model: (C, h, w)."""

    @property
    def num_classes(self) -> int:
        """Labels that it knows; 0 without labels."""


class Drawable(Protocol):
    """A loaded checkpoint, as far as drawing samples from it goes."""

    @property
    def model(self) -> nn.Module:
        """A module that takes samples, times and labels."""

    @property
    def objective(self) -> Objective:
        """Of its training."""

    @property
    def identified(self) -> Identity:
        """Shape and labels of its samples."""

    @property
    def file(self) -> dict[str, Any]:
        """Name and the rest of what was read."""

    @property
    def norm(self) -> LatentNorm | None:
        """How its training normalised latents; what is drawn is turned back."""

    @property
    def assumptions(self) -> list[str]:
        """One sentence for each thing that could not be told."""

    def refusing(self) -> AbstractContextManager[None]:
        """Refuse the checkpoint for whatever fails inside."""


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A loaded checkpoint that draws samples, and what decodes them into images."""

    loaded: Drawable
    sampler: Sampler
    batch_size: int
    decode: Callable[[Tensor], Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is drawn: (C, h, w) of latents or images."""
        one = torch.zeros(1, *self.loaded.identified.shape)
        return tuple((one if self.decode is None else self.decode(one)).shape[1:])

    def draw(
        self, labels: Tensor, *, seed: int, on_samples: Callable[[int], None] | None = None
    ) -> Data:
        """Return one sample for each of ``labels`` (N,); sample i is a function of (seed, i).

        Latents are those of the VAE, as ``--data latents:`` takes them.

        Raises:
            ProbeError: a sample is NaN or infinite.
        """
        loaded = self.loaded
        parameter = next(loaded.model.parameters())
        if not 0 <= seed < 2**63:
            raise UsageError(f"the seed {seed} is not between 0 and 2^63")
        with loaded.refusing():
            drawn = drawing.draw(
                loaded.model, loaded.objective, labels, loaded.identified.shape,
                seed=seed, sampler=self.sampler, on_samples=on_samples,
                place=drawing.Place(
                    device=parameter.device, dtype=parameter.dtype, batch_size=self.batch_size
                ),
            )  # fmt: skip
        if not bool(torch.isfinite(drawn).all()):
            raise ProbeError(
                f"samples of {quote(loaded.file['name'])} are NaN or infinite",
                hint="try another --objective or --solver, or more --steps",
            )
        if loaded.norm is not None:
            drawn = loaded.norm.undo(drawn)
        if self.decode is not None:
            drawn = self.decode(drawn)
        return Data(
            name=loaded.file["name"],
            description=self.described(len(labels)),
            latents=drawn,
            labels=labels,
            ids=torch.arange(len(labels)),
        )

    def labels(self, count: int, classes: Sequence[int] = ()) -> Tensor:
        """Return ``count`` labels (count,): ``classes`` in turn, or all of the model's."""
        known = max(self.loaded.identified.num_classes, 1)
        if wrong := [label for label in classes if not 0 <= label < known]:
            raise UsageError(
                f"there is no class {wrong[0]}", hint=f"the model knows 0 to {known - 1}"
            )
        chosen = torch.tensor(list(classes) or list(range(known)))
        return chosen[torch.arange(count) % len(chosen)]

    def described(self, count: int) -> str:
        """Return how samples are drawn, in a few words."""
        solver, guidance = self.sampler.solver, self.sampler.guidance
        steps = "adaptive steps" if solver == "dopri5" else f"{self.sampler.steps} steps"
        space = ", the model's batch norm of latents undone" if self.loaded.norm else ""
        return f"{count} samples, {steps} of {solver}, guidance {guidance:g}{space}"


def pixels(data: Data) -> np.ndarray:
    """Return images (N, H, W, 3), uint8, of samples in [-1, 1] with one or three channels."""
    scaled = ((data.latents.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return scaled.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def save(data: Data, folder: Path) -> None:
    """Write samples: samples.npz for the ADM suite (arr_0, arr_1), and samples.png.

    Samples that are no images go to latents.npz, as ``--data latents:`` reads it, and the picture
    shows their first three channels, each stretched to its own range.
    """
    if data.latents.shape[1] in (1, 3):
        np.savez(folder / "samples.npz", pixels(data), data.labels.numpy())
        shown = data
    else:
        np.savez(folder / "latents.npz", latents=data.latents.numpy(), labels=data.labels.numpy())
        few = data.latents[:, :3]
        low, high = few.amin((0, 2, 3), keepdim=True), few.amax((0, 2, 3), keepdim=True)
        shown = replace(data, latents=2 * (few - low) / (high - low).clamp(min=1e-12) - 1)
    picture(shown).save(folder / "samples.png")


def picture(data: Data) -> Image.Image:
    """Return a grid of the first samples, one column for each class where these are few."""
    images = pixels(data.take(slice(0, TILES)))
    classes = len(set(data.labels[: len(images)].tolist()))
    columns = min(
        classes if 1 < classes <= COLUMNS else math.isqrt(len(images) - 1) + 1, len(images)
    )
    scale = -(-SIDE // images.shape[1])
    images = images.repeat(scale, 1).repeat(scale, 2)
    rows, (high, wide) = -(-len(images) // columns), images.shape[1:3]
    sheet = np.full((rows * (high + GUTTER) - GUTTER, columns * (wide + GUTTER) - GUTTER, 3), 255)
    for at, image in enumerate(images):
        top, left = at // columns * (high + GUTTER), at % columns * (wide + GUTTER)
        sheet[top : top + high, left : left + wide] = image
    return Image.fromarray(sheet.astype(np.uint8))
