"""SiT and DiT in one file, with the official parameter names; blocks talk to a Stream.

After "Scalable Diffusion Models with Transformers" (arXiv 2212.09748) and SiT (2401.08740).
Shapes: N samples, C channels, T tokens, D width, H heads, p patch size.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dar_probe.diffusion.latent_norm import EPS
from dar_probe.errors import UsageError
from dar_probe.routing.schemes import ALL_OPTIONS, RoutingOptions
from dar_probe.routing.stream import Layout, Stream, make, options_of

SIZES = {
    "S": {"depth": 12, "width": 384, "heads": 6},
    "B": {"depth": 12, "width": 768, "heads": 12},
    "L": {"depth": 24, "width": 1024, "heads": 16},
    "XL": {"depth": 28, "width": 1152, "heads": 16},
}
PATCHES = (2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class SiTConfig(RoutingOptions):
    """Sizes of one model, and the ``RoutingOptions`` of how its sublayers share their results.

    Attributes:
        depth, width, heads, patch: B, D, H, p.
        in_channels, input_size: C and the side of the square input.
        num_classes: classes without the null class.
        null_class: the label table has one more row, for dropped labels.
        learn_sigma: the head has 2C channels; ``forward`` returns the first C.
        qk_norm: LayerNorm on queries and keys.
        projectors: output widths of REPA's projectors; they are used in training alone.
        projector_width: their hidden width.
        latent_norm: REPA-E's batch norm of the latents; ``forward`` takes them normalised.
    """

    depth: int
    width: int
    heads: int
    patch: int
    in_channels: int = 4
    input_size: int = 32
    num_classes: int = 1000
    null_class: bool = True
    mlp_ratio: float = 4.0
    learn_sigma: bool = True
    qk_norm: bool = False
    projectors: tuple[int, ...] = ()
    projector_width: int = 2048
    latent_norm: bool = False

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "SiTConfig":
        """Return the config called e.g. "SiT-XL/2" or "DiT-S/8", with ``changes`` applied.

        Raises:
            UsageError: no preset has this name.
        """
        family, _, rest = name.partition("-")
        size, _, patch = rest.partition("/")
        if family not in ("SiT", "DiT") or size not in SIZES or patch not in map(str, PATCHES):
            raise UsageError(
                f"unknown model {name!r}",
                hint="SiT or DiT, size S, B, L or XL, patch 2, 4 or 8, as in SiT-XL/2",
            )
        return cls(**{**SIZES[size], "patch": int(patch), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain data."""
        return asdict(self)


class SiT(nn.Module):
    """Scalable interpolant transformer: forward(x (N, C, h, w), t (N,), y (N,)) -> (N, C, h, w)."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        if config.width % config.heads:
            raise UsageError(f"width {config.width} is not a multiple of {config.heads} heads")
        if config.width % 4:
            raise UsageError(f"width {config.width} is not a multiple of 4")  # sin, cos; x, y
        if config.input_size % config.patch:
            raise UsageError(
                f"input size {config.input_size} is not a multiple of patch size {config.patch}"
            )
        self.config = config
        width, grid = config.width, config.input_size // config.patch
        out_channels = config.in_channels * (2 if config.learn_sigma else 1)
        self.x_embedder = PatchEmbed(config.in_channels, width, config.patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes + config.null_class, width)
        self.pos_embed = nn.Parameter(sincos_2d(width, grid), requires_grad=False)
        self.blocks = nn.ModuleList(Block(config, k) for k in range(config.depth))
        self.final_layer = FinalLayer(width, config.patch, out_channels)
        if config.projectors:
            self.projectors = nn.ModuleList(
                projector(width, z, config.projector_width) for z in config.projectors
            )
        if config.latent_norm:  # its statistics normalise the data, see diffusion.latent_norm
            self.bn = nn.BatchNorm2d(config.in_channels, eps=EPS, affine=False)
        self._init_weights()
        self.stream: Stream = make(
            config.routing, width, Layout.transformer(config.depth), **routing_options(config)
        )
        self.stream.init_host(self)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, project_after: int = 0
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict the target at model time ``t`` (the model's own clock) for labels ``y``.

        With ``project_after`` block k, from 1, hand out REPA's projected tokens (N, T, z) too. The
        hidden state after a block is what the next one, or the head, reads from the stream.
        """
        v_0 = self.x_embedder(x) + self.pos_embed  # (N, T, D)
        t_emb = self.t_embedder(t)  # (N, D)
        c = t_emb + self.y_embedder(y)  # (N, D)
        state = self.stream.open(v_0, t_emb)
        hidden = None
        for k, block in enumerate(self.blocks):
            h = block(self.stream, state, c)
            if project_after and k == project_after:
                hidden = h
        h = self.stream.read(state, 2 * len(self.blocks) + 1)
        out = unpatchify(self.final_layer(h, c), self.config.patch)
        out = out[:, : self.config.in_channels]  # (N, C, h, w)
        return (out, self.projectors[0](h if hidden is None else hidden)) if project_after else out

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.config.width, -1))
        nn.init.zeros_(self.x_embedder.proj.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)  # type: ignore[arg-type]
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)  # type: ignore[arg-type]
        # adaLN-Zero: every write, and the output, start at exactly zero.
        zeros: list[Any] = [block.adaLN_modulation[1] for block in self.blocks]  # type: ignore[index]
        for linear in [*zeros, self.final_layer.adaLN_modulation[1], self.final_layer.linear]:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)


class Block(nn.Module):
    """Attention and MLP, each modulated and gated by the conditioning (adaLN-Zero)."""

    def __init__(self, config: SiTConfig, index: int) -> None:
        super().__init__()
        self.index = index
        width = config.width
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, config.heads, config.qk_norm)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, stream: Stream, state: Any, c: Tensor) -> Tensor:
        """Read h_l twice from the stream and write v_l twice; c is (N, D). Return the first h_l."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)  # (N, 1, D) each
        )
        l = 2 * self.index + 1
        first = stream.read(state, l)
        stream.write(state, l, gate1 * self.attn(modulate(self.norm1(first), shift1, scale1)))
        h = stream.read(state, l + 1)
        stream.write(state, l + 1, gate2 * self.mlp(modulate(self.norm2(h), shift2, scale2)))
        return first


class FinalLayer(nn.Module):
    """Norm, modulation and a linear map to patches."""

    def __init__(self, width: int, patch: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, patch * patch * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """(N, T, D), (N, D) -> (N, T, p*p*C)."""
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)
        out: Tensor = self.linear(modulate(self.norm_final(h), shift, scale))
        return out


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm: nn.Module = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (N, H, T, D/H) each
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(out.transpose(1, 2).reshape(n, tokens, width))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Linear, GELU (tanh), Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """Image to patch tokens."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, T, D)."""
        # Contiguous: every later sum would inherit the transposed layout, and norms would copy it.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()  # type: ignore[no-any-return]


class TimestepEmbedder(nn.Module):
    """Model time to a vector; the sinusoid takes t as it is, cosines first."""

    def __init__(self, width: int, frequencies: int = 256, max_period: float = 10000.0) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.frequencies, self.max_period = frequencies, max_period

    def forward(self, t: Tensor) -> Tensor:
        """(N,) -> (N, D)."""
        weight: Any = self.mlp[0].weight
        wave = sinusoid(t, self.frequencies, self.max_period)
        return self.mlp(wave.to(weight.dtype))  # type: ignore[no-any-return]


class LabelEmbedder(nn.Module):
    """Class labels to vectors. Labels are dropped by the trainer, never in here."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)

    def forward(self, y: Tensor) -> Tensor:
        """(N,) -> (N, D)."""
        return self.embedding_table(y)  # type: ignore[no-any-return]


def unpatchify(out: Tensor, patch: int) -> Tensor:
    """Put the tokens of a square back into place: (N, T, p*p*C) -> (N, C, h, w)."""
    n, tokens, _ = out.shape
    side = math.isqrt(tokens)
    out = out.reshape(n, side, side, patch, patch, -1)
    return torch.einsum("nhwpqc->nchpwq", out).reshape(n, -1, side * patch, side * patch)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """AdaLN: x (N, T, D), shift and scale (N, 1, D)."""
    return x * (1 + scale) + shift


def sinusoid(t: Tensor, size: int, max_period: float = 10000.0) -> Tensor:
    """(N,) -> (N, size), in float32 or t's wider type: cos(t f_j) then sin(t f_j)."""
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    half = size // 2
    steps = torch.arange(half, dtype=t.dtype, device=t.device) / half
    angles = t[:, None] * torch.exp(-math.log(max_period) * steps)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_2d(width: int, side: int) -> Tensor:
    """Return the (1, side^2, width) sin-cos table: half for the column, half for the row."""
    if torch.get_default_device().type == "meta":  # a model without memory, to hold a file to
        return torch.empty(1, side * side, width)
    omega = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    angles = np.arange(side)[:, None] * omega
    line = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # (side, D/2)
    column = np.tile(line, (side, 1))
    row = np.repeat(line, side, axis=0)
    return torch.from_numpy(np.concatenate([column, row], axis=1)).float()[None]


def projector(width: int, out: int, hidden: int) -> nn.Sequential:
    """Return a projector of REPA (arXiv 2410.06940): three linear maps with SiLU."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
        nn.Linear(hidden, out),
    )  # fmt: skip


def routing_options(config: SiTConfig) -> dict[str, Any]:
    """Return those of the config's options that its routing takes."""
    taken = options_of(config.routing, ALL_OPTIONS)
    return {name: getattr(config, name) for name in taken}
