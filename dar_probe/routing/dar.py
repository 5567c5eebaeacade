"""Diffusion-Adaptive Routing: a softmax over the history of sublayer outputs."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dar_probe.errors import UsageError
from dar_probe.routing.mixing import Sources
from dar_probe.routing.schemes import QUERIES, Query
from dar_probe.routing.stream import Layout, Stream, Turns, register

Squash = Literal["softmax", "sigmoid"]


@dataclass
class History(Turns):
    """One forward: all sources so far with their inverse RMS, and the weights of each read.

    Static queries are known before their sources are, so a source meets all of them at once, as
    it comes: ``queries``, times the gain of the keys, are (readers, D), or (N, readers, D) where
    they know the noise level, and None where they are dynamic.
    """

    sources: Sources
    eps: float
    queries: Tensor | None = None
    inverse_rms: list[Tensor] = field(default_factory=list)  # (N, T, 1) each
    weights: list[Tensor] = field(default_factory=list)  # (N, T, offered) per reader
    _dots: list[tuple[int, tuple[Tensor, ...]]] = field(default_factory=list)

    def append(self, v: Tensor, first: int, last: int) -> int:
        """Take the next source, which readers ``first`` to ``last`` may use; return its number."""
        self.sources.append(v)
        self.inverse_rms.append(torch.rsqrt(v.square().mean(-1, keepdim=True) + self.eps))
        if self.queries is not None:
            self._dots.append((first, self._meet(v, slice(first - 1, last)).unbind(-1)))
        return len(self.sources) - 1

    def dots(self, reader: int, ids: Sequence[int]) -> Tensor:
        """Return the products (N, T, n) of some sources with a reader's static query."""
        columns = [self._dots[i] for i in ids]
        return torch.stack([column[reader - first] for first, column in columns], -1)

    def _meet(self, v: Tensor, rows: slice) -> Tensor:
        """Return the products (N, T, readers) of a source with the queries of some readers."""
        assert self.queries is not None
        with _full_precision(v.device.type):
            return v.to(self.queries.dtype) @ self.queries[..., rows, :].mT


def _full_precision(device: str) -> AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(device):  # "meta" for one
        return nullcontext()
    return torch.autocast(device, enabled=False)


def history(readers: Iterable[nn.Module], eps: float, t_emb: Tensor | None = None) -> History:
    """Start one forward of aggregators; ``t_emb`` (N, D) is a part of every static query."""
    aggregators: list[Any] = list(readers)
    state = History(sources=Sources(len(aggregators)), eps=eps)
    if not any(isinstance(one.query, nn.Linear) for one in aggregators):
        queries = torch.stack([one.query.weight for one in aggregators])
        if t_emb is not None:
            queries = queries + t_emb.to(queries.dtype)[:, None]
        # The gain belongs to the keys; k . q is the same with the gain on the query.
        state.queries = queries * torch.stack([one.norm.weight for one in aggregators])
    return state


@register(
    "dar",
    title="DAR",
    about="a softmax over earlier outputs that knows the noise level",
    options=("query", "chunk_size", "zero_time"),
)
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
        zero_time: bool = True,
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
        self.zero_time = zero_time
        self.eps = eps
        self.readers = nn.ModuleList(
            Aggregator(width, dynamic=query == "dynamic", squash=self.squash)
            for _ in range(len(layout) + 1)
        )

    def init_host(self, model: nn.Module) -> None:
        """Zero the timestep embedder's last layer, so that static+t starts as static.

        ``zero_time=False`` leaves it as it is: an ablation of ours.
        """
        if self.query == "static+t" and self.zero_time:
            last: Any = model.get_submodule("t_embedder.mlp.2")
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def open(self, v_0: Tensor, t_emb: Tensor | None = None) -> History:
        if self.query == "static+t" and t_emb is None:
            raise UsageError("the query static+t needs a timestep embedding")
        state = history(self.readers, self.eps, t_emb if self.query == "static+t" else None)
        self._append(state, 0, self.writers[0](v_0))
        return state

    def read(self, state: History, l: int) -> Tensor:
        state.turn(l)
        query_input = state.sources.values[l - 1] if self.query == "dynamic" else None
        h, weights = self.readers[l - 1](state, l, self.offered(l), query_input)
        state.weights.append(weights)
        return h  # type: ignore[no-any-return]

    def write(self, state: History, l: int, v_l: Tensor) -> None:
        self._append(state, l, self.writers[l](v_l))

    def offered(self, l: int) -> tuple[int, ...]:
        """Summaries c_0..c_(n-1) of the finished chunks, then the own chunk's outputs so far.

        The head reads the last chunk's outputs one by one, not its summary.
        """
        size = self.chunk_size
        chunk = (min(l, len(self.layout)) - 1) // size
        return (*range(0, chunk * size, size), *range(chunk * size, l))

    def routes(self, state: History) -> list[Tensor]:
        return state.weights

    def _append(self, state: History, i: int, v: Tensor) -> None:
        size, sites = self.chunk_size, len(self.layout) + 1
        # A summary stays on offer, what else is in a chunk ends with it; the head is in the last.
        end = sites if i % size == 0 else -(-i // size) * size
        state.append(v, i + 1, sites if end == sites - 1 else end)


@register(
    "sigmoid",
    title="sigmoid gates",
    about="DAR without competition between sources (an ablation)",
    options=("query", "chunk_size", "zero_time"),
)
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
        self,
        history: History,
        reader: int,
        ids: Sequence[int],
        query_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return h (N, T, D) and the weights (N, T, n) over the n sources ``ids``.

        ``query_input`` (N, T, D) is what a dynamic query is made of, v_(l-1).
        """
        factors = torch.cat([history.inverse_rms[i] for i in ids], -1) * self.scale
        if not isinstance(self.query, nn.Linear):
            logits = history.dots(reader, ids) * factors
        else:
            query = self.query(query_input) * self.norm.weight
            if self.squash == "softmax":
                h, weights = history.sources.attend(query, factors, ids, reader)
                return h, weights.detach()
            logits = history.sources.dots(query, ids, reader) * factors
        weights = torch.softmax(logits, -1) if self.squash == "softmax" else torch.sigmoid(logits)
        return history.sources.mix(weights, ids, reader), weights.detach()


class Vector(nn.Module):
    """A learned vector (D,) under the name ``weight``."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), value))
