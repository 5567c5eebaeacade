"""An ablation: routes that know the noise level and nothing of what the sources hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dar_probe.routing.dar import DAR, History
from dar_probe.routing.mixing import Sources
from dar_probe.routing.stream import Layout, register


@dataclass
class Timed(History):
    """One forward, with the timestep embedding (N, D)."""

    t_emb: Tensor | None = None


@register(
    "time-mix",
    title="time mix",
    about="DAR without content: the noise level alone decides (an ablation)",
    options=("chunk_size",),
)
class TimeMix(DAR):
    """h_l = sum_i softmax_i(b_l + U_l e(t)) v_i with the timestep embedding e(t) (N, D).

    An ablation of ours: DAR's readers and chunks, but no keys; is it the content of the sources
    that helps? U and b start at zero, so the first reads are means.
    """

    def __init__(self, width: int, layout: Layout, *, chunk_size: int = 4) -> None:
        super().__init__(width, layout, query="static", chunk_size=chunk_size)
        self.readers = nn.ModuleList(
            Clocked(width, len(self.offered(l))) for l in range(1, len(layout) + 2)
        )

    def open(self, v_0: Tensor, t_emb: Tensor | None = None) -> Timed:
        state = Timed(sources=Sources(len(self.readers)), eps=0.0, t_emb=t_emb)
        state.sources.append(self.writers[0](v_0))
        return state

    def read(self, state: Any, l: int) -> Tensor:
        state.turn(l)
        h, weights = self.readers[l - 1](state, l, self.offered(l))
        state.weights.append(weights)
        return h  # type: ignore[no-any-return]

    def write(self, state: Any, l: int, v_l: Tensor) -> None:
        state.sources.append(self.writers[l](v_l))


class Clocked(nn.Module):
    """One reader: a linear map from the timestep embedding to its logits."""

    def __init__(self, width: int, sources: int) -> None:
        super().__init__()
        self.logits = nn.Linear(width, sources)
        linear: Any = self.logits
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)

    def forward(self, history: Timed, reader: int, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return h (N, T, D) and the weights (N, T, n), equal for all tokens."""
        weights = torch.softmax(self.logits(history.t_emb), -1)[:, None]
        h = history.sources.mix(weights, ids, reader)
        return h, weights.detach().expand(-1, h.shape[1], -1)
