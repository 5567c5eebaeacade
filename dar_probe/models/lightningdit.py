"""LightningDiT: DiT with rotary positions, SwiGLU, RMSNorm, qk-norm or no shifts, each or none.

After "Reconstruction vs. Generation" (arXiv 2501.01423), with the official parameter names.
Shapes: N samples, C channels, T tokens, D width, H heads, p patch size.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dar_probe.checkpoints.header import Header
from dar_probe.files.text import quote
from dar_probe.models import conventions
from dar_probe.models.sit import LabelEmbedder, Mlp, PatchEmbed, TimestepEmbedder, unpatchify
from dar_probe.sites.family import Family, Identified
from dar_probe.sites.stack import Stack
from dar_probe.sites.subject import Subject

# (width, depth) -> heads of B, L, XL, 1p0B and 1p6B.
HEADS = {(768, 12): 12, (1024, 24): 16, (1152, 28): 16, (1536, 24): 24, (1792, 28): 28}


@dataclass(frozen=True, kw_only=True)
class LightningDiTConfig:
    """Sizes of a LightningDiT, and which of its parts it has.

    Attributes:
        depth: blocks.
        width, heads, patch: D, H, side of a patch.
        channels, side: of one sample, (channels, side, side).
        rows: number of rows in the label table.
        hidden: width of the MLPs.
        learn_sigma: the head has 2C channels; ``LightningDiT.forward`` returns the first C.
        rope: queries and keys are rotated.
        swiglu: MLPs are SwiGLU.
        rmsnorm: norms are RMSNorm.
        qk_norm: queries and keys are normalised.
        shift: the modulation shifts too; without, it is 4 D wide.
    """

    depth: int
    width: int
    heads: int
    patch: int
    channels: int
    side: int
    rows: int
    hidden: int
    learn_sigma: bool
    rope: bool
    swiglu: bool
    rmsnorm: bool
    qk_norm: bool
    shift: bool


class LightningDiT(nn.Module):
    """forward(x (N, C, h, w), t (N,), y (N,)) -> velocity (N, C, h, w); t = 0 is noise."""

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        width, heads, patch = config.width, config.heads, config.patch
        channels, side = config.channels, config.side
        self.channels, self.patch = channels, patch
        tokens, outputs = (side // patch) ** 2, channels * (2 if config.learn_sigma else 1)
        self.x_embedder = PatchEmbed(channels, width, patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.rows, width)
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, width), requires_grad=False)
        self.feat_rope = Rotary(tokens, width // heads) if config.rope else None
        self.blocks = nn.ModuleList(
            Block(
                width, heads, hidden=config.hidden, swiglu=config.swiglu, rmsnorm=config.rmsnorm,
                qk_norm=config.qk_norm, shift=config.shift,
            )
            for _ in range(config.depth)
        )  # fmt: skip
        self.final_layer = FinalLayer(width, patch * patch * outputs, config.rmsnorm)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict data - noise; of learned variances the first half is returned."""
        return self.conditioned(x, self.t_embedder(t) + self.y_embedder(y))

    def conditioned(self, x: Tensor, c: Tensor) -> Tensor:
        """Predict from x (N, C, h, w) and the embedding c (N, D) of times and labels."""
        x = self.x_embedder(x) + self.pos_embed  # (N, T, D)
        c = c[:, None]  # (N, 1, D)
        for block in self.blocks:
            x = block(x, c, self.feat_rope)
        out = self.final_layer(x, c)  # (N, T, p*p*C)
        return unpatchify(out, self.patch)[:, : self.channels]


class Block(nn.Module):
    """Attention and MLP, each modulated and gated; without shifts the modulation is 4 D wide."""

    def __init__(
        self, width: int, heads: int, *, hidden: int, swiglu: bool, rmsnorm: bool, qk_norm: bool,
        shift: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shift = shift
        self.norm1 = norm(width, rmsnorm)
        self.attn = Attention(width, heads, qk_norm, rmsnorm)
        self.norm2 = norm(width, rmsnorm)
        self.mlp = SwiGLU(width, hidden) if swiglu else Mlp(width, hidden)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(width, (6 if shift else 4) * width)
        )

    def forward(self, x: Tensor, c: Tensor, rope: nn.Module | None) -> Tensor:
        """(N, T, D), (N, T or 1, D) -> (N, T, D)."""
        modulation = self.adaLN_modulation(c)  # (N, T or 1, 6 D or 4 D)
        shift1 = shift2 = None
        if self.shift:
            shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        else:
            scale1, gate1, scale2, gate2 = modulation.chunk(4, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), rope)
        x = x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))
        return x


class Attention(nn.Module):
    """Multi-head self-attention; queries and keys are normalised first and rotated then."""

    def __init__(self, width: int, heads: int, qk_norm: bool, rmsnorm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        if qk_norm:
            # Unlike the block's norms, LayerNorm has weights here, and torch's own eps of 1e-5.
            size = width // heads
            self.q_norm = norm(size, True) if rmsnorm else nn.LayerNorm(size)
            self.k_norm = norm(size, True) if rmsnorm else nn.LayerNorm(size)
        self.qk_norm = qk_norm
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: nn.Module | None) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (N, H, T, D/H) each
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rope(q), rope(k)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(n, tokens, width))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """W3 (SiLU(a) * b), where a and b are the halves of W12 x."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        a, b = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(a) * b)  # type: ignore[no-any-return]


class Rotary(nn.Module):
    """Turns neighbouring features as pairs by the angles in its tables (tokens, size).

    They come from the file, or are made by the model that has this part where they are not stored.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, tokens: int, size: int, *, stored: bool = True) -> None:
        super().__init__()
        self.register_buffer("freqs_cos", torch.empty(tokens, size), persistent=stored)
        self.register_buffer("freqs_sin", torch.empty(tokens, size), persistent=stored)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, T, D/H) -> (N, H, T, D/H)."""
        a, b = x[..., 0::2], x[..., 1::2]
        return x * self.freqs_cos + torch.stack([-b, a], dim=-1).flatten(-2) * self.freqs_sin


class FinalLayer(nn.Module):
    """Norm, modulation, which has a shift in every variant, and a linear map to patches."""

    def __init__(self, width: int, outputs: int, rmsnorm: bool) -> None:
        super().__init__()
        self.norm_final = norm(width, rmsnorm)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, T, D), (N, T or 1, D) -> (N, T, p*p*C)."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))  # type: ignore[no-any-return]


def norm(width: int, rmsnorm: bool) -> nn.Module:
    """Return RMSNorm with a weight, or LayerNorm without."""
    if rmsnorm:
        return nn.RMSNorm(width, eps=1e-6)
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def modulate(x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """AdaLN: x (N, T, D), shift and scale (N, T or 1, D)."""
    x = x * (1 + scale)
    return x if shift is None else x + shift


def identify(header: Header, heads: int | None) -> Identified:
    """Read every size and option from one shape each."""
    sizes = read_sizes(header, heads)
    _scaled(header)
    classes = conventions.classes(header, sizes["rows"])
    named = conventions.flow(header, "sit")
    if not named:
        header.assumptions.append(
            "read as LightningDiT: time runs t = 1 - s; --objective overrides"
        )
    return Identified(
        family="lightningdit",
        sizes=sizes,
        shape=(sizes["channels"], sizes["side"], sizes["side"]),
        num_classes=classes,
        objective=named or "sit",
        assumptions=header.assumptions,
    )


def read_sizes(header: Header, heads: int | None) -> dict[str, Any]:
    """Return what ``LightningDiTConfig`` takes.

    Raises:
        CheckpointError: the file contradicts itself, or does not tell its heads.
        UsageError: ``heads`` does not fit the file.
    """
    shapes = header.shapes
    frame = conventions.frame(header)
    width, depth = frame.width, conventions.depth(header)
    modulation, _ = header.shape("blocks.0.adaLN_modulation.1.weight", 2)
    swiglu = "blocks.0.mlp.w12.weight" in shapes
    last = "blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc2.weight"
    if modulation not in (4 * width, 6 * width):
        raise header.misshapen("blocks.0.adaLN_modulation.1.weight")
    shaped = _shaped_heads(header, width)
    return {
        "depth": depth,
        "width": width,
        "heads": conventions.heads(
            header, heads, width=width, depth=depth, shaped=shaped, presets=HEADS
        ),
        "patch": frame.patch,
        "channels": frame.channels,
        "side": frame.side,
        "rows": frame.rows,
        "learn_sigma": frame.learn_sigma,
        "hidden": header.shape(last, 2)[1],
        "swiglu": swiglu,
        "rmsnorm": "blocks.0.norm1.weight" in shapes,
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "shift": modulation == 6 * width,
        "rope": "feat_rope.freqs_cos" in shapes,
    }


def _scaled(header: Header) -> None:
    """Say where the model was trained on other latents than its official settings' ones."""
    norm, factor = header.told("latent_norm"), header.told("latent_multiplier")
    if (norm, factor) in ((None, None), (True, 1)):
        return
    factor = 0.18215 if factor is None else factor  # train.py's own
    header.assumptions.append(
        f"it was trained with latent_norm {quote(norm or False, 40)} and latent_multiplier "
        f"{quote(factor, 40)}: give --data like that, which a folder with latents_stats.pt is not"
    )


def _shaped_heads(header: Header, width: int) -> int | None:
    """Return the heads where the rotary tables or qk-norm tell them."""
    for key, dims in (("feat_rope.freqs_cos", 2), ("blocks.0.attn.q_norm.weight", 1)):
        if key in header.shapes:
            # Rotary tables are pairs for rows and pairs for columns.
            if dims == 2 and header.shape(key, dims)[-1] % 4:
                raise header.misshapen(key)
            header.shape(key, dims)
            return conventions.heads_of_size(header, key, width)
    return None


def _fits(header: Header) -> bool:
    """Tell whether some option is on: without any, the names and shapes are DiT's."""
    modulation = header.shapes["blocks.0.adaLN_modulation.1.weight"]
    options = ("blocks.0.mlp.w12.weight", "blocks.0.norm1.weight", "feat_rope.freqs_cos")
    return any(key in header.shapes for key in options) or (
        len(modulation) == 2 and modulation[0] == 4 * modulation[1]
    )


def build(identified: Identified) -> LightningDiT:
    """Return the model, its weights and rotary tables not yet filled."""
    return LightningDiT(LightningDiTConfig(**identified.sizes))


def subject(model: nn.Module, identified: Identified) -> Subject:
    """Name the sites: two sublayers a block, whose writes are added to one stream."""
    sites, sizes = Stack(), identified.sizes
    chunks, each = (6, 3) if sizes["shift"] else (4, 2)
    for k in range(sizes["depth"]):
        block = model.get_submodule(f"blocks.{k}")
        gate = block.get_submodule("adaLN_modulation")
        for j, (kind, name) in enumerate((("attention", "attn"), ("mlp", "mlp")), 1):
            norm, output = block.get_submodule(f"norm{j}"), block.get_submodule(name)
            # The gate is the last of the chunks that belong to a sublayer.
            sites.sublayer(k + 1, kind, norm, output, gate, (j * each - 1, chunks))
    return sites.subject(
        model,
        identified,
        head=model.get_submodule("final_layer.norm_final"),
        tokens=(sizes["side"] // sizes["patch"]) ** 2,
    )


FAMILY = Family(
    name="lightningdit",
    title="LightningDiT",
    marks=(
        r"x_embedder\.proj\.weight\Z",
        r"blocks\.0\.adaLN_modulation\.1\.weight\Z",
        # One of the options; without shifts the shape of the modulation tells, see ``_fits``.
        r"feat_rope\.freqs_cos\Z|blocks\.0\.(norm1|mlp\.w12|adaLN_modulation\.1)\.weight\Z",
    ),
    fits=_fits,
    identify=identify,
    build=build,
    subject=subject,
)
