"""Open-Sora's STDiT3: video with text, whose spatial and temporal blocks take turns.

After "Open-Sora: Democratizing Efficient Video Production for All" (arXiv 2412.20404), versions
1.2 and 1.3, with the official parameter names.
Shapes: N samples, C channels, T = F h w tokens in F frames of h rows and w columns, L tokens of
text with E features each, D width, H heads.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dar_probe.models import sit
from dar_probe.models.sit import Mlp, TimestepEmbedder
from dar_probe.models.udit import named, turn
from dar_probe.models.windows import Mixing, Place, Sizes, join, split

PIXELS = 8  # a side of the latents' cells: the image autoencoder of Stable Diffusion
VIDEO_RATE, IMAGE_RATE = 24, 120  # frames a second; an image has the second, too


@dataclass(frozen=True, kw_only=True)
class STDiT3Config:
    """Sizes of an STDiT3, and which of its parts it has.

    Attributes:
        depth: blocks of each kind.
        width, heads, hidden: D, H, width of the MLPs.
        channels, patch: C, and frames, rows and columns of a patch.
        learn_sigma: the head has 2C channels; ``STDiT3.forward`` returns the first C.
        caption: (L, E) of the null caption.
        frequencies: number of frequencies in rotations.
        qk_norm: queries and keys are normalised.
        window: frames, rows and columns that see each other in temporal blocks; 0 for all of them.
        axial: a third of each head is rotated by each axis, not the whole by time.
        spatial_turns: spatial blocks rotate queries and keys too.
        base_side: side in pixels of pictures whose neighbouring tokens are one position apart.
    """

    depth: int
    width: int
    heads: int
    hidden: int
    channels: int
    patch: Sizes
    learn_sigma: bool
    caption: tuple[int, int]
    frequencies: int
    qk_norm: bool
    window: Sizes
    axial: bool
    spatial_turns: bool
    base_side: float


class STDiT3(nn.Module):
    """STDiT3: forward(x (N, C, F p, h p, w p), t (N,), y (N,)) and the output likewise.

    Labels y are ignored. The stream is (N, T, D), frame after frame, row after row.
    """

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        width = config.width
        self.channels, self.patch, self.base_side = config.channels, config.patch, config.base_side
        self.x_embedder = named(
            proj=nn.Conv3d(config.channels, width, config.patch, stride=config.patch)
        )
        self.t_embedder = TimestepEmbedder(width)
        self.fps_embedder = TimestepEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder = CaptionEmbedder(*config.caption, width)
        self.rope = Frequencies(config.frequencies)
        turns = "axes" if config.axial else "time"
        spatial = Mixing(window=(1, 0, 0), turns="axes" if config.spatial_turns else None)
        temporal = Mixing(window=config.window, turns=turns)
        self.spatial_blocks = nn.ModuleList(Block(config, spatial) for _ in range(config.depth))
        self.temporal_blocks = nn.ModuleList(Block(config, temporal) for _ in range(config.depth))
        outputs = config.channels * (2 if config.learn_sigma else 1)
        self.final_layer = Head(width, math.prod(config.patch) * outputs)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        caption: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Predict at model time ``t`` (the model's own clock).

        Args:
            x: noised latents; every frame is noised alike.
            t: model time.
            y: labels, which the model has no use for.
            caption: (N, L, E) embedded text; None: the model's own null caption.
            mask: (N, L), true where a token of the caption is text; None: everywhere.
        """
        n, _, frames, *sides = x.shape
        scale = PIXELS * math.sqrt(math.prod(sides)) / self.base_side
        x = self.x_embedder(x)  # (N, D, F, h, w)
        place = Place(grid=(x.shape[2], x.shape[3], x.shape[4]), scale=scale)
        x = x.flatten(3).permute(0, 2, 3, 1)  # (N, F, h w, D)
        x = (x + positions(x, place)).reshape(n, -1, x.shape[-1])
        rate = x.new_full((n,), IMAGE_RATE if frames == 1 else VIDEO_RATE)
        c = self.t_embedder(t) + self.fps_embedder(rate)  # (N, D)
        shared = self.t_block(c)  # (N, 6 D)
        text = self.y_embedder(caption).expand(n, -1, -1)  # (N, L, D)
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            for block in (spatial, temporal):
                x = block(x, shared, text, mask, place, self.rope.freqs)
        out: Tensor = self.final_layer(x, c).reshape(n, *place.grid, *self.patch, -1)
        out = out.permute(0, 7, 1, 4, 2, 5, 3, 6)  # (N, C, F, pf, h, ph, w, pw)
        return out.flatten(6, 7).flatten(4, 5).flatten(2, 3)[:, : self.channels]


def positions(like: Tensor, place: Place) -> Tensor:
    """Return the (h w, D) sin-cos table: half for the column, half for the row.

    The longer side has positions closer together, so that pictures of one area span the same.
    """
    _, rows, columns = place.grid
    wide, width = torch.promote_types(like.dtype, torch.float32), like.shape[-1]
    base = round(math.sqrt(rows * columns)) / place.scale
    omega = 10000.0 ** -(torch.arange(0, width // 2, 2, dtype=wide, device=like.device) * 2 / width)
    parts = []
    for size in (columns, rows):
        angles = torch.arange(size, dtype=wide, device=like.device)[:, None] * (base / size) * omega
        parts.append(torch.cat([angles.sin(), angles.cos()], dim=-1))  # (size, D/2)
    table = torch.cat([parts[0].repeat(rows, 1), parts[1].repeat_interleave(columns, 0)], dim=-1)
    return table.to(like.dtype)


class Frequencies(nn.Module):
    """The frequencies of rotations, which the file holds."""

    freqs: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.zeros(count))


class CaptionEmbedder(nn.Module):
    """Embedded text to the model's width; the null caption stands for no text."""

    y_embedding: Tensor

    def __init__(self, tokens: int, features: int, width: int) -> None:
        super().__init__()
        self.y_proj = Mlp(features, width)
        self.y_proj.fc2 = nn.Linear(width, width)
        self.register_buffer("y_embedding", torch.zeros(tokens, features))

    def forward(self, caption: Tensor | None) -> Tensor:
        """(N, L, E) -> (N, L, D), or None -> (1, L, D)."""
        return self.y_proj(self.y_embedding[None] if caption is None else caption)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, modulated by the time, and attention to the text between them."""

    def __init__(self, config: STDiT3Config, mixing: Mixing) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, config.heads, config.qk_norm, mixing)
        self.cross_attn = CrossAttention(width, config.heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, config.hidden)
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))
        self.modulation = nn.Identity()  # its output is the sum of table and time

    def forward(
        self, x: Tensor, shared: Tensor, text: Tensor, mask: Tensor | None, place: Place,
        freqs: Tensor,
    ) -> Tensor:  # fmt: skip
        """(N, T, D), shared (N, 6 D), text (N, L, D) -> (N, T, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self.modulation(self.scale_shift_table.flatten() + shared).unsqueeze(1).chunk(6, dim=-1)
        )  # (N, 1, D) each
        x = x + gate1 * self.attn(sit.modulate(self.norm1(x), shift1, scale1), place, freqs)
        x = x + self.cross_attn(x, text, mask)
        return x + gate2 * self.mlp(sit.modulate(self.norm2(x), shift2, scale2))  # type: ignore[no-any-return]


class Attention(sit.Attention):
    """Multi-head self-attention inside each window of a video."""

    def __init__(self, width: int, heads: int, qk_norm: bool, mixing: Mixing) -> None:
        super().__init__(width, heads, qk_norm=False)
        if qk_norm:
            self.q_norm = nn.RMSNorm(width // heads, eps=1e-6)
            self.k_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.mixing = mixing

    def forward(self, x: Tensor, place: Place, freqs: Tensor) -> Tensor:  # type: ignore[override]
        """(N, T, D) -> (N, T, D)."""
        n, sizes = len(x), self.mixing.sizes(place)
        rows = split(x.reshape(n, *place.grid, -1), sizes)  # (M, tokens, D)
        qkv = self.qkv(rows).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (M, H, tokens, D/H) each
        q, k = self.q_norm(q), self.k_norm(k)
        angles = self.mixing.angles(place, freqs)
        if angles is not None:
            q, k = turn(q, angles), turn(k, angles)
        there = split(x.new_ones(1, *place.grid, 1), sizes)[:, None, None, :, 0] > 0
        mask = None if len(there) * there.shape[-1] == x.shape[1] else there.repeat(n, 1, 1, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = self.proj(out.transpose(1, 2).flatten(2))
        return join(out, sizes, place.grid).flatten(1, 3)


class CrossAttention(nn.Module):
    """Multi-head attention of the stream, as it is, to the text."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        """(N, T, D), text (N, L, D) -> (N, T, D)."""
        q = self.q_linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        kv = self.kv_linear(text).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        k, v = kv.unbind(0)  # (N, H, L, D/H) each
        seen = None if mask is None else mask[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Head(nn.Module):
    """Norm, modulation and a linear map to patches."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, features)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, T, D), c (N, D) -> (N, T, features)."""
        shift, scale = (self.scale_shift_table + c[:, None]).chunk(2, dim=1)  # (N, 1, D) each
        return self.linear(sit.modulate(self.norm_final(x), shift, scale))  # type: ignore[no-any-return]
