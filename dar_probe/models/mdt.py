"""MDTv2: an encoder with long skips, then a decoder, whose attention knows relative positions.

After "MDTv2: Masked Diffusion Transformer is a Strong Image Synthesizer" (arXiv 2303.14389).
Shapes: N samples, C channels, T tokens, D width, H heads.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dar_probe.checkpoints.header import Header
from dar_probe.errors import CheckpointError
from dar_probe.models import conventions
from dar_probe.models.sit import (
    FinalLayer,
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    TimestepEmbedder,
    modulate,
    unpatchify,
)
from dar_probe.sites.family import Family, Identified
from dar_probe.sites.stack import Stack
from dar_probe.sites.subject import Subject

TABLE = "en_inblocks.0.attn.rel_pos_bias.relative_position_bias_table"


@dataclass(frozen=True, kw_only=True)
class MDTConfig:
    """Sizes of an MDTv2.

    Attributes:
        shape: of one sample, (C, h, w).
        half: blocks of each half of the encoder.
        decoder: blocks of the decoder.
        width, heads, patch: D, H, side of a patch.
        hidden: width of the MLPs.
        rows: number of rows in the label table.
        learn_sigma: the head has 2C channels; ``MDT.forward`` returns the first C.
    """

    shape: tuple[int, ...]
    half: int
    decoder: int
    width: int
    heads: int
    patch: int
    hidden: int
    rows: int
    learn_sigma: bool


class MDT(nn.Module):
    """MDTv2 without masking: forward(x (N, C, h, w), t (N,), y (N,)) -> (N, C, h, w).

    ``sideblocks`` and ``mask_token`` work in masked training alone: they hold weights and never
    run.
    """

    def __init__(self, config: MDTConfig) -> None:
        super().__init__()
        width, patch = config.width, config.patch
        channels, side = config.shape[0], config.shape[1] // patch
        self.channels, self.patch = channels, patch
        self.x_embedder = PatchEmbed(channels, width, patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.rows, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side, width))

        def blocks(count: int, *, skip: bool) -> nn.ModuleList:
            return nn.ModuleList(
                Block(width, config.heads, config.hidden, side, skip) for _ in range(count)
            )

        self.en_inblocks = blocks(config.half, skip=False)
        self.en_outblocks = blocks(config.half, skip=True)
        self.de_blocks = blocks(config.decoder, skip=True)
        self.sideblocks = blocks(1, skip=False)
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, side * side, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.final_layer = FinalLayer(width, patch, channels * (2 if config.learn_sigma else 1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict the noise at model time ``t`` (the model's own clock) for labels ``y``."""
        x = self.x_embedder(x) + self.pos_embed  # (N, T, D)
        c = self.t_embedder(t) + self.y_embedder(y)  # (N, D)
        embedding, skips = x, []
        for block in self.en_inblocks:
            x = block(x, c)
            skips.append(x)
        for block in self.en_outblocks:
            x = block(x, c, skips.pop())  # the latest skip first
        x = x + self.decoder_pos_embed
        for block in self.de_blocks:
            x = block(x, c, embedding)  # the same skip for each
        return unpatchify(self.final_layer(x, c), self.patch)[:, : self.channels]


class Block(nn.Module):
    """Attention and MLP with adaLN-Zero, after a linear map of the stream and a skip if any."""

    def __init__(self, width: int, heads: int, hidden: int, side: int, skip: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads, side)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: Tensor, c: Tensor, skip: Tensor | None = None) -> Tensor:
        """(N, T, D), c (N, D) -> (N, T, D)."""
        if self.skip_linear is not None:
            assert skip is not None
            x = self.skip_linear(torch.cat([x, skip], -1))
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)  # (N, 1, D) each
        )
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention, with a learned bias for each relative position."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_bias = RelativePositionBias(side, heads)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (N, H, T, D/H) each
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.rel_pos_bias()[None])
        return self.proj(out.transpose(1, 2).reshape(n, tokens, width))  # type: ignore[no-any-return]


class RelativePositionBias(nn.Module):
    """One learned number for each head and each offset between two tokens of a square grid."""

    relative_position_index: Tensor

    def __init__(self, side: int, heads: int) -> None:
        super().__init__()
        # Three rows more than offsets: BEiT's, for a class token that MDT does not have.
        rows = (2 * side - 1) ** 2 + 3
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        self.register_buffer("relative_position_index", relative_positions(side))

    def forward(self) -> Tensor:
        """Return what is added to the scores (H, T, T)."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)

    def make_tables(self) -> None:
        """Refuse an index from a file that is not the grid's: it would read wrong biases.

        Raises:
            CheckpointError: it is not.
        """
        found = self.relative_position_index
        expected = relative_positions(math.isqrt(len(found)))
        if found.dtype != expected.dtype or not torch.equal(found, expected):
            raise CheckpointError(
                "the checkpoint has a 'relative_position_index' that is not of a square grid",
                hint="it was edited, or put together from two models",
            )


def relative_positions(side: int) -> Tensor:
    """Return the row of the bias table (T, T) for tokens i and j of a grid, T = side^2."""
    line = torch.arange(side)
    offset = line[:, None] - line + side - 1  # (side, side), 0 to 2 side - 2
    pairs = offset[:, None, :, None] * (2 * side - 1) + offset[None, :, None, :]
    return pairs.reshape(side * side, side * side)


def identify(header: Header, heads: int | None) -> Identified:
    """Read every size of an MDTv2 from one shape each.

    Raises:
        CheckpointError: it is the first MDT, or contradicts itself.
        UsageError: ``heads`` does not fit the file.
    """
    if "blocks.0.attn.qkv.weight" in header.shapes:
        raise CheckpointError(
            f"{header.shown} looks like the first MDT, not supported yet: it has "
            "'blocks.0.attn.qkv.weight' beside 'sideblocks'",
            hint="MDTv2 is supported; dar-probe audit measures a model of any layout in Python",
        )
    frame = conventions.frame(header)
    _, shaped = header.shape(TABLE, 2)
    hidden, _ = header.shape("en_inblocks.0.mlp.fc1.weight", 2)
    conventions.check_heads(header, TABLE, shaped, frame.width)
    sizes = {
        "half": conventions.depth(header, "en_inblocks"),
        "decoder": conventions.depth(header, "de_blocks"),
        "width": frame.width,
        "heads": conventions.heads(header, heads, width=frame.width, shaped=shaped),
        "patch": frame.patch,
        "hidden": hidden,
        "rows": frame.rows,
        "learn_sigma": frame.learn_sigma,
    }
    header.assumptions.append(
        "read as MDTv2: steps 0..999, linear betas, noise; --objective overrides"
    )
    return Identified(
        family="mdt",
        sizes=sizes,
        shape=frame.shape,
        num_classes=conventions.classes(header, frame.rows),
        objective="dit",
        assumptions=header.assumptions,
    )


def build(identified: Identified) -> MDT:
    """Build the model; its weights are for the caller to load."""
    return MDT(MDTConfig(shape=identified.shape, **identified.sizes))


def subject(model: nn.Module, identified: Identified) -> Subject:
    """Name the sites of an MDTv2, at sublayer granularity.

    Between encoder and decoder two fusions follow each other: positions, then the first skip.
    """
    assert isinstance(model, MDT)
    sites = Stack()
    blocks: list[Any] = [*model.en_inblocks, *model.en_outblocks, *model.de_blocks]
    for k, block in enumerate(blocks, 1):
        if k == 2 * len(model.en_inblocks) + 1:
            sites.fusion(k, blocks[k - 2], after=True, name="decoder position fusion")
        if block.skip_linear is not None:
            sites.fusion(k, block)
        gate = block.adaLN_modulation
        sites.sublayer(k, "attention", block.norm1, block.attn, gate, (2, 6))
        sites.sublayer(k, "mlp", block.norm2, block.mlp, gate, (5, 6))
    head, tokens = model.final_layer.norm_final, model.pos_embed.shape[1]
    return sites.subject(model, identified, head=head, tokens=tokens)


FAMILY = Family(
    name="mdt",
    title="MDTv2",
    # The first MDT has side blocks too: it is told apart and refused by name.
    marks=(r"(en_inblocks|sideblocks)\.",),
    identify=identify,
    build=build,
    subject=subject,
)
