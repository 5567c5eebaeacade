"""Plain residual addition: every earlier output enters every reader with weight one."""

from dataclasses import dataclass

from torch import Tensor

from dar_probe.routing.stream import Stream, check_turn, register


@dataclass
class ResidualState:
    """The running sum x (N, T, D) and the number of reads so far."""

    x: Tensor
    reads: int = 0


@register("residual")
class Residual(Stream):
    """x = x + f(x), as in the original transformer, DiT and SiT (arXiv 2212.09748, 2401.08740)."""

    additive = True

    def open(self, v_0: Tensor, t_emb: Tensor | None = None) -> ResidualState:
        return ResidualState(x=self.writers[0](v_0))

    def read(self, state: ResidualState, l: int) -> Tensor:
        check_turn(l, state.reads)
        state.reads += 1
        h: Tensor = self.readers[l - 1](state.x)
        return h

    def write(self, state: ResidualState, l: int, v_l: Tensor) -> None:
        state.x = state.x + self.writers[l](v_l)

    def routes(self, state: ResidualState) -> list[Tensor]:
        return [state.x.new_ones(l) for l in range(1, len(self.layout) + 2)]
