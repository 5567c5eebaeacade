"""Dense connections: learned averages of all block outputs, and concatenation of all writes."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dar_probe.errors import UsageError
from dar_probe.routing.stream import Layout, Stream, Turns, register


@dataclass
class Averages(Turns):
    """The stream x (N, T, D) and the averaged block outputs X_0..X_k that later blocks see."""

    x: Tensor
    outputs: list[Tensor] = field(default_factory=list)


@register(
    "denseformer",
    title="DenseFormer",
    about="learned averages of all block outputs",
    options=("dilation", "period"),
)
class DenseFormer(Stream):
    """After block k the stream becomes sum_j a[k,j] X_j over X_0, ..., X_k (arXiv 2402.02622).

    X_0 is the embedding and X_j the output of block j, which adds its sublayers as usual. The
    scalars a start at one for j = k and zero elsewhere: plain residual addition. With dilation d,
    block k sees X_k, X_(k-d), ...; with period p only every p-th block averages.
    """

    def __init__(self, width: int, layout: Layout, *, dilation: int = 1, period: int = 1) -> None:
        super().__init__(width, layout)
        if min(dilation, period) < 1:
            raise UsageError("dilation and period of DenseFormer must be at least 1")
        self.averages = nn.ParameterDict()
        for k in range(period, max(layout.blocks) + 1, period):
            seen = len(range(k % dilation, k + 1, dilation))
            self.averages[str(k)] = nn.Parameter(torch.eye(seen)[-1])
        self.dilation = dilation

    def open(self, v_0: Tensor, t_emb: Tensor | None = None) -> Averages:
        return Averages(x=self.writers[0](v_0))

    def read(self, state: Averages, l: int) -> Tensor:
        state.turn(l)
        k = self.ended(l)
        if k is not None:
            state.outputs.append(state.x)
            state.x = self._average(k, state.outputs)
        return self.readers[l - 1](state.x)  # type: ignore[no-any-return]

    def write(self, state: Averages, l: int, v_l: Tensor) -> None:
        state.x = state.x + self.writers[l](v_l)

    def routes(self, state: Averages) -> list[Tensor]:
        """Follow the coefficients of all sources through the averages."""
        count = len(self.layout) + 1
        unit, found = torch.eye(count, device=state.x.device, dtype=state.x.dtype), []
        x, outputs = unit[0], list[Tensor]()
        for l in range(1, count + 1):
            k = self.ended(l)
            if k is not None:
                outputs.append(x)
                x = self._average(k, outputs)
            found.append(x[:l])
            if l < count:
                x = x + unit[l]
        return found

    def ended(self, l: int) -> int | None:
        """Return the block that ends before reader l, 0 for the embedding; None within a block."""
        blocks = (0, *self.layout.blocks, max(self.layout.blocks) + 1)
        return blocks[l - 1] if blocks[l] != blocks[l - 1] else None

    def _average(self, k: int, outputs: list[Tensor]) -> Tensor:
        """Return what follows X_k, the newest of ``outputs``, which themselves stay as they are."""
        if str(k) not in self.averages:
            return outputs[-1]
        seen = outputs[k % self.dilation :: self.dilation]
        return sum(w * x for w, x in zip(self.averages[str(k)], seen, strict=True))  # type: ignore[no-any-return]


@dataclass
class Writes(Turns):
    """All sources so far, (N, T, D) each."""

    sources: list[Tensor]


@register(
    "densenet",
    title="DenseNet",
    about="all earlier outputs side by side, through one matrix",
    routes=False,
)
class DenseNet(Stream):
    """h_l = W_l [v_0, ..., v_(l-1)]: all earlier writes side by side (after arXiv 1608.06993).

    W_l (D, l D) has no bias and starts as a row of identities: plain residual addition. For small
    models: the parameters grow as the square of the depth.
    """

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__(width, layout)
        self.fusions = nn.ModuleList(
            nn.Linear(l * width, width, bias=False) for l in range(1, len(layout) + 2)
        )
        for l, fusion in enumerate(self.fusions, 1):
            linear: Any = fusion
            linear.weight.data.copy_(torch.eye(width).repeat(1, l))

    def open(self, v_0: Tensor, t_emb: Tensor | None = None) -> Writes:
        return Writes(sources=[self.writers[0](v_0)])

    def read(self, state: Writes, l: int) -> Tensor:
        state.turn(l)
        return self.readers[l - 1](self.fusions[l - 1](torch.cat(state.sources, -1)))  # type: ignore[no-any-return]

    def write(self, state: Writes, l: int, v_l: Tensor) -> None:
        state.sources.append(self.writers[l](v_l))
