"""Windows of a video: which tokens see each other, and how they know their places.

Shapes: N samples in F frames of h rows and w columns of tokens, D width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Sizes = tuple[int, int, int]  # of frames, rows and columns


@dataclass(frozen=True, kw_only=True)
class Place:
    """How the tokens of a sample lie: their grid (F, h, w), and by what positions are divided."""

    grid: Sizes
    scale: float


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Which tokens see each other in self-attention, and how they know their places.

    Attributes:
        window: frames, rows and columns of a window; 0 for all of them.
        turns: what rotates queries and keys inside a window: "time", all "axes", or nothing.
    """

    window: Sizes
    turns: str | None

    def sizes(self, place: Place) -> Sizes:
        """Return the frames, rows and columns of a window."""
        frames, rows, columns = (
            size or whole for size, whole in zip(self.window, place.grid, strict=True)
        )
        return frames, rows, columns

    def angles(self, place: Place, freqs: Tensor) -> Tensor | None:
        """Return the angle of every pair of features, (tokens of a window, pairs)."""
        if self.turns is None:
            return None
        sizes = self.sizes(place)
        wide = torch.promote_types(freqs.dtype, torch.float32)
        lines = [torch.arange(size, dtype=wide, device=freqs.device) for size in sizes]
        at = torch.cartesian_prod(*lines)  # (tokens, 3)
        if self.turns == "time":
            return at[:, :1] * freqs
        at = at / at.new_tensor([1.0, place.scale, place.scale])
        return (at[:, :, None] * freqs).flatten(1)


def split(x: Tensor, sizes: Sizes) -> Tensor:
    """(N, F, h, w, D) -> (windows, tokens of one, D); what is missing at the ends is zero."""
    missing = [-whole % size for whole, size in zip(x.shape[1:4], sizes, strict=True)]
    if any(missing):
        x = F.pad(x, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
    counts = [whole // size for whole, size in zip(x.shape[1:4], sizes, strict=True)]
    x = x.reshape(-1, counts[0], sizes[0], counts[1], sizes[1], counts[2], sizes[2], x.shape[-1])
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(0, 3)


def join(x: Tensor, sizes: Sizes, grid: Sizes) -> Tensor:
    """Undo ``split``: (windows, tokens of one, D) -> (N, F, h, w, D)."""
    counts = [-(-whole // size) for whole, size in zip(grid, sizes, strict=True)]
    x = x.reshape(-1, *counts, *sizes, x.shape[-1]).permute(0, 1, 4, 2, 5, 3, 6, 7)
    x = x.flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return x[:, : grid[0], : grid[1], : grid[2]]
