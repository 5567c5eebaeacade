"""Plain residual addition: every earlier output enters every reader with weight one."""

from dataclasses import dataclass

from torch import Tensor

from dar_probe.routing.stream import Stream, Turns, register


@dataclass
class Sum(Turns):
    """The running sum x (N, T, D)."""

    x: Tensor


class Running(Stream):
    """One running stream, read as it is; subclasses say how it takes a write."""

    def open(self, v_0: Tensor, t_emb: Tensor | None = None) -> Sum:
        return Sum(x=self.writers[0](v_0))

    def read(self, state: Sum, l: int) -> Tensor:
        state.turn(l)
        return self.readers[l - 1](state.x)  # type: ignore[no-any-return]


@register(
    "residual",
    title="plain residuals",
    about="the sum of all earlier outputs",
    label="residual",
)
class Residual(Running):
    """x = x + v_l, as in the original transformer, DiT and SiT (arXiv 2212.09748, 2401.08740)."""

    additive = True

    def write(self, state: Sum, l: int, v_l: Tensor) -> None:
        state.x = state.x + self.writers[l](v_l)

    def routes(self, state: Sum) -> list[Tensor]:
        return [state.x.new_ones(l) for l in range(1, len(self.layout) + 2)]
