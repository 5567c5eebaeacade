"""Latte: video, in whose blocks the tokens of one frame and those of one place attend in turn.

After "Latte: Latent Diffusion Transformer for Video Generation" (arXiv 2401.03048), variant 1.
Shapes: N samples, F frames, C channels, T tokens of one frame, D width, H heads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dar_probe.checkpoints.header import Header
from dar_probe.errors import CheckpointError
from dar_probe.files.text import quote
from dar_probe.models import conventions, sit
from dar_probe.models.sit import FinalLayer, LabelEmbedder, Mlp, PatchEmbed, TimestepEmbedder
from dar_probe.models.sit_layout import HEADS
from dar_probe.sites.family import Family, Identified
from dar_probe.sites.stack import Stack
from dar_probe.sites.subject import Subject

TABLE = "y_embedder.embedding_table.weight"
TEXT = "text_embedding_projection.1.weight"


@dataclass(frozen=True, kw_only=True)
class LatteConfig:
    """Sizes of a Latte.

    Attributes:
        shape: of one sample, (F, C, h, w).
        depth: blocks, an even number: spatial and temporal ones in turn.
        width, heads, patch: D, H, side of a patch.
        hidden: width of the MLPs.
        rows: number of rows in the label table; 0 without labels.
        learn_sigma: the head has 2C channels; ``Latte.forward`` returns the first C.
    """

    shape: tuple[int, ...]
    depth: int
    width: int
    heads: int
    patch: int
    hidden: int
    rows: int
    learn_sigma: bool


class Latte(nn.Module):
    """Latte: forward(x (N, F, C, h, w), t (N,), y (N,)) -> (N, F, C, h, w).

    The stream is (N, F T, D), frame after frame, in every block; only attention rearranges it.
    Labels y are ignored by a model that has none.
    """

    def __init__(self, config: LatteConfig) -> None:
        super().__init__()
        width, patch = config.width, config.patch
        self.frames, self.channels, side, _ = config.shape
        self.patch, tokens = patch, (side // patch) ** 2
        self.x_embedder = PatchEmbed(self.channels, width, patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.rows, width) if config.rows else None
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.temp_embed = nn.Parameter(torch.zeros(1, self.frames, width))
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.hidden, Axis(self.frames, temporal=k % 2 == 1))
            for k in range(config.depth)
        )
        outputs = self.channels * (2 if config.learn_sigma else 1)
        self.final_layer = FinalLayer(width, patch, outputs)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict the noise at model time ``t`` (the model's own clock) for labels ``y``."""
        shape = x.shape
        x = self.x_embedder(x.flatten(0, 1)) + self.pos_embed  # (N F, T, D)
        x = x.reshape(shape[0], -1, x.shape[-1])  # (N, F T, D)
        c = self.t_embedder(t)  # (N, D)
        if self.y_embedder is not None:
            c = c + self.y_embedder(y)
        for k, block in enumerate(self.blocks):
            if k == 1:  # the first temporal block
                x = x + self.temp_embed.repeat_interleave(self.pos_embed.shape[1], 1)
            x = block(x, c)
        out = self.final_layer(x, c)
        out = out.reshape(shape[0] * self.frames, -1, out.shape[-1])  # (N F, T, p*p*C)
        return sit.unpatchify(out, self.patch)[:, : self.channels].reshape(shape)


@dataclass(frozen=True)
class Axis:
    """Which tokens of a video attend to each other: those of a frame, or those of a place."""

    frames: int
    temporal: bool

    def rows(self, x: Tensor) -> Tensor:
        """Return what attends as one sequence: (N, F T, D) -> (N F, T, D) or (N T, F, D)."""
        x = x.reshape(len(x), self.frames, -1, x.shape[-1])
        return (x.transpose(1, 2) if self.temporal else x).flatten(0, 1)

    def stream(self, x: Tensor, n: int) -> Tensor:
        """Undo ``rows`` for ``n`` samples."""
        x = x.reshape(n, -1, *x.shape[1:])
        return (x.transpose(1, 2) if self.temporal else x).flatten(1, 2)


class Block(nn.Module):
    """Attention along one axis, and MLP, with adaLN-Zero."""

    def __init__(self, width: int, heads: int, hidden: int, axis: Axis) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads, axis)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, F T, D), c (N, D) -> (N, F T, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)  # (N, 1, D) each
        )
        x = x + gate1 * self.attn(sit.modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(sit.modulate(self.norm2(x), shift2, scale2))  # type: ignore[no-any-return]


class Attention(sit.Attention):
    """Multi-head self-attention along one axis of a video."""

    def __init__(self, width: int, heads: int, axis: Axis) -> None:
        super().__init__(width, heads, qk_norm=False)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """(N, F T, D) -> (N, F T, D)."""
        return self.axis.stream(super().forward(self.axis.rows(x)), len(x))


def identify(header: Header, heads: int | None) -> Identified:
    """Read every size of a Latte but the heads from one shape each.

    Raises:
        CheckpointError: it reads text, contradicts itself, or does not tell its heads.
        UsageError: ``heads`` does not fit the file.
    """
    if TEXT in header.shapes:
        raise CheckpointError(
            f"{header.shown} is a Latte that reads text, not supported yet: it has {quote(TEXT)}",
            hint="dar-probe audit measures a model of any layout in Python",
        )
    frame = conventions.frame(header, labelled=TABLE in header.shapes)
    _, frames, _ = header.shape("temp_embed", 3)
    hidden, _ = header.shape("blocks.0.mlp.fc1.weight", 2)
    depth = conventions.depth(header)
    if depth % 2:
        raise header.contradiction(f"{depth} blocks are no pairs of a spatial and a temporal one")
    known = conventions.heads(header, heads, width=frame.width, depth=depth, presets=HEADS)
    if frames == frame.channels:
        header.assumptions.append(f"of {frames} frames and {frames} channels, frames come first")
    header.assumptions.append(
        "read as Latte: steps 0..999, linear betas, noise; --objective overrides"
    )
    return Identified(
        family="latte",
        sizes={
            "depth": depth,
            "width": frame.width,
            "heads": known,
            "patch": frame.patch,
            "hidden": hidden,
            "rows": frame.rows,
            "learn_sigma": frame.learn_sigma,
        },
        shape=(frames, *frame.shape),
        num_classes=conventions.classes(header, frame.rows) if frame.rows else 0,
        objective="dit",
        assumptions=header.assumptions,
    )


def build(identified: Identified) -> Latte:
    """Build the model; its weights are for the caller to load."""
    return Latte(LatteConfig(shape=identified.shape, **identified.sizes))


def subject(model: nn.Module, identified: Identified) -> Subject:
    """Name the sites of a Latte, at sublayer granularity.

    Blocks of odd numbers are spatial. The positions in time enter before block 2 as a fusion.
    """
    assert isinstance(model, Latte)
    sites = Stack()
    for k, block in enumerate(model.blocks, 1):
        assert isinstance(block, Block)
        if k == 2:
            sites.fusion(k, model.blocks[0], after=True, name="temporal position fusion")
        gate = block.adaLN_modulation
        sites.sublayer(k, "attention", block.norm1, block.attn, gate, (2, 6))
        sites.sublayer(k, "mlp", block.norm2, block.mlp, gate, (5, 6))
    tokens = model.frames * model.pos_embed.shape[1]
    return sites.subject(model, identified, head=model.final_layer.norm_final, tokens=tokens)


FAMILY = Family(
    name="latte",
    title="Latte",
    marks=(r"x_embedder\.proj\.weight\Z", r"blocks\.0\.adaLN_modulation\.", r"temp_embed\Z"),
    identify=identify,
    build=build,
    subject=subject,
)
