"""An ablation: routes that know the noise level and nothing of what the sources hold."""

from typing import Any

import torch
from torch import Tensor, nn

from dar_probe.routing.dar import DAR, History, mixture
from dar_probe.routing.stream import Layout, register


@register("time-mix")
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

    def read(self, state: History, l: int) -> Tensor:
        state.turn(l)
        h, weights = self.readers[l - 1]([state.sources[i] for i in self.offered(l)], state.t_emb)
        state.weights.append(weights)
        return h  # type: ignore[no-any-return]

    def _append(self, state: History, v: Tensor) -> None:
        state.sources.append(v)


class Clocked(nn.Module):
    """One reader: a linear map from the timestep embedding to its logits."""

    def __init__(self, width: int, sources: int) -> None:
        super().__init__()
        self.logits = nn.Linear(width, sources)
        linear: Any = self.logits
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)

    def forward(self, sources: list[Tensor], t_emb: Tensor) -> tuple[Tensor, Tensor]:
        """Return h (N, T, D) and the weights (N, T, n), equal for all tokens."""
        weights = torch.softmax(self.logits(t_emb), -1)[:, None]
        return mixture(weights, sources), weights.expand(-1, sources[0].shape[1], -1)
