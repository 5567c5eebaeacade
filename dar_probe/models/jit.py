"""JiT: a transformer on patches of pixels, joined midway by copies of the label as tokens.

After "Back to Basics: Let Denoising Generative Models Denoise" (arXiv 2511.13720), with the
official parameter names. Shapes: N samples, C channels, T tokens of the image, K in-context tokens,
D width, H heads.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dar_probe.checkpoints.header import Header
from dar_probe.diffusion import objectives
from dar_probe.errors import CheckpointError
from dar_probe.files.text import quote
from dar_probe.models import conventions
from dar_probe.models.lightningdit import Block, FinalLayer, Rotary
from dar_probe.models.sit import LabelEmbedder, TimestepEmbedder, unpatchify
from dar_probe.sites.family import Family, Identified
from dar_probe.sites.stack import Stack
from dar_probe.sites.subject import WHOLE, Subject, View

# (width, depth) -> blocks before the in-context tokens, of B, L and H.
STARTS = {(768, 12): 4, (1024, 24): 8, (1280, 32): 10}
NORM = "blocks.0.attn.q_norm.weight"
SIDE = 256  # pixels of a side up to which the noise has unit variance


@dataclass(frozen=True, kw_only=True)
class JiTConfig:
    """Sizes of a JiT.

    Attributes:
        shape: of one sample, (C, h, w).
        depth: blocks.
        width, heads, patch: D, H, side of a patch.
        bottleneck: channels between the two maps of a patch.
        hidden: width of the MLPs.
        rows: number of rows in the label table.
        context: in-context tokens K; 0 without.
        start: blocks before they join the image's tokens.
    """

    shape: tuple[int, ...]
    depth: int
    width: int
    heads: int
    patch: int
    bottleneck: int
    hidden: int
    rows: int
    context: int
    start: int


class JiT(nn.Module):
    """forward(x (N, C, h, w), t (N,), y (N,)) -> data (N, C, h, w); t = 0 is noise."""

    def __init__(self, config: JiTConfig) -> None:
        super().__init__()
        width, heads, patch = config.width, config.heads, config.patch
        channels, side = config.shape[0], config.shape[1] // patch
        tokens, size = side * side, width // heads
        self.patch, self.context, self.start = patch, config.context, config.start
        self.x_embedder = BottleneckEmbed(channels, config.bottleneck, width, patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.rows, width)
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, width), requires_grad=False)
        if config.context:
            self.in_context_posemb = nn.Parameter(torch.empty(1, config.context, width))
        self.feat_rope = Rotary(tokens, size, stored=False)
        self.feat_rope_incontext = Rotary(config.context + tokens, size, stored=False)
        self.blocks = nn.ModuleList(
            Block(
                width, heads, hidden=config.hidden, swiglu=True, rmsnorm=True, qk_norm=True,
                shift=True,
            )
            for _ in range(config.depth)
        )  # fmt: skip
        self.final_layer = FinalLayer(width, patch * patch * channels, rmsnorm=True)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict the data at model time ``t`` (the model's own clock) for labels ``y``."""
        x = self.x_embedder(x) + self.pos_embed  # (N, T, D)
        label = self.y_embedder(y)
        c = (self.t_embedder(t) + label)[:, None]  # (N, 1, D)
        for k, block in enumerate(self.blocks):
            if self.context and k == self.start:
                x = torch.cat([label[:, None] + self.in_context_posemb, x], 1)  # (N, K + T, D)
            x = block(x, c, self.feat_rope if k < self.start else self.feat_rope_incontext)
        return unpatchify(self.final_layer(x[:, self.context :], c), self.patch)

    def make_tables(self) -> None:
        """Compute the rotary tables, which are in no file; in-context tokens do not turn."""
        for rope, extras in ((self.feat_rope, 0), (self.feat_rope_incontext, self.context)):
            tokens, size = rope.freqs_cos.shape
            angles = rotary_angles(math.isqrt(tokens - extras), size)
            angles = F.pad(angles, (0, 0, extras, 0))
            rope.freqs_cos = angles.cos().to(self.pos_embed)
            rope.freqs_sin = angles.sin().to(self.pos_embed)


class BottleneckEmbed(nn.Module):
    """Image to patch tokens, through fewer channels than the tokens have."""

    def __init__(self, channels: int, bottleneck: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(channels, bottleneck, patch, stride=patch, bias=False)
        self.proj2 = nn.Conv2d(bottleneck, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, T, D)."""
        return self.proj2(self.proj1(x)).flatten(2).transpose(1, 2).contiguous()  # type: ignore[no-any-return]


def rotary_angles(side: int, size: int) -> Tensor:
    """Return angles (side^2, size) in float64: half of a head for the row, half for the column."""
    steps = torch.arange(0, size // 2, 2, dtype=torch.float64) / (size // 2)
    line = torch.outer(torch.arange(side, dtype=torch.float64), 10000.0**-steps)
    line = line.repeat_interleave(2, 1)  # (side, size / 2)
    return torch.cat([line.repeat_interleave(side, 0), line.repeat(side, 1)], 1)


def identify(header: Header, heads: int | None) -> Identified:
    """Read every size of a JiT from one shape each, and its start from the settings or presets.

    Raises:
        CheckpointError: it contradicts itself, or does not tell where its in-context tokens start.
        UsageError: ``heads`` does not fit the file.
    """
    bottleneck, channels, patch, _ = header.shape("x_embedder.proj1.weight", 4)
    width, *_ = header.shape("x_embedder.proj2.weight", 4)
    rows, _ = header.shape("y_embedder.embedding_table.weight", 2)
    _, hidden = header.shape("blocks.0.mlp.w3.weight", 2)
    (size,) = header.shape(NORM, 1)
    if size % 4:  # rotary tables are pairs for rows and pairs for columns
        raise header.misshapen(NORM)
    shaped, depth = conventions.heads_of_size(header, NORM, width), conventions.depth(header)
    side = patch * conventions.side(header)
    context = 0
    if "in_context_posemb" in header.shapes:
        _, context, _ = header.shape("in_context_posemb", 3)
    return Identified(
        family="jit",
        sizes={
            "depth": depth,
            "width": width,
            "heads": conventions.heads(header, heads, width=width, shaped=shaped),
            "patch": patch,
            "bottleneck": bottleneck,
            "hidden": hidden,
            "rows": rows,
            "context": context,
            "start": _start(header, width, depth, context),
        },
        shape=(channels, side, side),
        num_classes=_classes(header, rows),
        objective=_objective(header, side),
        assumptions=header.assumptions,
    )


def _start(header: Header, width: int, depth: int, context: int) -> int:
    """Return how many blocks come before the in-context tokens; no shape tells it."""
    if not context:
        return depth
    told = header.told("in_context_start")
    start = STARTS.get((width, depth)) if told is None else told
    if start is None:
        raise CheckpointError(
            f"{header.shown} does not tell before which block its {context} in-context tokens "
            f"start, and no preset has width {width} and depth {depth}",
            hint="save the number of blocks before them with the weights: "
            "torch.save({'model': state, 'args': {'in_context_start': 4}}, FILE)",
        )
    if not isinstance(start, int) or isinstance(start, bool) or not 0 <= start < depth:
        raise header.contradiction(f"its in_context_start is {quote(start, 40)} of {depth} blocks")
    if told is None:
        header.assumptions.append(
            f"in-context tokens from block {start + 1} on, by the preset for width {width}, "
            f"depth {depth}"
        )
    header.assumptions.append(
        f"the {context} in-context tokens of blocks {start + 1} to {depth} are neither measured "
        "nor ablated, the image's alone are"
    )
    return start


def _classes(header: Header, rows: int) -> int:
    """Return the classes: JiT's label table always has one row more, for dropped labels."""
    told = header.told("class_num")
    classes = told if conventions.is_count(told) else rows - 1
    if classes != rows - 1 or not classes:
        raise header.contradiction(f"{classes} classes, and a label table of {rows} rows")
    return classes


def _objective(header: Header, side: int) -> str:
    """Return the name of the objective for the noise scale and the least divisor in the settings.

    Noise is scaled with the resolution: 1 at 256 pixels, 2 at 512.
    """
    scale, floor = header.told("noise_scale"), header.told("t_eps")
    if scale is None:
        scale = max(1.0, side / SIDE)
        header.assumptions.append(
            f"nothing tells the noise scale: {scale:g} for images of {side} pixels; "
            "--objective jit:SCALE overrides"
        )
    if floor is None:
        floor = 0.05
        header.assumptions.append(
            "nothing tells the least 1 - t by which the loss divides: 0.05; "
            "--objective jit:SCALE:LEAST overrides"
        )
    for value, most in ((scale, objectives.MAX_NOISE), (floor, 1)):
        if not isinstance(value, int | float) or not 0 < value <= most:
            said = f"its noise_scale is {quote(scale, 40)} and its t_eps {quote(floor, 40)}"
            raise header.contradiction(said)
    return objectives.jit(float(scale), float(floor)).name


def build(identified: Identified) -> JiT:
    """Return the model, its weights not yet filled and its rotary tables not yet made."""
    return JiT(JiTConfig(shape=identified.shape, **identified.sizes))


def subject(model: nn.Module, identified: Identified) -> Subject:
    """Name the sites: two sublayers a block, whose writes are added to one stream.

    The stream is that of the image's tokens: those that join it midway are other tokens, and a
    state with them does not compare with one before.
    """
    assert isinstance(model, JiT)
    sites = Stack()
    blocks: list[Any] = [*model.blocks]
    for k, block in enumerate(blocks, 1):
        sites.view = View(tokens=slice(model.context, None)) if k > model.start else WHOLE
        gate = block.adaLN_modulation
        sites.sublayer(k, "attention", block.norm1, block.attn, gate, (2, 6))
        sites.sublayer(k, "mlp", block.norm2, block.mlp, gate, (5, 6))
    sites.view = WHOLE
    head, tokens = model.final_layer.norm_final, model.pos_embed.shape[1]
    return sites.subject(model, identified, head=head, tokens=tokens)


FAMILY = Family(
    name="jit",
    title="JiT",
    marks=(r"x_embedder\.proj1\.weight\Z", r"x_embedder\.proj2\.weight\Z"),
    identify=identify,
    build=build,
    subject=subject,
)
