"""U-ViT: a transformer with long skips, in whose stream label and time are tokens.

After "All are Worth Words: A ViT Backbone for Diffusion Models" (arXiv 2209.12152).
Shapes: N samples, C channels, T tokens (those of label and time too), D width, H heads.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dar_probe.checkpoints.header import Header
from dar_probe.errors import CheckpointError
from dar_probe.models import conventions
from dar_probe.models.sit import PatchEmbed, sinusoid, unpatchify
from dar_probe.sites.family import Family, Identified
from dar_probe.sites.stack import Stack
from dar_probe.sites.subject import Subject

# (width, blocks) -> heads of S, M, L and H in the official configs.
HEADS = {(512, 13): 8, (768, 17): 12, (1024, 21): 16, (1152, 29): 16}
PIXELS = 3  # channels of the models that were trained on images, without an autoencoder


@dataclass(frozen=True, kw_only=True)
class UViTConfig:
    """Sizes of a U-ViT.

    Attributes:
        shape: of one sample, (C, h, w).
        depth: blocks, an odd number: the middle one has no partner.
        width, heads, patch: D, H, side of a patch.
        hidden: width of the MLPs.
        rows: number of rows in the label table; 0 without labels.
        qkv_bias: queries, keys and values have a bias.
        time_mlp: the time goes through an MLP.
        conv: a 3x3 convolution ends the model.
    """

    shape: tuple[int, ...]
    depth: int
    width: int
    heads: int
    patch: int
    hidden: int
    rows: int
    qkv_bias: bool
    time_mlp: bool
    conv: bool


class UViT(nn.Module):
    """U-ViT: forward(x (N, C, h, w), t (N,), y (N,)) -> (N, C, h, w).

    Labels y are ignored by a model that has none.
    """

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        width, patch, rows, half = config.width, config.patch, config.rows, config.depth // 2
        channels, side = config.shape[0], config.shape[1] // patch
        self.width, self.patch, self.extras = width, patch, 2 if rows else 1
        self.patch_embed = PatchEmbed(channels, width, patch)
        self.time_embed: nn.Module = nn.Identity()
        if config.time_mlp:
            self.time_embed = nn.Sequential(
                nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
            )
        self.label_emb = nn.Embedding(rows, width) if rows else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.extras + side * side, width))

        def block(skip: bool) -> Block:
            return Block(width, config.heads, config.hidden, qkv_bias=config.qkv_bias, skip=skip)

        self.in_blocks = nn.ModuleList(block(skip=False) for _ in range(half))
        self.mid_block = block(skip=False)
        self.out_blocks = nn.ModuleList(block(skip=True) for _ in range(half))
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, patch * patch * channels)
        self.final_layer: nn.Module = nn.Identity()
        if config.conv:
            self.final_layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict the noise at model time ``t`` (the model's own clock) for labels ``y``."""
        x = self.patch_embed(x)
        wave = F.pad(sinusoid(t, self.width), (0, self.width % 2)).to(x.dtype)
        tokens = [self.time_embed(wave)[:, None], x]
        if self.label_emb is not None:
            tokens = [self.label_emb(y)[:, None], *tokens]
        x = torch.cat(tokens, 1) + self.pos_embed  # (N, T, D)
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())  # the latest skip first
        out = self.decoder_pred(self.norm(x))[:, self.extras :]
        return self.final_layer(unpatchify(out, self.patch))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, in the second half after a linear map of the stream and a skip."""

    def __init__(self, width: int, heads: int, hidden: int, *, qkv_bias: bool, skip: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, qkv_bias)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden)
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        if self.skip_linear is not None:
            assert skip is not None
            x = self.skip_linear(torch.cat([x, skip], -1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(*qkv.unbind(0))  # (N, H, T, D/H)
        return self.proj(out.transpose(1, 2).reshape(n, tokens, width))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Linear, GELU (exact), Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


def identify(header: Header, heads: int | None) -> Identified:
    """Read every size of a U-ViT but the heads from one shape each.

    Raises:
        CheckpointError: it reads text, contradicts itself, or does not tell its heads.
        UsageError: ``heads`` does not fit the file.
    """
    if "context_embed.weight" in header.shapes:
        raise CheckpointError(
            f"{header.shown} is a U-ViT that reads text, not supported yet: it has "
            "'context_embed.weight'",
            hint="dar-probe audit measures a model of any layout in Python",
        )
    width, channels, patch, _ = header.shape("patch_embed.proj.weight", 4)
    hidden, _ = header.shape("mid_block.mlp.fc1.weight", 2)
    rows = header.shape("label_emb.weight", 2)[0] if "label_emb.weight" in header.shapes else 0
    side = conventions.side(header, extras=2 if rows else 1)
    depth = 2 * conventions.depth(header, "in_blocks") + 1
    known = conventions.heads(header, heads, width=width, depth=depth, presets=HEADS)
    pixels = channels == PIXELS
    time = (
        "images, its time is 999 t of a VP SDE" if pixels else "latents, its time counts 1000 steps"
    )
    header.assumptions.append(
        f"a U-ViT with {channels} channels: read as a model of {time}; --objective overrides"
    )
    return Identified(
        family="uvit",
        sizes={
            "depth": depth,
            "width": width,
            "heads": known,
            "patch": patch,
            "hidden": hidden,
            "rows": rows,
            "qkv_bias": "mid_block.attn.qkv.bias" in header.shapes,
            "time_mlp": "time_embed.0.weight" in header.shapes,
            "conv": "final_layer.weight" in header.shapes,
        },
        shape=(channels, patch * side, patch * side),
        # Only models of latents were trained with dropped labels.
        num_classes=conventions.classes(header, rows, dropped=not pixels) if rows else 0,
        objective="vp" if pixels else "uvit",
        assumptions=header.assumptions,
    )


def build(identified: Identified) -> UViT:
    """Build the model; its weights are for the caller to load."""
    return UViT(UViTConfig(shape=identified.shape, **identified.sizes))


def subject(model: nn.Module, identified: Identified) -> Subject:
    """Name the sites of a U-ViT, at sublayer granularity.

    The tokens of label and time are part of the stream and are measured with the others.
    """
    assert isinstance(model, UViT)
    sites = Stack()
    blocks: list[Any] = [*model.in_blocks, model.mid_block, *model.out_blocks]
    for k, block in enumerate(blocks, 1):
        if block.skip_linear is not None:
            sites.fusion(k, block)
        sites.sublayer(k, "attention", block.norm1, block.attn)
        sites.sublayer(k, "mlp", block.norm2, block.mlp)
    return sites.subject(model, identified, head=model.norm, tokens=model.pos_embed.shape[1])


FAMILY = Family(
    name="uvit",
    title="U-ViT",
    marks=(r"in_blocks\.", r"mid_block\.", r"out_blocks\."),
    identify=identify,
    build=build,
    subject=subject,
)
