"""DiT-DH: a DiT with a wide, shallow DDT head, on the latents of a representation autoencoder.

After "Diffusion Transformers with Representation Autoencoders" (arXiv 2510.11690), with the
official parameter names. Its head is called decoder here, as in DDT. Shapes: N samples, C channels,
T tokens, D width of the encoder, E of the decoder.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dar_probe.checkpoints.header import Header
from dar_probe.errors import CheckpointError
from dar_probe.files.text import quote
from dar_probe.models import conventions
from dar_probe.models.ddt import two_streams
from dar_probe.models.lightningdit import Block, FinalLayer, Rotary
from dar_probe.models.sit import LabelEmbedder, PatchEmbed, unpatchify
from dar_probe.sites.family import Family, Identified
from dar_probe.sites.subject import Subject


@dataclass(frozen=True, kw_only=True)
class DiTDHConfig:
    """Sizes of a DiT-DH, and which of its parts it has.

    Attributes:
        depth, encoder: blocks, and how many of them, the first, are the encoder's.
        width, heads, hidden: of the encoder: D, attention heads, width of the MLPs.
        decoder_width, decoder_heads, decoder_hidden: the same of the decoder, E first.
        channels, side: of one sample, (channels, side, side); every pixel is a token.
        rows: number of rows in the label table.
        waves: random frequencies of the time.
        swiglu: MLPs are SwiGLU.
        rmsnorm: norms are RMSNorm.
        qk_norm: queries and keys are normalised.
    """

    depth: int
    encoder: int
    width: int
    heads: int
    hidden: int
    decoder_width: int
    decoder_heads: int
    decoder_hidden: int
    channels: int
    side: int
    rows: int
    waves: int
    swiglu: bool
    rmsnorm: bool
    qk_norm: bool


class DiTDH(nn.Module):
    """forward(x (N, C, h, w), t (N,), y (N,)) -> velocity (N, C, h, w); t = 1 is noise."""

    def __init__(self, config: DiTDHConfig) -> None:
        super().__init__()
        width, wide = config.width, config.decoder_width
        channels, tokens = config.channels, config.side**2
        self.encoder = config.encoder
        self.x_embedder = PatchEmbed(channels, wide, 1)
        self.s_embedder = PatchEmbed(channels, width, 1)
        self.s_projector = nn.Identity() if width == wide else nn.Linear(width, wide)
        self.t_embedder = FourierEmbedder(width, config.waves)
        self.y_embedder = LabelEmbedder(config.rows, width)
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, width), requires_grad=False)
        self.enc_feat_rope = Rotary(tokens, width // config.heads)
        self.dec_feat_rope = Rotary(tokens, wide // config.decoder_heads)

        def block(width: int, heads: int, hidden: int) -> Block:
            return Block(
                width, heads, hidden=hidden, swiglu=config.swiglu, rmsnorm=config.rmsnorm,
                qk_norm=config.qk_norm, shift=True,
            )  # fmt: skip

        self.blocks = nn.ModuleList(
            block(width, config.heads, config.hidden)
            if k < config.encoder
            else block(wide, config.decoder_heads, config.decoder_hidden)
            for k in range(config.depth)
        )
        self.final_layer = FinalLayer(wide, channels, config.rmsnorm)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict noise - data."""
        time = self.t_embedder(t)[:, None]  # (N, 1, D)
        c = F.silu(time + self.y_embedder(y)[:, None])
        s = self.s_embedder(x) + self.pos_embed  # (N, T, D)
        for block in self.blocks[: self.encoder]:
            s = block(s, c, self.enc_feat_rope)
        s = self.s_projector(F.silu(time + s))  # (N, T, E)
        x = self.x_embedder(x)  # nothing of s but through the modulation
        for block in self.blocks[self.encoder :]:
            x = block(x, s, self.dec_feat_rope)
        return unpatchify(self.final_layer(x, s), 1)


class FourierEmbedder(nn.Module):
    """Model time to a vector, by sines and cosines of frequencies that the file holds."""

    def __init__(self, width: int, waves: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(waves), requires_grad=False)
        self.mlp = nn.Sequential(nn.Linear(2 * waves, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """(N,) -> (N, D)."""
        wide = torch.promote_types(t.dtype, torch.float32)
        angles = 2 * math.pi * t.to(wide)[:, None] * self.W.to(wide)
        wave = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return self.mlp(wave.to(self.W.dtype))  # type: ignore[no-any-return]


def identify(header: Header, heads: int | None) -> Identified:
    """Read every size and option from one shape each.

    Raises:
        CheckpointError: the file contradicts itself, has larger patches than a pixel, or does not
            tell where the encoder ends.
        UsageError: ``heads`` does not fit the file.
    """
    shapes = header.shapes
    wide, channels, patch, _ = header.shape("x_embedder.proj.weight", 4)
    width, *_ = header.shape("s_embedder.proj.weight", 4)
    rows, _ = header.shape("y_embedder.embedding_table.weight", 2)
    modulation, _ = header.shape("blocks.0.adaLN_modulation.1.weight", 2)
    if patch != 1:
        raise CheckpointError(
            f"{header.shown} is a DiT-DH with patches of {patch} x {patch}: only patches of one "
            "pixel are supported",
            hint="dar-probe audit measures a model of any layout in Python",
        )
    if modulation != 6 * width:
        raise header.misshapen("blocks.0.adaLN_modulation.1.weight")
    depth, side = conventions.depth(header), conventions.side(header)
    encoder = _encoder(header, (width, wide), depth)
    swiglu = "blocks.0.mlp.w3.weight" in shapes
    last = "w3" if swiglu else "fc2"
    hidden, decoder_hidden = (
        header.shape(f"blocks.{k}.mlp.{last}.weight", 2)[1] for k in (0, encoder)
    )
    shaped = _heads(header, "enc_feat_rope.freqs_cos", width)
    header.assumptions.append(
        "read as DiT-DH of RAE: time runs t = s, trained mostly near noise; --objective overrides"
    )
    header.assumptions.append(
        f"samples are latents of a representation autoencoder ({channels} channels, normalised by "
        "its statistics), which --data latents:FILE has to hold"
    )
    return Identified(
        family="rae",
        sizes={
            "depth": depth,
            "encoder": encoder,
            "width": width,
            "heads": conventions.heads(header, heads, width=width, shaped=shaped),
            "hidden": hidden,
            "decoder_width": wide,
            "decoder_heads": _heads(header, "dec_feat_rope.freqs_cos", wide),
            "decoder_hidden": decoder_hidden,
            "channels": channels,
            "side": side,
            "rows": rows,
            "waves": header.shape("t_embedder.W", 1)[0],
            "swiglu": swiglu,
            "rmsnorm": "blocks.0.norm1.weight" in shapes,
            "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        },
        shape=(channels, side, side),
        num_classes=conventions.classes(header, rows),
        objective="rae",
        assumptions=header.assumptions,
    )


def _encoder(header: Header, widths: tuple[int, int], depth: int) -> int:
    """Return how many blocks are the encoder's: by their widths, or where these are one, told."""
    width, wide = widths
    if width != wide:
        proj = (header.shape(f"blocks.{k}.attn.proj.weight", 2)[0] for k in range(depth))
        found = sum(out == width for out in proj)  # a block of another width is misshapen
    else:
        told: Any = header.told("depth")
        if told is None:
            raise CheckpointError(
                f"{header.shown} does not tell how many of its {depth} blocks are the encoder's: "
                f"all of them are {width} wide",
                hint="save it with its settings: torch.save({'ema': STATE_DICT, 'args': "
                "{'depth': [ENCODER, DECODER]}}, FILE)",
            )
        fits = isinstance(told, list) and len(told) == 2 and all(map(conventions.is_count, told))
        if not fits or sum(told) != depth:
            raise header.contradiction(f"{depth} blocks, and a depth of {quote(told, 40)}")
        found = told[0]
    if not 0 < found < depth:
        raise header.contradiction(f"{found} of its {depth} blocks would be the encoder's")
    return found


def _heads(header: Header, key: str, width: int) -> int:
    """Return the heads that a rotary table tells."""
    if header.shape(key, 2)[-1] % 4:  # pairs for rows and pairs for columns
        raise header.misshapen(key)
    return conventions.heads_of_size(header, key, width)


def build(identified: Identified) -> DiTDH:
    """Return the model, its weights and rotary tables not yet filled."""
    return DiTDH(DiTDHConfig(**identified.sizes))


def subject(model: nn.Module, identified: Identified) -> Subject:
    """Name the sites: two sublayers a block, in the encoder's stream and in the decoder's."""
    return two_streams(model, identified, identified.sizes["side"] ** 2)


FAMILY = Family(
    name="rae",
    title="DiT-DH (RAE)",
    marks=(r"s_embedder\.proj\.weight\Z", r"blocks\.0\.adaLN_modulation\.1\.weight\Z"),
    identify=identify,
    build=build,
    subject=subject,
)
