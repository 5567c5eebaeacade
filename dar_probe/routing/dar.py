"""Diffusion-Adaptive Routing: a softmax over the history of sublayer outputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dar_probe.errors import UsageError
from dar_probe.routing.stream import Layout, Stream, Turns, register

Query = Literal["static", "static+t", "dynamic"]
Squash = Literal["softmax", "sigmoid"]
QUERIES: tuple[Query, ...] = ("static", "static+t", "dynamic")


@dataclass
class History(Turns):
    """One forward: all sources so far, their inverse RMS, and the weights of each read."""

    sources: list[Tensor]  # (N, T, D) each
    inverse_rms: list[Tensor]  # (N, T, 1) each
    t_emb: Tensor | None  # (N, D)
    weights: list[Tensor] = field(default_factory=list)  # (N, T, offered) per reader


@register("dar")
class DAR(Stream):
    """h_l = sum_i softmax_i(q_l . RMSNorm(v_i) / sqrt(D)) v_i (arXiv 2605.20708, section 4.2).

    The query q_l is a learned vector (``static``), that vector plus the model's own timestep
    embedding (``static+t``), or a projection of the previous sublayer's output, token by token
    (``dynamic``). With chunk size S the L sublayers form chunks of S; of a finished chunk only
    the last output remains on offer. Reader L+1, the head's, has an aggregator of its own.
    All queries start at zero: the first reads are uniform means.
    """

    dynamic = True
    squash: Squash = "softmax"

    def __init__(
        self,
        width: int,
        layout: Layout,
        *,
        query: Query = "static+t",
        chunk_size: int = 4,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(width, layout)
        if query not in QUERIES:
            raise UsageError(f"unknown query {query!r}", hint=f"known: {', '.join(QUERIES)}")
        if chunk_size < 1 or len(layout) % chunk_size:
            raise UsageError(
                f"chunk size {chunk_size} does not divide the {len(layout)} sublayers",
                hint="every chunk must have the same number of sublayers",
            )
        self.query = query
        self.chunk_size = chunk_size
        self.eps = eps
        self.readers = nn.ModuleList(
            Aggregator(width, dynamic=query == "dynamic", squash=self.squash)
            for _ in range(len(layout) + 1)
        )

    def init_host(self, model: nn.Module) -> None:
        """Zero the timestep embedder's last layer, so that static+t starts as static."""
        if self.query == "static+t":
            last: Any = model.get_submodule("t_embedder.mlp.2")
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def open(self, v_0: Tensor, t_emb: Tensor | None = None) -> History:
        if self.query == "static+t" and t_emb is None:
            raise UsageError("the query static+t needs a timestep embedding")
        state = History(sources=[], inverse_rms=[], t_emb=t_emb)
        self._append(state, self.writers[0](v_0))
        return state

    def read(self, state: History, l: int) -> Tensor:
        state.turn(l)
        offered = self.offered(l)
        query_input = {"static": None, "static+t": state.t_emb, "dynamic": state.sources[l - 1]}
        h, weights = self.readers[l - 1](
            [state.sources[i] for i in offered],
            [state.inverse_rms[i] for i in offered],
            query_input[self.query],
        )
        state.weights.append(weights)
        return h  # type: ignore[no-any-return]

    def write(self, state: History, l: int, v_l: Tensor) -> None:
        self._append(state, self.writers[l](v_l))

    def offered(self, l: int) -> tuple[int, ...]:
        """Summaries c_0..c_(n-1) of the finished chunks, then the own chunk's outputs so far.

        The head reads the last chunk's outputs one by one, not its summary.
        """
        size = self.chunk_size
        chunk = (min(l, len(self.layout)) - 1) // size
        return (*range(0, chunk * size, size), *range(chunk * size, l))

    def routes(self, state: History) -> list[Tensor]:
        return state.weights

    def _append(self, state: History, v: Tensor) -> None:
        state.sources.append(v)
        state.inverse_rms.append(inverse_rms(v, self.eps))


@register("sigmoid")
class Sigmoid(DAR):
    """DAR with sigmoid(logit_i) in place of the softmax: sources do not compete.

    An ablation of ours: is it the softmax that helps? Queries at zero weigh every source 1/2.
    """

    squash = "sigmoid"


class Aggregator(nn.Module):
    """One reader: its query (w_l or W_q), the gain of its key norm, and how logits become weights.

    Logits are divided by sqrt(D), unless ``scale`` says otherwise.
    """

    def __init__(
        self,
        width: int,
        *,
        dynamic: bool,
        squash: Squash = "softmax",
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.squash, self.scale = squash, width**-0.5 if scale is None else scale
        self.norm = Vector(width, 1.0)
        self.query: nn.Linear | Vector
        if dynamic:
            self.query = nn.Linear(width, width, bias=False)
            nn.init.zeros_(self.query.weight)
        else:
            self.query = Vector(width, 0.0)

    def forward(
        self, sources: list[Tensor], inverse_rms: list[Tensor], query_input: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return h (N, T, D) and the weights (N, T, n) over the n sources.

        ``query_input``: None (static), the timestep embedding (N, D), or v_(l-1) (N, T, D).
        """
        if isinstance(self.query, nn.Linear):
            assert query_input is not None
            query = self.query(query_input)
        elif query_input is None:
            query = self.query.weight[None, None]
        else:
            query = (self.query.weight + query_input)[:, None]
        # The gain belongs to the keys; k . q is the same with the gain on the query.
        query, inverse = query * self.norm.weight, torch.cat(inverse_rms, -1)
        settings = self.scale, self.squash
        if not torch.is_grad_enabled():  # torch 2.13 cannot compile the function then
            h, weights, _ = mix(query, inverse, sources, *settings)
            return h, weights
        mixed: tuple[Tensor, Tensor] = Mix.apply(  # type: ignore[no-untyped-call]
            query, inverse, *settings, *sources
        )
        return mixed


class Vector(nn.Module):
    """A learned vector (D,) under the name ``weight``."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), value))


def inverse_rms(v: Tensor, eps: float) -> Tensor:
    """Return 1 / rms (N, T, 1), once per write; its share of the gradient is in Mix.backward."""
    return torch.rsqrt(v.detach().square().mean(-1, keepdim=True) + eps)


def mix(
    query: Tensor, inverse_rms: Tensor, sources: Sequence[Tensor], scale: float, squash: Squash
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the aggregate h (N, T, D), its weights and their logits (N, T, n)."""
    dots = torch.stack([(v * query).sum(-1) for v in sources], -1)
    logits = dots * inverse_rms * scale
    weights = torch.softmax(logits, -1) if squash == "softmax" else torch.sigmoid(logits)
    return mixture(weights, sources), weights, logits


def mixture(weights: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Return the sum (N, T, D) of sources (N, T, D) with weights (N, T, n)."""
    h = sources[0] * weights[..., 0, None]
    for i, v in enumerate(sources[1:], 1):
        h.addcmul_(v, weights[..., i, None])
    return h


class Mix(torch.autograd.Function):
    """Aggregation that keeps no stack of its sources for the backward.

    Autograd of the textbook form would hold a fresh (N, T, n, D) stack for every reader. Here
    the sources are saved by reference and only the weights (N, T, n) are new.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        inverse_rms: Tensor,
        scale: float,
        squash: Squash,
        *sources: Tensor,
    ) -> tuple[Tensor, Tensor]:
        h, weights, logits = mix(query, inverse_rms, sources, scale, squash)
        ctx.scale, ctx.squash = scale, squash
        ctx.save_for_backward(query, inverse_rms, logits, weights, *sources)
        ctx.mark_non_differentiable(weights)
        return h, weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_h: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        query, inverse_rms, logits, weights, *sources = ctx.saved_tensors
        width = query.shape[-1]
        dots = torch.stack([(v * grad_h).sum(-1) for v in sources], -1)
        if ctx.squash == "softmax":
            grad_logits = weights * (dots - (weights * dots).sum(-1, keepdim=True))
        else:
            grad_logits = weights * (1 - weights) * dots
        by_query = grad_logits * inverse_rms * ctx.scale
        # d(1/rms)/dv = -v / (rms^3 D): the part of the key norm that depends on v's length.
        by_length = grad_logits * logits * inverse_rms.square() / width
        grad_query = torch.zeros_like(grad_h)
        grads: list[Tensor] = []
        for i, v in enumerate(sources):
            grad_query.addcmul_(v, by_query[..., i, None])
            grad = grad_h * weights[..., i, None]
            grad.addcmul_(query, by_query[..., i, None])
            grads.append(grad.addcmul_(v, by_length[..., i, None], value=-1))
        return grad_query.sum_to_size(query.shape), None, None, None, *grads
