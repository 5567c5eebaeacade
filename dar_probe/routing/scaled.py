"""Residual addition with scaled writes, and streams that are normalised after every addition."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dar_probe.routing.residual import Running, Sum
from dar_probe.routing.stream import Layout, Stream, Turns, open_gates, register


@register(
    "rezero",
    title="ReZero",
    about="the sum, each output times a learned scalar",
)
class ReZero(Running):
    """x = x + a_l v_l with one scalar a_l a sublayer, 0 at the start (arXiv 2003.04887).

    The adaLN gates start at one instead of zero: two zeros in a product would never learn.
    """

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__(width, layout)
        self.scale = nn.Parameter(torch.zeros(len(layout)))

    def init_host(self, model: nn.Module) -> None:
        open_gates(model)

    def write(self, state: Sum, l: int, v_l: Tensor) -> None:
        state.x = state.x + self.scale[l - 1] * self.writers[l](v_l)

    def routes(self, state: Sum) -> list[Tensor]:
        weights = torch.cat([self.scale.new_ones(1), self.scale])
        return [weights[:l] for l in range(1, len(weights) + 1)]


@register(
    "layerscale",
    title="LayerScale",
    about="the sum, each output times a learned vector",
)
class LayerScale(Running):
    """x = x + g_l * v_l with a vector g_l (D,) a sublayer (CaiT, arXiv 2103.17239, section 2).

    A write is seen scaled, as the stream gets it: the sum is a plain one. The adaLN gates start
    at one, because g_l starts near zero: 0.1 up to 18 blocks, 1e-5 up to 24, 1e-6 beyond.
    """

    additive = True

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__(width, layout)
        blocks = max(layout.blocks)
        start = 0.1 if blocks <= 18 else 1e-5 if blocks <= 24 else 1e-6
        self.scale = nn.Parameter(torch.full((len(layout), width), start))

    def init_host(self, model: nn.Module) -> None:
        open_gates(model)

    def write(self, state: Sum, l: int, v_l: Tensor) -> None:
        state.x = state.x + self.writers[l](self.scale[l - 1] * v_l)

    def scale_of(self, l: int) -> Tensor:
        return self.scale[l - 1]

    def routes(self, state: Sum) -> list[Tensor]:
        return [state.x.new_ones(l) for l in range(1, len(self.layout) + 2)]


@register(
    "deepnorm",
    title="DeepNorm",
    about="the sum, normalised after every addition",
    routes=False,
)
class DeepNorm(Running):
    """x = LN(a x + v_l), a = (2B)^(1/4) for B blocks: post-norm (arXiv 2203.00555, section 4).

    The block keeps its own affine-free LayerNorm before each sublayer, which changes nothing but
    rounding: what it reads is normalised already. Values, output projections and MLPs start
    divided by (8B)^(1/4). The norms after the additions are affine-free as all others are.
    """

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__(width, layout)
        self.blocks = max(layout.blocks)

    def init_host(self, model: nn.Module) -> None:
        divisor = (8 * self.blocks) ** 0.25
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("attn.qkv.weight"):
                    parameter[2 * self.width :].div_(divisor)  # the rows of the values
                elif name.endswith(("attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")):
                    parameter.div_(divisor)

    def write(self, state: Sum, l: int, v_l: Tensor) -> None:
        kept = (2 * self.blocks) ** 0.25 * state.x
        state.x = F.layer_norm(kept + self.writers[l](v_l), (self.width,), eps=1e-6)


@dataclass
class Siamese(Turns):
    """The normalised stream u and the plain stream y, (N, T, D) each."""

    u: Tensor
    y: Tensor


@register(
    "siamesenorm",
    title="SiameseNorm",
    about="two sums that share their outputs, one normalised after every addition",
    routes=False,
)
class SiameseNorm(Stream):
    """Two streams, u post-norm and y pre-norm, that share their sublayers (arXiv 2602.08064).

    Before every sublayer u = LN(u), and u + LN(y) is read; after it u gains v / sqrt(2k) in block
    k and y gains v. Both start from the embedding.
    """

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__(width, layout)
        self.post, self.pre = (
            nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(len(layout) + 1))
            for _ in range(2)
        )

    def open(self, v_0: Tensor, t_emb: Tensor | None = None) -> Siamese:
        v_0 = self.writers[0](v_0)
        return Siamese(u=v_0, y=v_0)

    def read(self, state: Siamese, l: int) -> Tensor:
        state.turn(l)
        state.u = self.post[l - 1](state.u)
        return self.readers[l - 1](state.u + self.pre[l - 1](state.y))  # type: ignore[no-any-return]

    def write(self, state: Siamese, l: int, v_l: Tensor) -> None:
        v_l = self.writers[l](v_l)
        state.u = state.u + v_l / math.sqrt(2 * self.layout.blocks[l - 1])
        state.y = state.y + v_l


@register(
    "highway",
    title="highway gates",
    about="a gated mean of the stream and each output, feature by feature",
    label="Highway",
    routes=False,
)
class Highway(Running):
    """x = T * v_l + (1 - T) * x with T = sigmoid(W_l x + b_l), (N, T, D) (arXiv 1505.00387).

    The gate sees x normalised, as the sublayers do. b_l starts at -2, so that x is carried; W_l
    at zero. The adaLN gates start at one: T is small already.
    """

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__(width, layout)
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(len(layout)))
        for gate in self.gates:
            linear: Any = gate
            nn.init.zeros_(linear.weight)
            nn.init.constant_(linear.bias, -2.0)

    def init_host(self, model: nn.Module) -> None:
        open_gates(model)

    def write(self, state: Sum, l: int, v_l: Tensor) -> None:
        gate = torch.sigmoid(self.gates[l - 1](F.layer_norm(state.x, (self.width,), eps=1e-6)))
        state.x = state.x + gate * (self.writers[l](v_l) - state.x)
