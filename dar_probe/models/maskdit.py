"""MaskDiT: a DiT, then a smaller decoder, trained with masked tokens between EDM's factors.

After "Fast Training of Diffusion Models with Masked Transformers" (arXiv 2306.09305).
Shapes: N samples, C channels, T tokens, D width of the encoder, E of the decoder.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dar_probe.checkpoints.header import Header
from dar_probe.errors import CheckpointError
from dar_probe.models import conventions
from dar_probe.models.sit import Attention, Mlp, PatchEmbed, TimestepEmbedder, modulate, unpatchify
from dar_probe.sites.family import Family, Identified
from dar_probe.sites.stack import Stack
from dar_probe.sites.subject import Subject

# (width, depth) -> heads of S, B, L, XL and H in the official code.
HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1152, 28): 16, (1280, 32): 16}
DECODER_HEADS = 16  # of every decoder in the official code

TABLE, DECODER = "y_embedder.embedding_table.weight", "decoder_pos_embed"
# Parts that the official code can have and no released file has.
UNREAD = ("cls_token", "feat_embedder.weight", "enc_feat_embedder.weight")


@dataclass(frozen=True, kw_only=True)
class MaskDiTConfig:
    """Sizes of a MaskDiT.

    Attributes:
        shape: of one sample, (C, h, w).
        depth, width, heads, hidden: blocks of the encoder, D, heads, width of the MLPs.
        decoder: the same four of the decoder; None without one.
        patch: side of a patch.
        classes: number of classes; 0 without labels.
        mask_token: there is a token for what was masked in training.
        null_class: label ``classes`` stands for dropped labels.
    """

    shape: tuple[int, ...]
    depth: int
    width: int
    heads: int
    hidden: int
    decoder: tuple[int, int, int, int] | None
    patch: int
    classes: int
    mask_token: bool
    null_class: bool


class MaskDiT(nn.Module):
    """MaskDiT without masks, as it is sampled: forward(x (N, C, h, w), t (N,), y (N,)) -> like x.

    Labels y are ignored by a model that has none.
    It is the network inside EDM's factors, see ``diffusion.edm.EDM``: t is ln(sigma) / 4.
    ``mask_token`` works in masked training alone: it holds weights and is never read.
    """

    def __init__(self, config: MaskDiTConfig) -> None:
        super().__init__()
        width, patch = config.width, config.patch
        channels, tokens = config.shape[0], (config.shape[1] // patch) ** 2
        self.patch = patch
        self.x_embedder = PatchEmbed(channels, width, patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = ClassEmbedder(config.classes, width) if config.classes else None
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.ModuleList(
            Block(width, width, config.heads, config.hidden) for _ in range(config.depth)
        )
        last, self.decoder_layer = width, None
        if config.decoder is not None:
            depth, last, heads, hidden = config.decoder
            self.decoder_layer = Head(width, width, last)
            self.decoder_pos_embed = nn.Parameter(torch.zeros(1, tokens, last))
            self.decoder_blocks = nn.ModuleList(
                Block(last, width, heads, hidden) for _ in range(depth)
            )
        if config.mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, last))
        self.final_layer = Head(last, width, patch * patch * channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict EDM's target at model time ``t`` for labels ``y``."""
        x = self.x_embedder(x) + self.pos_embed  # (N, T, D)
        c = self.t_embedder(t)  # (N, D)
        if self.y_embedder is not None:
            c = c + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        if self.decoder_layer is not None:
            x = self.decoder_layer(x, c) + self.decoder_pos_embed  # (N, T, E)
            for block in self.decoder_blocks:
                x = block(x, c)
        return unpatchify(self.final_layer(x, c), self.patch)


class ClassEmbedder(nn.Module):
    """Class labels to vectors, as one-hot rows through a linear map; dropped labels to zero."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Linear(classes, width, bias=False)

    def forward(self, y: Tensor) -> Tensor:
        """(N,) -> (N, D)."""
        table = self.embedding_table
        rows = F.one_hot(y, table.in_features + 1)[:, :-1]  # the last one is for dropped labels
        return table(rows.to(table.weight.dtype))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, modulated and gated by a conditioning of another width."""

    def __init__(self, width: int, conditioning: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads, qk_norm=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(conditioning, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, T, width), c (N, D) -> (N, T, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)  # (N, 1, width) each
        )
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))  # type: ignore[no-any-return]


class Head(nn.Module):
    """Norm, modulation and a linear map: to the decoder's width, or to patches."""

    def __init__(self, width: int, conditioning: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(conditioning, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, T, width), c (N, D) -> (N, T, outputs)."""
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x), shift, scale))  # type: ignore[no-any-return]


def identify(header: Header, heads: int | None) -> Identified:
    """Read every size of a MaskDiT but the heads from one shape each.

    Raises:
        CheckpointError: it has parts that are not read, contradicts itself, or does not tell its
            heads.
        UsageError: ``heads`` does not fit the file.
    """
    for key in UNREAD:
        if key in header.shapes:
            raise CheckpointError(
                f"{header.shown} is a MaskDiT with a class token or features, not supported yet: "
                f"it has {key!r}",
                hint="dar-probe audit measures a model of any layout in Python",
            )
    width, channels, patch, _ = header.shape("x_embedder.proj.weight", 4)
    classes = header.shape(TABLE, 2)[1] if TABLE in header.shapes else 0
    side = patch * conventions.side(header)
    hidden, _ = header.shape("blocks.0.mlp.fc1.weight", 2)
    depth = conventions.depth(header)
    sizes = {
        "depth": depth,
        "width": width,
        "heads": conventions.heads(header, heads, width=width, depth=depth, presets=HEADS),
        "hidden": hidden,
        "decoder": _decoder(header),
        "patch": patch,
        "classes": classes,
        "mask_token": "mask_token" in header.shapes,
        "null_class": classes > 0,
    }
    header.assumptions.append("read as MaskDiT: EDM, sigma_data 0.5; --objective overrides")
    return Identified(
        family="maskdit",
        sizes=sizes,
        shape=(channels, side, side),
        num_classes=classes,
        objective="edm",
        assumptions=header.assumptions,
    )


def _decoder(header: Header) -> list[int] | None:
    """Return blocks, width, heads and MLP width of the decoder; None where there is none."""
    if DECODER not in header.shapes:
        return None
    *_, width = header.shape(DECODER, 3)
    hidden, _ = header.shape("decoder_blocks.0.mlp.fc1.weight", 2)
    if width % DECODER_HEADS:
        raise CheckpointError(
            f"{header.shown} does not tell the heads of its decoder, and {DECODER_HEADS}, as in "
            f"the official code, do not divide its width {width}",
            hint="dar-probe audit measures a model of any layout in Python",
        )
    header.assumptions.append(
        f"the decoder has {DECODER_HEADS} heads, as every decoder in the official code"
    )
    return [conventions.depth(header, "decoder_blocks"), width, DECODER_HEADS, hidden]


def _fits(header: Header) -> bool:
    """Tell a file without a decoder from DiT's: its label table has a column for each class."""
    if DECODER in header.shapes:
        return True
    table, width = header.shapes[TABLE], header.shapes["x_embedder.proj.weight"][:1]
    return len(table) == 2 and table[:1] == width != table[1:]


def build(identified: Identified) -> MaskDiT:
    """Build the model; its weights are for the caller to load."""
    return MaskDiT(MaskDiTConfig(shape=identified.shape, **identified.sizes))


def subject(model: nn.Module, identified: Identified) -> Subject:
    """Name the sites of a MaskDiT, at sublayer granularity.

    The decoder does not add to the encoder's stream: it reads the last state through a norm and a
    linear map, with which a new stream begins.
    """
    assert isinstance(model, MaskDiT)
    sites, decoder = Stack(), model.decoder_layer
    blocks: list[Any] = [*model.blocks, *([] if decoder is None else model.decoder_blocks)]
    for k, block in enumerate(blocks, 1):
        if decoder is not None and k == len(model.blocks) + 1:
            sites.fusion(k, decoder, fresh=True, name="decoder fusion")
        gate = block.adaLN_modulation
        sites.sublayer(k, "attention", block.norm1, block.attn, gate, (2, 6))
        sites.sublayer(k, "mlp", block.norm2, block.mlp, gate, (5, 6))
    head, tokens = model.final_layer.norm, model.pos_embed.shape[1]
    return sites.subject(model, identified, head=head, tokens=tokens)


FAMILY = Family(
    name="maskdit",
    title="MaskDiT",
    marks=(
        r"x_embedder\.proj\.weight\Z",
        r"blocks\.0\.adaLN_modulation\.1\.weight\Z",
        r"decoder_pos_embed\Z|y_embedder\.embedding_table\.weight\Z",
    ),
    fits=_fits,
    identify=identify,
    build=build,
    subject=subject,
)
