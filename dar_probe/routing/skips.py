"""Long skips of a U-Net: late blocks begin by fusing the stream with what an early one left."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dar_probe.errors import UsageError
from dar_probe.routing.dar import DAR, History
from dar_probe.routing.residual import Residual, Sum
from dar_probe.routing.schemes import Query
from dar_probe.routing.stream import Layout, register


@dataclass
class Skips(Sum):
    """The running sum, and the outputs of early blocks that no late block has taken yet."""

    kept: list[Tensor] = field(default_factory=list)


class Fusion(nn.Module):
    """W [x, skip], of both normalised together where ``norm`` is set."""

    def __init__(self, width: int, *, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width, eps=1e-6) if norm else nn.Identity()
        self.linear = nn.Linear(2 * width, width)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, T, D), (N, T, D) -> (N, T, D)."""
        return self.linear(self.norm(torch.cat([x, skip], -1)))  # type: ignore[no-any-return]


def fusions(width: int, pairs: int, depth: int, *, norm: bool = False) -> nn.ModuleList:
    """Return one fusion for every late block.

    Raises:
        UsageError: the model is not deep enough for any.
    """
    if pairs < 1:
        raise UsageError(f"{depth} blocks are too few for long skips")
    return nn.ModuleList(Fusion(width, norm=norm) for _ in range(pairs))


def taking(layout: Layout, pairs: int, l: int) -> int | None:
    """Return which fusion comes before reader l, from 0; None before most."""
    blocks = (0, *layout.blocks)
    plain = blocks[-1] - pairs
    if l > len(layout) or blocks[l] == blocks[l - 1] or blocks[l] <= plain:
        return None
    return blocks[l] - 1 - plain


@register(
    "uvit",
    title="U-ViT skips",
    about="the sum, in late blocks fused with an early block's output",
)
class UViT(Residual):
    """Blocks B/2+1..B begin with W [x, skip] of the outputs of blocks B/2..1 (arXiv 2209.12152).

    Between the fusions the stream adds as usual. With an odd number of blocks the middle one
    neither gives nor takes. W is not zero at the start, so the model does not start as a plain one.
    """

    norm = False

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__(width, layout)
        self.depth = max(layout.blocks)
        self.pairs = self.count()
        self.fusions = fusions(width, self.pairs, self.depth, norm=self.norm)

    def count(self) -> int:
        """Return how many blocks give a skip, the first ones, and how many take one, the last."""
        return self.depth // 2

    def open(self, v_0: Tensor, t_emb: Tensor | None = None) -> Skips:
        return Skips(x=self.writers[0](v_0))

    def read(self, state: Any, l: int) -> Tensor:
        ended = self.layout.blocks[l - 2] if l > 1 else 0
        if l > len(self.layout) or self.layout.blocks[l - 1] != ended:
            if 0 < ended <= self.pairs:
                state.kept.append(state.x)
            fusion = self.fusion(l)
            if fusion is not None:
                state.x = fusion(state.x, state.kept.pop())
        return super().read(state, l)

    def fusion(self, l: int) -> nn.Module | None:
        at = taking(self.layout, self.pairs, l)
        return None if at is None else self.fusions[at]


@register(
    "hunyuan",
    title="HunyuanDiT skips",
    about="U-ViT's skips, stream and skip normalised before they are fused",
    label="Hunyuan skips",
)
class Hunyuan(UViT):
    """U-ViT's skips with a LayerNorm of both operands (HunyuanDiT, arXiv 2405.08748).

    Of B blocks the first B/2 - 1 give and the last B/2 - 1 take a skip, as in diffusers'
    HunyuanDiT2DModel; the two in the middle take no part.
    """

    norm = True

    def count(self) -> int:
        return self.depth // 2 - 1


@register(
    "dar-uvit",
    title="DAR on U-ViT skips",
    about="DAR's read, in late blocks fused with the state that an early block left",
    options=("query", "chunk_size", "zero_time"),
    routes=False,
)
class DARUViT(DAR):
    """DAR whose late blocks fuse what they read with what an early block left (2209.12152).

    The attention of block B+1-k reads W [h, z_k]: h is what DAR reads there, z_k the state that
    block k handed on, which under DAR is what the first reader of block k+1 reads. There is no
    stream that the fusion could rewrite, so the block's MLP reads by DAR alone. How the paper
    (section 5) joins the two, it does not say.
    """

    def __init__(
        self,
        width: int,
        layout: Layout,
        *,
        query: Query = "static+t",
        chunk_size: int = 4,
        zero_time: bool = True,
    ) -> None:
        super().__init__(width, layout, query=query, chunk_size=chunk_size, zero_time=zero_time)
        depth = max(layout.blocks)
        self.pairs = depth // 2
        self.fusions = fusions(width, self.pairs, depth)

    def open(self, v_0: Tensor, t_emb: Tensor | None = None) -> Any:
        return Fused(super().open(v_0, t_emb))

    def read(self, state: Any, l: int) -> Tensor:
        h = super().read(state.history, l)
        ended = self.layout.blocks[l - 2] if l > 1 else 0
        if 0 < ended <= self.pairs and self.layout.blocks[l - 1] != ended:
            state.kept.append(h)
        at = taking(self.layout, self.pairs, l)
        return h if at is None else self.fusions[at](h, state.kept.pop())

    def reading(self, l: int) -> nn.Module:
        at = taking(self.layout, self.pairs, l)
        return super().reading(l) if at is None else self.fusions[at]

    def write(self, state: Any, l: int, v_l: Tensor) -> None:
        super().write(state.history, l, v_l)

    def routes(self, state: Any) -> list[Tensor]:
        raise NotImplementedError("a fusion mixes channels")


@dataclass
class Fused:
    """DAR's state, and what early blocks have handed on and no late block has taken yet."""

    history: History
    kept: list[Tensor] = field(default_factory=list)
