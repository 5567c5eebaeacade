"""FiT and FiTv2: transformers for images of any size, whose positions are rotations alone.

After "FiT: Flexible Vision Transformer for Diffusion Model" (arXiv 2402.12376) and "FiTv2"
(2410.13925), with the official parameter names. They are measured on one square grid, which fills
the sequence: without padding there is nothing to mask.
Shapes: N samples, C channels, T = 256 tokens, D width, H heads, p patch size.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dar_probe.checkpoints.header import Header
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models import conventions, sit
from dar_probe.models.sit import FinalLayer, LabelEmbedder, Mlp, TimestepEmbedder
from dar_probe.models.udit import named, turn
from dar_probe.sites.family import Family, Identified
from dar_probe.sites.stack import Stack
from dar_probe.sites.subject import Subject

SIDE = 16  # tokens: images of 256 pixels, the largest of the first training
PATCH = 2
# (width, depth) -> heads of FiT-XL, FiTv2-XL and FiTv2-3B.
HEADS = {(1152, 28): 16, (1152, 36): 16, (2304, 40): 24}
SHARED = "global_adaLN_modulation.1.weight"


@dataclass(frozen=True, kw_only=True)
class FiTConfig:
    """Sizes of a FiT, and which of its parts it has.

    Attributes:
        depth: blocks.
        width, heads, patch: D, H, side of a patch.
        features: of one patch, p*p*C.
        rows: number of rows in the label table.
        hidden: width of the MLPs.
        swiglu: MLPs are SwiGLU.
        learn_sigma: the head has 2C channels; ``FiT.forward`` returns the first C.
        rank: of the blocks' own modulation, which is added to a shared one; 0 without these, as
            in the first FiT.
        qk_norm: queries and keys are normalised, without weights.
    """

    depth: int
    width: int
    heads: int
    patch: int
    features: int
    rows: int
    hidden: int
    swiglu: bool
    learn_sigma: bool
    rank: int
    qk_norm: bool


class FiT(nn.Module):
    """FiT on a square: forward(x (N, C, 16 p, 16 p), t (N,), y (N,)), and the output likewise."""

    def __init__(self, config: FiTConfig) -> None:
        super().__init__()
        width, patch = config.width, config.patch
        self.patch, self.features = patch, config.features
        self.x_embedder = named(proj=nn.Linear(config.features, width))
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.rows, width)
        self.global_adaLN_modulation = None
        if config.rank:
            self.global_adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        channels = config.features // patch**2
        self.final_layer = FinalLayer(width, patch, channels * (2 if config.learn_sigma else 1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict at model time ``t`` (the model's own clock) for labels ``y``."""
        size = x.shape[2:]
        # In a patch the features of the first channel come first.
        x = F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)  # (N, T, p*p*C)
        x = self.x_embedder(x)  # (N, T, D)
        c = self.t_embedder(t) + self.y_embedder(y)  # (N, D)
        shared = None if self.global_adaLN_modulation is None else self.global_adaLN_modulation(c)
        for block in self.blocks:
            x = block(x, c, shared)
        out = self.final_layer(x, c)[..., : self.features]  # variances are behind
        return F.fold(out.transpose(1, 2), size, self.patch, stride=self.patch)


class Block(nn.Module):
    """Attention and MLP with adaLN-Zero; in FiTv2 its modulation is of low rank plus a shared one.

    The output of ``modulation`` is all of it.
    """

    def __init__(self, config: FiTConfig) -> None:
        super().__init__()
        width, rank, size = config.width, config.rank, config.width // config.heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = sit.Attention(width, config.heads, qk_norm=False)
        self.attn.q_norm = nn.Sequential(*_before_scores(size, config.qk_norm))
        self.attn.k_norm = nn.Sequential(*_before_scores(size, config.qk_norm))
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = (SwiGLU if config.swiglu else Mlp)(width, config.hidden)
        maps = [nn.Linear(width, rank), nn.Linear(rank, 6 * width)] if rank else []
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), *(maps or [nn.Linear(width, 6 * width)]))
        self.modulation = nn.Identity()

    def forward(self, x: Tensor, c: Tensor, shared: Tensor | None) -> Tensor:
        """(N, T, D), c (N, D), shared (N, 6 D) -> (N, T, D)."""
        own = self.adaLN_modulation(c)
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self.modulation(own if shared is None else own + shared).unsqueeze(1).chunk(6, dim=-1)
        )  # (N, 1, D) each
        x = x + gate1 * self.attn(sit.modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(sit.modulate(self.norm2(x), shift2, scale2))  # type: ignore[no-any-return]


def _before_scores(size: int, qk_norm: bool) -> list[nn.Module]:
    """Return what happens to queries and keys (N, H, T, D/H) before they meet."""
    norm = [nn.LayerNorm(size, elementwise_affine=False, eps=1e-6)] if qk_norm else []
    return [*norm, Rotary()]


class Rotary(nn.Module):
    """Turns the first half of each head by the token's row and the second by its column."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, T, D/H) -> (N, H, T, D/H)."""
        wide, half = torch.promote_types(x.dtype, torch.float32), x.shape[-1] // 2
        steps = 10000.0 ** -(torch.arange(0, half, 2, dtype=wide, device=x.device) / half)
        line = torch.arange(SIDE, dtype=wide, device=x.device)[:, None] * steps
        angles = torch.cat([line.repeat_interleave(SIDE, 0), line.repeat(SIDE, 1)], dim=-1)
        return turn(x, angles)


class SwiGLU(nn.Module):
    """W (SiLU(G x) * (X x)) with the three maps fc2, fc1_g and fc1_x."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1_g, self.fc1_x = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        return self.fc2(F.silu(self.fc1_g(x)) * self.fc1_x(x))  # type: ignore[no-any-return]


def identify(header: Header, heads: int | None) -> Identified:
    """Read what shapes tell, and take the rest from the presets.

    Raises:
        CheckpointError: the file contradicts itself, or does not tell its heads or patches.
        UsageError: ``heads`` does not fit the file.
    """
    width, features = header.shape("x_embedder.proj.weight", 2)
    rows, _ = header.shape("y_embedder.embedding_table.weight", 2)
    shared, depth = SHARED in header.shapes, conventions.depth(header)
    sizes: dict[str, Any] = {
        "depth": depth,
        "width": width,
        "heads": _heads(header, heads, width, depth),
        "patch": _patch(header, features),
        "features": features,
        "rows": rows,
        "hidden": header.shape("blocks.0.mlp.fc2.weight", 2)[1],
        "swiglu": "blocks.0.mlp.fc1_g.weight" in header.shapes,
        "learn_sigma": conventions.learned_sigma(header, "final_layer.linear.bias", features),
        "rank": header.shape("blocks.0.adaLN_modulation.1.weight", 2)[0] if shared else 0,
        "qk_norm": shared,
    }
    side = SIDE * sizes["patch"]
    header.assumptions += [
        f"latents of {side} x {side} in patches of {sizes['patch']} x {sizes['patch']}, without "
        "padding: a FiT takes any size, and its file names none",
        f"queries and keys are {'' if shared else 'not '}normalised, as in "
        f"{'FiTv2' if shared else 'the first FiT'}, and rotated by positions on that grid",
    ]
    return Identified(
        family="fit",
        sizes=sizes,
        shape=(features // sizes["patch"] ** 2, side, side),
        num_classes=conventions.classes(header, rows),
        objective=_objective(header, sizes["learn_sigma"]),
        assumptions=header.assumptions,
    )


def _heads(header: Header, asked: int | None, width: int, depth: int) -> int:
    found = conventions.heads(header, asked, width=width, depth=depth, presets=HEADS)
    if width // found % 4:
        raise UsageError(
            f"{found} heads of {header.shown} would have {width // found} features each, where "
            "rotations need a multiple of 4",
            hint="give the right number with --heads",
        )
    return found


def _patch(header: Header, features: int) -> int:
    """Return the side of a patch, which no shape tells apart from the channels."""
    told = header.told("patch_size")
    patch: int = told if conventions.is_count(told) else PATCH
    if features % patch**2:
        raise CheckpointError(
            f"{header.shown} has patches of {features} numbers, which are no {patch} x {patch} "
            "pixels of whole channels",
            hint="store its patch_size in args, or measure the module in Python with dar-probe "
            "audit",
        )
    return patch


def _objective(header: Header, learn_sigma: bool) -> str:
    """Return the objective: variances are learnt in FiT's steps, and not in FiTv2's flow."""
    if learn_sigma:
        header.assumptions.append(
            "learned variances: read as the first FiT, which predicts noise at steps 0..999; they "
            "reach the model as they are, where the published code caps them at 1; --objective "
            "overrides"
        )
        return "dit"
    named = conventions.flow(header, "sit")
    if not named:
        header.assumptions.append(
            "no learned variances: read as FiTv2, a flow whose time runs t = 1 - s; --objective "
            "overrides"
        )
    return named or "sit"


def _fits(header: Header) -> bool:
    """Tell whether patches go through a matrix, where DiT has a convolution and positions."""
    matrix = len(header.shapes.get("x_embedder.proj.weight", ())) == 2
    return matrix and "pos_embed" not in header.shapes


def build(identified: Identified) -> FiT:
    """Return the model, its weights not yet filled."""
    return FiT(FiTConfig(**identified.sizes))


def subject(model: nn.Module, identified: Identified) -> Subject:
    """Name the sites: two sublayers a block, whose writes are added to one stream."""
    assert isinstance(model, FiT)
    sites = Stack()
    for k, block in enumerate(model.blocks, 1):
        assert isinstance(block, Block)
        sites.sublayer(k, "attention", block.norm1, block.attn, block.modulation, (2, 6))
        sites.sublayer(k, "mlp", block.norm2, block.mlp, block.modulation, (5, 6))
    return sites.subject(model, identified, head=model.final_layer.norm_final, tokens=SIDE**2)


FAMILY = Family(
    name="fit",
    title="FiT, FiTv2",
    marks=(r"blocks\.0\.adaLN_modulation\.", r"x_embedder\.proj\.weight\Z"),
    fits=_fits,
    identify=identify,
    build=build,
    subject=subject,
)
