"""LightningDiT: DiT with rotary positions, SwiGLU, RMSNorm, qk-norm or no shifts, each or none.

After "Reconstruction vs. Generation" (arXiv 2501.01423), with the official parameter names.
Shapes: N samples, C channels, T tokens, D width, H heads, p patch size.
"""

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dar_probe.checkpoints.header import Header
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models.sit import LabelEmbedder, Mlp, PatchEmbed, TimestepEmbedder
from dar_probe.subjects.family import Family, Identified
from dar_probe.subjects.subject import Branch, Reader, Source, Subject, offered_by_addition

# (width, depth) -> heads of B, L, XL, 1p0B and 1p6B.
HEADS = {(768, 12): 12, (1024, 24): 16, (1152, 28): 16, (1536, 24): 24, (1792, 28): 28}


class LightningDiT(nn.Module):
    """forward(x (N, C, h, w), t (N,), y (N,)) -> velocity (N, C, h, w); t = 0 is noise."""

    def __init__(
        self, *, depth: int, width: int, heads: int, patch: int, channels: int, side: int,
        rows: int, learn_sigma: bool, rope: bool, **block: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.channels = channels
        tokens, outputs = (side // patch) ** 2, channels * (2 if learn_sigma else 1)
        self.x_embedder = PatchEmbed(channels, width, patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(rows, width)
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, width), requires_grad=False)
        self.feat_rope = Rotary(tokens, width // heads) if rope else None
        self.blocks = nn.ModuleList(Block(width, heads, **block) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * outputs, block["rmsnorm"])

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict data - noise; of learned variances the first half is returned."""
        n, _, height, width = x.shape
        x = self.x_embedder(x) + self.pos_embed  # (N, T, D)
        c = self.t_embedder(t) + self.y_embedder(y)  # (N, D)
        for block in self.blocks:
            x = block(x, c, self.feat_rope)
        out = self.final_layer(x, c)  # (N, T, p*p*C)
        p = self.x_embedder.proj.kernel_size[0]
        out = out.reshape(n, height // p, width // p, p, p, -1)
        return torch.einsum("nhwpqc->nchpwq", out).reshape(n, -1, height, width)[:, : self.channels]


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
        """(N, T, D), (N, D) -> (N, T, D)."""
        modulation = self.adaLN_modulation(c).unsqueeze(1)  # (N, 1, 6 D or 4 D)
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
    """Turns neighbouring features as pairs by the angles in its tables, which the file holds."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, tokens: int, size: int) -> None:
        super().__init__()
        self.register_buffer("freqs_cos", torch.empty(tokens, size))
        self.register_buffer("freqs_sin", torch.empty(tokens, size))

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
        """(N, T, D), (N, D) -> (N, T, p*p*C)."""
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))  # type: ignore[no-any-return]


def norm(width: int, rmsnorm: bool) -> nn.Module:
    """Return RMSNorm with a weight, or LayerNorm without."""
    if rmsnorm:
        return nn.RMSNorm(width, eps=1e-6)
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def modulate(x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """AdaLN: x (N, T, D), shift and scale (N, 1, D)."""
    x = x * (1 + scale)
    return x if shift is None else x + shift


def identify(header: Header, heads: int | None) -> Identified:
    """Read every size and option from one shape each, and hold the rest of the file to them."""
    shapes = header.shapes
    width, channels, patch, _ = header.shape("x_embedder.proj.weight", 4)
    _, tokens, _ = header.shape("pos_embed", 3)
    rows, _ = header.shape("y_embedder.embedding_table.weight", 2)
    (outputs,) = header.shape("final_layer.linear.bias", 1)
    modulation, _ = header.shape("blocks.0.adaLN_modulation.1.weight", 2)
    swiglu = "blocks.0.mlp.w12.weight" in shapes
    last = "blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc2.weight"
    side = math.isqrt(tokens)
    if side * side != tokens:
        why = f"{header.shown} has no square grid of tokens: 'pos_embed' has {tokens} of them"
        raise CheckpointError(why, hint="only models of square images are supported yet")
    if outputs not in (patch * patch * channels, 2 * patch * patch * channels):
        raise header.misshapen("final_layer.linear.bias")
    if modulation not in (4 * width, 6 * width):
        raise header.misshapen("blocks.0.adaLN_modulation.1.weight")
    # A gap between the numbers is found by the comparison of all names.
    depth = len({m[1] for m in map(re.compile(r"blocks\.([0-9]{1,4})\.").match, shapes) if m})
    sizes: dict[str, Any] = {
        "depth": depth,
        "width": width,
        "heads": _heads(header, width, depth, heads),
        "patch": patch,
        "channels": channels,
        "side": patch * side,
        "rows": rows,
        "learn_sigma": outputs == 2 * patch * patch * channels,
        "hidden": header.shape(last, 2)[1],
        "swiglu": swiglu,
        "rmsnorm": "blocks.0.norm1.weight" in shapes,
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "shift": modulation == 6 * width,
        "rope": "feat_rope.freqs_cos" in shapes,
    }
    with torch.device("meta"):
        expected = LightningDiT(**sizes).state_dict()
    header.compare({key: tuple(value.shape) for key, value in expected.items()})
    classes = _classes(header, rows)
    header.assumptions.append("read as LightningDiT: time runs t = 1 - s; --objective overrides")
    return Identified(
        family="lightningdit",
        sizes=sizes,
        shape=(channels, patch * side, patch * side),
        num_classes=classes,
        objective="sit",
        assumptions=header.assumptions,
    )


def _heads(header: Header, width: int, depth: int, asked: int | None) -> int:
    """Return the heads: from the rotary tables, qk-norm, the user, or the table of presets."""
    for key, dims in (("feat_rope.freqs_cos", 2), ("blocks.0.attn.q_norm.weight", 1)):
        if key not in header.shapes:
            continue
        size = header.shape(key, dims)[-1]
        # Rotary tables are pairs for rows and pairs for columns.
        if width % size or (dims == 2 and size % 4):
            raise header.misshapen(key)
        if asked not in (None, width // size):
            why = f"--heads {asked} contradicts {header.shown}: it has {width // size}"
            raise UsageError(why, hint="leave --heads out")
        return width // size
    if asked is not None:
        if asked < 1 or width % asked:
            why = f"--heads {asked} does not divide the width {width} of {header.shown}"
            raise UsageError(why, hint="one head is width / heads wide, 64 or 72 in the presets")
        return asked
    if (width, depth) not in HEADS:
        why = f"and no preset has width {width} and depth {depth}"
        raise CheckpointError(
            f"{header.shown} does not tell its heads, {why}", hint="give the number with --heads"
        )
    header.assumptions.append(f"heads from the preset table for width {width}, depth {depth}")
    return HEADS[width, depth]


def _classes(header: Header, rows: int) -> int:
    """Return the number of classes without the row for dropped labels."""
    told = header.args.get("num_classes")
    if told is None:
        header.assumptions.append(
            f"the last of {rows} rows in the label table is taken for the dropped labels"
        )
        told = rows - 1
    if told not in (rows, rows - 1) or not told:
        raise header.contradiction(f"{told} classes, and a label table of {rows} rows")
    return int(told)


def build(identified: Identified) -> LightningDiT:
    """Return the model, its weights and rotary tables not yet filled."""
    return LightningDiT(**identified.sizes)


def subject(model: nn.Module, identified: Identified) -> Subject:
    """Name the sites: two sublayers a block, whose writes are added to one stream."""
    sizes = identified.sizes
    chunks, each = (6, 3) if sizes["shift"] else (4, 2)
    readers = []
    for k in range(sizes["depth"]):
        block = model.get_submodule(f"blocks.{k}")
        gate = block.get_submodule("adaLN_modulation")
        for j, (kind, name) in enumerate((("attention", "attn"), ("mlp", "mlp")), 1):
            output = block.get_submodule(name)
            readers.append(
                Reader(
                    name=f"block {k + 1} {kind}",
                    kind=kind,
                    block=k + 1,
                    module=block.get_submodule(f"norm{j}"),
                    # The gate is the last of the chunks that belong to a sublayer.
                    branches=(Branch(output=output, gate=gate, chunk=(j * each - 1, chunks)),),
                )
            )
    head = model.get_submodule("final_layer.norm_final")
    sources = (
        Source(name="embedding", kind="embedding", block=0),
        *(Source(name=r.name, kind=r.kind, block=r.block) for r in readers),
    )
    return Subject(
        model=model,
        family="lightningdit",
        readers=(*readers, Reader(name="head", kind="head", block=sizes["depth"] + 1, module=head)),
        sources=sources,
        offered=offered_by_addition(sources),
        facts={
            **{"family": "lightningdit", "routing": "residual", "query": None, "chunk_size": None},
            "parameters": sum(p.numel() for p in model.parameters()),
            **{name: sizes[name] for name in ("depth", "width", "heads")},
            "tokens": (sizes["side"] // sizes["patch"]) ** 2,
        },
    )


FAMILY = Family(
    name="lightningdit",
    title="LightningDiT",
    # Without any of the three it has DiT's names, and SiT's file reads it.
    marks=(
        r"x_embedder\.proj\.weight$",
        r"blocks\.0\.adaLN_modulation\.1\.weight$",
        r"blocks\.0\.(mlp\.w12|norm1)\.weight$|feat_rope\.freqs_cos$",
    ),
    identify=identify,
    build=build,
    subject=subject,
)
