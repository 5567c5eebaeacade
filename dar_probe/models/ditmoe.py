"""DiT-MoE: a DiT whose MLPs are mixtures of experts, a few of which each token goes through.

After "Scaling Diffusion Transformers to 16 Billion Parameters" (arXiv 2407.11633).
Shapes: N samples, C channels, T tokens, D width, H heads, M = N T tokens of a batch, K experts a
token.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dar_probe.checkpoints.header import Header
from dar_probe.files.text import quote
from dar_probe.models import conventions
from dar_probe.models.sit import (
    Attention,
    FinalLayer,
    LabelEmbedder,
    PatchEmbed,
    TimestepEmbedder,
    modulate,
    unpatchify,
)
from dar_probe.sites.family import Family, Identified
from dar_probe.sites.stack import Stack
from dar_probe.sites.subject import Subject

# (width, depth) -> heads of S, B, L, XL and G in the official code.
HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1152, 28): 16, (1408, 40): 16}
PER_TOKEN = 2  # experts, of every released model
EXPERT, NORM = "blocks.0.moe.experts.0.up_proj.weight", "blocks.0.attn.q_norm.weight"
SHARED = "blocks.0.moe.shared_experts.up_proj.weight"


@dataclass(frozen=True, kw_only=True)
class DiTMoEConfig:
    """Sizes of a DiT-MoE.

    Attributes:
        shape: of one sample, (C, h, w).
        depth, width, heads, patch: blocks, D, H, side of a patch.
        rows: number of rows in the label table.
        learn_sigma: the head has 2C channels; ``DiTMoE.forward`` returns the first C.
        qk_norm: queries and keys are normalised, and attention has the names of FlashAttention.
        experts, per_token: number of experts of a block, and how many a token goes through.
        hidden: width of an expert.
        shared: width of what all tokens go through besides; 0 without.
    """

    shape: tuple[int, ...]
    depth: int
    width: int
    heads: int
    patch: int
    rows: int
    learn_sigma: bool
    qk_norm: bool
    experts: int
    per_token: int
    hidden: int
    shared: int


class DiTMoE(nn.Module):
    """DiT-MoE: forward(x (N, C, h, w), t (N,), y (N,)) -> (N, C, h, w)."""

    def __init__(self, config: DiTMoEConfig) -> None:
        super().__init__()
        width, patch = config.width, config.patch
        channels, tokens = config.shape[0], (config.shape[1] // patch) ** 2
        self.channels, self.patch = channels, patch
        self.x_embedder = PatchEmbed(channels, width, patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.rows, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(width, patch, channels * (2 if config.learn_sigma else 1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict at model time ``t`` (the model's own clock) for labels ``y``."""
        x = self.x_embedder(x) + self.pos_embed  # (N, T, D)
        c = self.t_embedder(t) + self.y_embedder(y)  # (N, D)
        for block in self.blocks:
            x = block(x, c)
        return unpatchify(self.final_layer(x, c), self.patch)[:, : self.channels]


class Block(nn.Module):
    """Attention and a mixture of experts, each modulated and gated (adaLN-Zero)."""

    def __init__(self, config: DiTMoEConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn: nn.Module = (
            NormedAttention(width, heads) if config.qk_norm else Attention(width, heads, False)
        )
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.moe = Mixture(config)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, T, D), c (N, D) -> (N, T, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)  # (N, 1, D) each
        )
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.moe(modulate(self.norm2(x), shift2, scale2))  # type: ignore[no-any-return]


class NormedAttention(nn.Module):
    """Multi-head self-attention with normalised queries and keys, in FlashAttention's names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.Wqkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads, eps=1e-6)
        self.k_norm = nn.LayerNorm(width // heads, eps=1e-6)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        n, tokens, width = x.shape
        qkv = self.Wqkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (N, H, T, D/H) each
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.out_proj(out.transpose(1, 2).reshape(n, tokens, width))  # type: ignore[no-any-return]


class Mixture(nn.Module):
    """For each token the K experts of the highest scores, times their scores, and shared experts.

    Scores are a softmax over all experts; those of the chosen ones do not sum to one. Which ones
    are chosen is a step, scores and experts are smooth: gradients are those of the chosen ones.
    """

    def __init__(self, config: DiTMoEConfig) -> None:
        super().__init__()
        self.per_token = config.per_token
        self.gate = nn.Linear(config.width, config.experts, bias=False)
        self.experts = nn.ModuleList(
            Expert(config.width, config.hidden) for _ in range(config.experts)
        )
        self.shared_experts = Expert(config.width, config.shared) if config.shared else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        tokens = x.flatten(0, 1)  # (M, D)
        scores, chosen = self.gate(tokens).softmax(-1).topk(self.per_token)  # (M, K) each
        order = chosen.flatten().argsort(stable=True)  # of pairs of token and expert, by expert
        parts = order.split(self._counts(chosen))
        made = [
            expert(tokens[part // self.per_token])
            for expert, part in zip(self.experts, parts, strict=True)
            if len(part)
        ]
        # Put back in place rather than added up where they belong: the order of sums is fixed.
        out = torch.cat(made)[order.argsort()].reshape(*chosen.shape, -1)  # (M, K, D)
        out = (scores[..., None] * out).sum(1).reshape(x.shape)
        return out if self.shared_experts is None else out + self.shared_experts(x)  # type: ignore[no-any-return]

    def _counts(self, chosen: Tensor) -> list[int]:
        """Return how many tokens each expert gets."""
        count = len(self.experts)
        if chosen.is_meta:  # to count FLOPs, which are the same wherever tokens go
            return [chosen.numel()] + [0] * (count - 1)
        return chosen.flatten().bincount(minlength=count).tolist()


class Expert(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


def identify(header: Header, heads: int | None) -> Identified:
    """Read the sizes of a DiT-MoE from one shape each, the rest from its settings or as released.

    Raises:
        CheckpointError: it contradicts itself, or does not tell its heads.
        UsageError: ``heads`` does not fit the file.
    """
    frame = conventions.frame(header)
    width, depth = frame.width, conventions.depth(header)
    hidden, _ = header.shape(EXPERT, 2)
    experts = conventions.depth(header, "blocks.0.moe.experts")
    if header.told("num_experts") not in (None, experts):
        told = quote(header.told("num_experts"), 40)
        raise header.contradiction(f"its settings name {told} experts, its blocks have {experts}")
    qk_norm, shaped = NORM in header.shapes, None
    if qk_norm:
        header.shape(NORM, 1)
        shaped = conventions.heads_of_size(header, NORM, width)
    sizes: dict[str, Any] = {
        "depth": depth,
        "width": width,
        "heads": conventions.heads(
            header, heads, width=width, depth=depth, shaped=shaped, presets=HEADS
        ),
        "patch": frame.patch,
        "rows": frame.rows,
        "learn_sigma": frame.learn_sigma,
        "qk_norm": qk_norm,
        "experts": experts,
        "per_token": _per_token(header, experts),
        "hidden": hidden,
        "shared": header.shape(SHARED, 2)[0] if SHARED in header.shapes else 0,
    }
    return Identified(
        family="ditmoe",
        sizes=sizes,
        shape=frame.shape,
        num_classes=conventions.classes(header, frame.rows),
        objective=_objective(header, qk_norm),
        assumptions=header.assumptions,
    )


def _per_token(header: Header, experts: int) -> int:
    """Return how many experts a token goes through, which no shape tells."""
    told: Any = header.told("num_experts_per_tok")
    if told is not None and (not conventions.is_count(told) or told > experts):
        raise header.contradiction(
            f"its settings name {quote(told, 40)} experts a token, its blocks have {experts}"
        )
    found: int = told or min(PER_TOKEN, experts)
    if found < experts:
        if told is None:
            header.assumptions.append(
                f"every token goes through {found} of {experts} experts, as in the released "
                "models; num_experts_per_tok in the file's args overrides"
            )
        header.assumptions.append(
            "gates and gradients hold fixed which experts a token goes through"
        )
    return found


def _objective(header: Header, qk_norm: bool) -> str:
    """Return the objective: rectified flow or DiT's steps, as the settings or the release says."""
    told = header.told("rf")
    if not isinstance(told, bool):
        header.assumptions.append(
            "read as a rectified flow, t = s, as the released models with normalised queries are; "
            "--objective overrides"
            if qk_norm
            else "read as a model of DiT's steps, as the released models without normalised "
            "queries are; --objective overrides"
        )
        told = qk_norm
    return "repa" if told else "dit"


def build(identified: Identified) -> DiTMoE:
    """Build the model; its weights are for the caller to load."""
    return DiTMoE(DiTMoEConfig(shape=identified.shape, **identified.sizes))


def subject(model: nn.Module, identified: Identified) -> Subject:
    """Name the sites of a DiT-MoE, at sublayer granularity; a mixture is one mlp."""
    assert isinstance(model, DiTMoE)
    sites = Stack()
    blocks: list[Any] = [*model.blocks]
    for k, block in enumerate(blocks, 1):
        gate = block.adaLN_modulation
        sites.sublayer(k, "attention", block.norm1, block.attn, gate, (2, 6))
        sites.sublayer(k, "mlp", block.norm2, block.moe, gate, (5, 6))
    head, tokens = model.final_layer.norm_final, model.pos_embed.shape[1]
    return sites.subject(model, identified, head=head, tokens=tokens)


FAMILY = Family(
    name="ditmoe",
    title="DiT-MoE",
    marks=(r"x_embedder\.proj\.weight\Z", r"blocks\.0\.moe\.experts\.0\."),
    identify=identify,
    build=build,
    subject=subject,
)
