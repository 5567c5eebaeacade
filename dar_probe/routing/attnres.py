"""Attention Residuals: learned queries that attend over depth; in full, in blocks, or on top."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dar_probe.errors import UsageError
from dar_probe.routing.dar import DAR, Aggregator, History, history
from dar_probe.routing.residual import Running, Sum
from dar_probe.routing.stream import Layout, Stream, Turns, register


@register(
    "attnres",
    title="AttnRes",
    about="a softmax over all earlier outputs",
)
class AttnRes(DAR):
    """h_l = sum_i softmax_i(w_l . RMSNorm(v_i)) v_i over all sources (arXiv 2603.15031, section 3).

    DAR's static query without chunks and without 1/sqrt(D). w_l starts at zero, so the first reads
    are means of all sources: plain sums to a reader that starts with a norm.
    """

    def __init__(self, width: int, layout: Layout, *, eps: float = 1e-6) -> None:
        super().__init__(width, layout, query="static", chunk_size=1, eps=eps)
        self.readers = _aggregators(width, layout)


@dataclass
class Blocks(Turns):
    """The history of sums, which of them are of finished blocks, and the unfinished block's sum."""

    history: History
    finished: list[int]
    partial: Tensor | None = None


@register(
    "attnres-block",
    title="block AttnRes",
    about="a softmax over sums of a chunk of outputs",
    label="AttnRes Block",
    options=("chunk_size",),
)
class BlockAttnRes(Stream):
    """AttnRes over sums of S sublayers, and the unfinished sum (arXiv 2603.15031, section 3.2).

    b_0 is the embedding, b_n the sum of the outputs of block n; what does not fill a block at the
    end is one too. The head reads sums alone. A source's route is the weight of its sum.
    """

    dynamic = True

    def __init__(
        self, width: int, layout: Layout, *, chunk_size: int = 4, eps: float = 1e-6
    ) -> None:
        super().__init__(width, layout)
        if chunk_size < 1:
            raise UsageError(f"chunk size {chunk_size} must be at least 1")
        self.chunk_size, self.eps = chunk_size, eps
        self.readers = _aggregators(width, layout)

    def open(self, v_0: Tensor, t_emb: Tensor | None = None) -> Blocks:
        found = history(self.readers, self.eps)
        return Blocks(found, [found.append(self.writers[0](v_0), 1, len(self.readers))])

    def read(self, state: Blocks, l: int) -> Tensor:
        state.turn(l)
        ids = state.finished
        if state.partial is not None:
            if (l - 1) % self.chunk_size == 0 or l > len(self.layout):
                ids.append(state.history.append(state.partial, l, len(self.readers)))
                state.partial = None
            else:
                ids = [*ids, state.history.append(state.partial, l, l)]
        h, weights = self.readers[l - 1](state.history, l, tuple(ids))
        state.history.weights.append(weights)
        return h  # type: ignore[no-any-return]

    def write(self, state: Blocks, l: int, v_l: Tensor) -> None:
        v_l = self.writers[l](v_l)
        state.partial = v_l if state.partial is None else state.partial + v_l

    def routes(self, state: Blocks) -> list[Tensor]:
        block = [0, *(1 + i // self.chunk_size for i in range(len(self.layout)))]
        return [weights[..., block[:l]] for l, weights in enumerate(state.history.weights, 1)]


@dataclass
class Added(Sum):
    """The running sum, and the history that is routed on top of it."""

    history: History


@register(
    "delta-attnres",
    title="Delta AttnRes",
    about="the sum, and a softmax over all earlier outputs on top",
)
class DeltaAttnRes(Running):
    """h_l = sum_i v_i + sum_i a_i v_i: what is routed comes on top (arXiv 2605.18855).

    The a_i = softmax_i(w_l . RMSNorm(v_i)) share their sum of one with a null source, which is
    zero. Zero queries start at a_i = 1 / (l + 1): a multiple of the plain sum.
    """

    dynamic = True

    def __init__(self, width: int, layout: Layout, *, eps: float = 1e-6) -> None:
        super().__init__(width, layout)
        self.eps = eps
        self.aggregators = _aggregators(width, layout)

    def open(self, v_0: Tensor, t_emb: Tensor | None = None) -> Added:
        v_0 = self.writers[0](v_0)
        state = Added(x=v_0, history=history(self.aggregators, self.eps))
        for source in (torch.zeros_like(v_0), v_0):  # the first is the null source
            state.history.append(source, 1, len(self.readers))
        return state

    def read(self, state: Added, l: int) -> Tensor:  # type: ignore[override]
        state.turn(l)
        routed, weights = self.aggregators[l - 1](state.history, l, range(l + 1))
        state.history.weights.append(weights)
        return self.readers[l - 1](state.x + routed)  # type: ignore[no-any-return]

    def write(self, state: Added, l: int, v_l: Tensor) -> None:
        v_l = self.writers[l](v_l)
        state.x = state.x + v_l
        state.history.append(v_l, l + 1, len(self.readers))

    def routes(self, state: Added) -> list[Tensor]:
        return [1 + weights[..., 1:] for weights in state.history.weights]  # 0: the null source


def _aggregators(width: int, layout: Layout) -> nn.ModuleList:
    return nn.ModuleList(
        Aggregator(width, dynamic=False, scale=1.0) for _ in range(len(layout) + 1)
    )
