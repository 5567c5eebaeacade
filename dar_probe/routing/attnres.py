"""Attention Residuals: learned queries that attend over depth; in full, in blocks, or on top."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dar_probe.errors import UsageError
from dar_probe.routing.dar import DAR, Aggregator, History, inverse_rms
from dar_probe.routing.residual import Running, Sum
from dar_probe.routing.stream import Layout, Stream, register


@register("attnres")
class AttnRes(DAR):
    """h_l = sum_i softmax_i(w_l . RMSNorm(v_i)) v_i over all sources (arXiv 2603.15031, section 3).

    DAR's static query without chunks and without 1/sqrt(D). w_l starts at zero, so the first reads
    are means of all sources: plain sums to a reader that starts with a norm.
    """

    def __init__(self, width: int, layout: Layout, *, eps: float = 1e-6) -> None:
        super().__init__(width, layout, query="static", chunk_size=1, eps=eps)
        self.readers = _aggregators(width, layout)


@dataclass
class Blocks(History):
    """Finished block sums b_0, b_1, ... as ``sources``, and the sum of the unfinished block."""

    partial: Tensor | None = None


@register("attnres-block")
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
        v_0 = self.writers[0](v_0)
        return Blocks(sources=[v_0], inverse_rms=[inverse_rms(v_0, self.eps)], t_emb=None)

    def read(self, state: Blocks, l: int) -> Tensor:
        state.turn(l)
        if state.partial is not None and ((l - 1) % self.chunk_size == 0 or l > len(self.layout)):
            state.sources.append(state.partial)
            state.inverse_rms.append(inverse_rms(state.partial, self.eps))
            state.partial = None
        sums, inverse = list(state.sources), list(state.inverse_rms)
        if state.partial is not None:
            sums.append(state.partial)
            inverse.append(inverse_rms(state.partial, self.eps))
        h, weights = self.readers[l - 1](sums, inverse, None)
        state.weights.append(weights)
        return h  # type: ignore[no-any-return]

    def write(self, state: Blocks, l: int, v_l: Tensor) -> None:
        v_l = self.writers[l](v_l)
        state.partial = v_l if state.partial is None else state.partial + v_l

    def routes(self, state: Blocks) -> list[Tensor]:
        block = [0, *(1 + i // self.chunk_size for i in range(len(self.layout)))]
        return [weights[..., block[:l]] for l, weights in enumerate(state.weights, 1)]


@dataclass
class Added(Sum):
    """The running sum, and the history that is routed on top of it."""

    history: History


@register("delta-attnres")
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
        history = History(sources=[torch.zeros_like(v_0)], inverse_rms=[], t_emb=None)
        state = Added(x=v_0, history=history)
        state.history.inverse_rms.append(inverse_rms(history.sources[0], self.eps))
        self._remember(state, v_0)
        return state

    def read(self, state: Added, l: int) -> Tensor:  # type: ignore[override]
        state.turn(l)
        history = state.history
        routed, weights = self.aggregators[l - 1](history.sources, history.inverse_rms, None)
        history.weights.append(weights)
        return self.readers[l - 1](state.x + routed)  # type: ignore[no-any-return]

    def write(self, state: Added, l: int, v_l: Tensor) -> None:
        v_l = self.writers[l](v_l)
        state.x = state.x + v_l
        self._remember(state, v_l)

    def routes(self, state: Added) -> list[Tensor]:
        return [1 + weights[..., 1:] for weights in state.history.weights]  # 0: the null source

    def _remember(self, state: Added, v: Tensor) -> None:
        state.history.sources.append(v)
        state.history.inverse_rms.append(inverse_rms(v, self.eps))


def _aggregators(width: int, layout: Layout) -> nn.ModuleList:
    return nn.ModuleList(
        Aggregator(width, dynamic=False, scale=1.0) for _ in range(len(layout) + 1)
    )
