"""DDT: a condition encoder, and a velocity decoder whose every token it modulates.

After "DDT: Decoupled Diffusion Transformer" (arXiv 2504.05741), with the official parameter names.
Shapes: N samples, C channels, T tokens, D width, H heads, p patch size.
"""

import math
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dar_probe.checkpoints.header import Header
from dar_probe.errors import CheckpointError
from dar_probe.files.text import quote
from dar_probe.models import conventions
from dar_probe.models.sit import LabelEmbedder, TimestepEmbedder, modulate
from dar_probe.models.udit import named, rotate
from dar_probe.sites.family import Family, Identified
from dar_probe.sites.stack import Stack
from dar_probe.sites.subject import Subject

# (width, blocks) -> blocks of the encoder, in B, L and XL.
ENCODERS = {(768, 12): 8, (1024, 24): 20, (1152, 28): 22}
PATCH, SHAPE = 2, (4, 32, 32)  # of all configs; latents of images of 256 pixels
REACH = 16.0  # the first and the last column of any grid are this far apart, and so are rows


@dataclass(frozen=True, kw_only=True)
class DDTConfig:
    """Sizes of a DDT.

    Attributes:
        depth, encoder: blocks, and how many of them, the first, are the encoder's.
        width, heads, patch: D, H, side of a patch.
        channels: C.
        rows: number of rows in the label table.
        hidden: width of the MLPs.
    """

    depth: int
    encoder: int
    width: int
    heads: int
    patch: int
    channels: int
    rows: int
    hidden: int


class DDT(nn.Module):
    """forward(x (N, C, h, w), t (N,), y (N,)) -> velocity (N, C, h, w); t = 0 is noise."""

    def __init__(self, config: DDTConfig) -> None:
        super().__init__()
        width, features = config.width, config.channels * config.patch**2
        self.patch, self.encoder = config.patch, config.encoder
        self.x_embedder = named(proj=nn.Linear(features, width))
        self.s_embedder = named(proj=nn.Linear(features, width))
        self.t_embedder = TimestepEmbedder(width, max_period=10.0)
        self.y_embedder = LabelEmbedder(config.rows, width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.hidden) for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(width, features)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict data - noise."""
        size = x.shape[2:]
        x = F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)  # (N, T, C*p*p)
        time = self.t_embedder(t)[:, None]  # (N, 1, D)
        c = F.silu(time + self.y_embedder(y)[:, None])
        s = self.s_embedder(x)  # (N, T, D)
        for block in self.blocks[: self.encoder]:
            s = block(s, c)
        s = F.silu(time + s)
        x = self.x_embedder(x)  # nothing of s but through the modulation
        for block in self.blocks[self.encoder :]:
            x = block(x, s)
        out = self.final_layer(x, s).transpose(1, 2)  # (N, C*p*p, T)
        return F.fold(out, size, self.patch, stride=self.patch)


class Block(nn.Module):
    """Attention and MLP, modulated and gated by what is one vector a sample or one a token."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.mlp = FeedForward(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, T, D), (N, T or 1, D) -> (N, T, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention; queries and keys are normalised first and rotated then."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.k_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) of a square of tokens -> (N, T, D)."""
        n, tokens, width = x.shape
        side = math.isqrt(tokens)
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (N, H, T, D/H) each
        step = REACH / max(side - 1, 1)
        q = rotate(self.q_norm(q), side, side, step)
        k = rotate(self.k_norm(k), side, side, step)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(n, tokens, width))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU: W2 (SiLU(W1 x) * W3 x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


class FinalLayer(nn.Module):
    """LayerNorm, modulation of every token, and a linear map to patches."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, T, D), (N, T, D) -> (N, T, C*p*p)."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))  # type: ignore[no-any-return]


def identify(header: Header, heads: int | None) -> Identified:
    """Read the sizes from one shape each.

    Where the encoder ends leaves no trace in the shapes, nor does the patch: the settings tell, or
    the presets.

    Raises:
        CheckpointError: the file contradicts itself, or neither tells.
        UsageError: ``heads`` does not fit the file.
    """
    norm = "blocks.0.attn.q_norm.weight"
    width, features = header.shape("x_embedder.proj.weight", 2)
    rows, _ = header.shape("y_embedder.embedding_table.weight", 2)
    # Rotary positions are pairs of features for columns and pairs for rows.
    if header.shape(norm, 1)[0] % 4:
        raise header.misshapen(norm)
    shaped, depth = conventions.heads_of_size(header, norm, width), conventions.depth(header)
    encoder = _encoder(header, width, depth)
    patch, channels = _patch(header, features)
    named = conventions.flow(header, "sit")
    if not named:
        header.assumptions.append("read as DDT: time runs t = 1 - s; --objective overrides")
    side = patch * max(SHAPE[1] // patch, 1)
    return Identified(
        family="ddt",
        sizes={
            "depth": depth,
            "encoder": encoder,
            "width": width,
            "heads": conventions.heads(header, heads, width=width, shaped=shaped),
            "patch": patch,
            "channels": channels,
            "rows": rows,
            "hidden": header.shape("blocks.0.mlp.w1.weight", 2)[0],
        },
        shape=(channels, side, side),
        any_side=patch,
        num_classes=conventions.classes(header, rows),
        objective=named or "sit",
        assumptions=header.assumptions,
    )


def _encoder(header: Header, width: int, depth: int) -> int:
    """Return how many blocks are the encoder's: by the settings, or the presets.

    Raises:
        CheckpointError: neither tells, or they leave the encoder or the decoder without blocks.
    """
    told: Any = header.told("num_encoder_blocks")
    if told is None:
        if (width, depth) not in ENCODERS:
            raise CheckpointError(
                f"{header.shown} does not tell how many of its {depth} blocks are the encoder's, "
                f"and no preset has width {width} and depth {depth}",
                hint="save it with its settings: torch.save({'ema': STATE_DICT, 'args': "
                "{'num_encoder_blocks': NUMBER}}, FILE)",
            )
        told = ENCODERS[width, depth]
        header.assumptions.append(
            f"the first {told} of {depth} blocks are the encoder's, as in the preset of width "
            f"{width}: no weight tells, and with another number every value below is wrong"
        )
    if not conventions.is_count(told) or told >= depth:
        raise header.contradiction(
            f"{quote(told, 40)} of its {depth} blocks would be the encoder's"
        )
    return int(told)


def _patch(header: Header, features: int) -> tuple[int, int]:
    """Return the side of a patch and the channels of one that has ``features`` numbers."""
    told: Any = header.told("patch_size")
    patch = PATCH if told is None else told
    if told is None:
        if features != SHAPE[0] * PATCH**2:
            raise CheckpointError(
                f"{header.shown} does not tell its patch size: {features} numbers a patch are no "
                f"patch of {PATCH} x {PATCH} in latents of {SHAPE[0]} channels",
                hint="save it with its settings: torch.save({'ema': STATE_DICT, 'args': "
                "{'patch_size': NUMBER}}, FILE)",
            )
        header.assumptions.append(
            f"patches of {PATCH} x {PATCH} in latents of {SHAPE[0]} channels, as in the presets"
        )
    if not conventions.is_count(patch) or features % patch**2:
        raise header.contradiction(f"{features} numbers are no patch of side {quote(patch, 40)}")
    return patch, features // patch**2


def build(identified: Identified) -> DDT:
    """Return the model, its weights not yet filled."""
    return DDT(DDTConfig(**identified.sizes))


def subject(model: nn.Module, identified: Identified) -> Subject:
    """Name the sites: two sublayers a block, in two streams.

    The decoder's stream begins with an embedding of its own. Nothing of the encoder's stream is
    added to it: the encoder's last state only modulates and gates the decoder's branches.
    """
    return two_streams(model, identified, (identified.shape[1] // identified.sizes["patch"]) ** 2)


def two_streams(model: Any, identified: Identified, tokens: int) -> Subject:
    """Name the sites of ``model.blocks``, the first ``encoder`` of which have their own stream."""
    sites, encoder = Stack(), identified.sizes["encoder"]
    for k, block in enumerate(model.blocks, 1):
        if k == encoder + 1:
            last = model.blocks[encoder - 1]
            sites.fusion(k, last, after=True, fresh=True, name="decoder embedding")
        gate = block.adaLN_modulation
        sites.sublayer(k, "attention", block.norm1, block.attn, gate, (2, 6))
        sites.sublayer(k, "mlp", block.norm2, block.mlp, gate, (5, 6))
    found = sites.subject(model, identified, head=model.final_layer.norm_final, tokens=tokens)
    said = (
        f"block {encoder} ends the encoder: its last state modulates every branch of the decoder, "
        "is added to none, and so is among no reader's sources"
    )
    return replace(found, assumptions=(*found.assumptions, said))


def rivals(model: nn.Module, identified: Identified) -> dict[str, nn.Module]:
    """Return the model with its encoder one block longer and one shorter, on the same weights.

    Neighbours tell: of a small model that was trained, the loss grew with the distance from the
    right split.
    """
    sizes, found = identified.sizes, {}
    for encoder in (sizes["encoder"] - 1, sizes["encoder"] + 1):
        if 0 < encoder < sizes["depth"]:
            rival: Any = copy(model)
            rival.encoder = encoder
            found[f"num_encoder_blocks {encoder}"] = rival
    return found


FAMILY = Family(
    name="ddt",
    title="DDT",
    marks=(r"s_embedder\.proj\.weight\Z", r"blocks\.0\.adaLN_modulation\.0\.weight\Z"),
    identify=identify,
    build=build,
    subject=subject,
    rivals=rivals,
)
