"""Hyper-connections: n streams; a sublayer reads a mixture of them and writes to all of them."""

import functools
import itertools
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dar_probe.errors import UsageError
from dar_probe.routing.stream import Layout, Stream, Turns, register


@dataclass
class Streams(Turns):
    """n streams x (N, T, n, D), and what every sublayer so far did with them.

    Attributes:
        reads: per sublayer the share of each stream in what it read, (..., n).
        mixes: per sublayer the matrix that was applied to the streams beside it, (..., n, n).
        writes: per sublayer how much of its output each stream gets, (..., n).
    """

    x: Tensor
    reads: list[Tensor] = field(default_factory=list)
    mixes: list[Tensor] = field(default_factory=list)
    writes: list[Tensor] = field(default_factory=list)


class Hyper(Stream):
    """h = sum_s read_s x_s; then x = mix x + write v. Subclasses give the three per sublayer.

    The streams start as copies of the embedding, and the head reads their sum.
    """

    most = 16

    def __init__(self, width: int, layout: Layout, *, streams: int = 4) -> None:
        super().__init__(width, layout)
        if not 1 <= streams <= self.most:
            raise UsageError(f"{streams} streams; this routing takes 1 to {self.most}")
        self.streams = streams

    def coefficients(self, x: Tensor, l: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return read (..., n), mix (..., n, n) and write (..., n) of sublayer l."""
        raise NotImplementedError

    def open(self, v_0: Tensor, t_emb: Tensor | None = None) -> Streams:
        copies = self.writers[0](v_0).unsqueeze(2).expand(-1, -1, self.streams, -1)
        return Streams(x=copies)

    def read(self, state: Streams, l: int) -> Tensor:
        state.turn(l)
        if l > len(self.layout):
            return self.readers[l - 1](state.x.sum(2))  # type: ignore[no-any-return]
        read, mix, write = self.coefficients(state.x, l)
        state.reads.append(read)
        state.mixes.append(mix)
        state.writes.append(write)
        return self.readers[l - 1]((read.unsqueeze(-1) * state.x).sum(2))  # type: ignore[no-any-return]

    def write(self, state: Streams, l: int, v_l: Tensor) -> None:
        v_l = self.writers[l](v_l)
        state.x = state.mixes[-1] @ state.x + state.writes[-1].unsqueeze(-1) * v_l.unsqueeze(2)

    def routes(self, state: Streams) -> list[Tensor]:
        """Unroll: source i enters reader l as read_l mix_(l-1) ... mix_(i+1) write_i."""
        found = []
        inside = state.x.new_ones(self.streams, 1)  # (..., n, sources): the sources' coefficients
        for read, mix, write in zip(state.reads, state.mixes, state.writes, strict=True):
            found.append((read.unsqueeze(-2) @ inside).squeeze(-2))
            inside = torch.cat([mix @ inside, write.unsqueeze(-1)], -1)
        return [*found, inside.sum(-2)]


@register(
    "hc-static",
    title="static hyper-connections",
    about="a learned mixture of n streams",
    label="HC static",
    options=("streams",),
)
class StaticHyper(Hyper):
    """Learned numbers per sublayer (Hyper-Connections, arXiv 2409.19606, section 2).

    Sublayer l starts by reading stream l mod n, keeping all streams and writing to all: plain
    residual addition in each of them.
    """

    def __init__(self, width: int, layout: Layout, *, streams: int = 4) -> None:
        super().__init__(width, layout, streams=streams)
        sublayers, eye = len(layout), torch.eye(streams)
        # Sublayers are counted from 0 in the paper's l mod n.
        self.read_by = nn.Parameter(eye[torch.arange(sublayers) % streams])
        self.mix_by = nn.Parameter(eye.repeat(sublayers, 1, 1))
        self.write_by = nn.Parameter(torch.ones(sublayers, streams))

    def coefficients(self, x: Tensor, l: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.read_by[l - 1], self.mix_by[l - 1], self.write_by[l - 1]


@register(
    "hc-dynamic",
    title="dynamic hyper-connections",
    about="a mixture of n streams that depends on the token",
    label="HC dynamic",
    options=("streams",),
)
class DynamicHyper(StaticHyper):
    """The static numbers plus s tanh(norm(x) W), token by token (arXiv 2409.19606, section 2.2).

    W starts at zero, so that the start is that of the static variant; the scales s at 0.01.
    """

    dynamic = True

    def __init__(self, width: int, layout: Layout, *, streams: int = 4) -> None:
        super().__init__(width, layout, streams=streams)
        sublayers = len(layout)
        # Columns: read, write, then mix towards each stream.
        self.project = nn.Parameter(torch.zeros(sublayers, width, streams + 2))
        self.scale_read_mix = nn.Parameter(torch.full((sublayers,), 0.01))
        self.scale_write = nn.Parameter(torch.full((sublayers,), 0.01))

    def coefficients(self, x: Tensor, l: int) -> tuple[Tensor, Tensor, Tensor]:
        read, mix, write = super().coefficients(x, l)
        change = torch.tanh(F.rms_norm(x, (self.width,), eps=1e-6) @ self.project[l - 1])
        s, s_write = self.scale_read_mix[l - 1], self.scale_write[l - 1]
        return (
            read + s * change[..., 0],
            mix + s * change[..., 2:].transpose(-1, -2),
            write + s_write * change[..., 1],
        )


@register(
    "mhc",
    title="mHC",
    about="a mixture of n streams, mixed by doubly stochastic matrices",
    options=("streams",),
)
class ManifoldHyper(Hyper):
    """Mixing matrices that are doubly stochastic, by Sinkhorn's iteration (arXiv 2512.24880).

    From the normalised streams u, flattened: read = sigmoid, write = 2 sigmoid and mix = Sinkhorn
    of a (u P) + b, with three scalars a that start at 0.01. The paper leaves the start of P and b
    open; here P = 0, b of read and write is 1 at stream l mod n and -1 elsewhere, and b of mix
    favours the identity (as in github.com/FFTYYY/mhc-lite).
    """

    dynamic = True
    iterations = 20

    def __init__(self, width: int, layout: Layout, *, streams: int = 4) -> None:
        super().__init__(width, layout, streams=streams)
        sublayers, start = len(layout), self.mix_start()
        own = 2 * torch.eye(streams)[torch.arange(sublayers) % streams] - 1
        columns = 2 * streams + len(start)  # read, write, mix
        self.project = nn.Parameter(torch.zeros(sublayers, streams * width, columns))
        self.bias = nn.Parameter(torch.cat([own, own, start.repeat(sublayers, 1)], 1))
        self.scale = nn.Parameter(torch.full((sublayers, 3), 0.01))

    def mix_start(self) -> Tensor:
        """Return the first biases of the mixing matrix, flat: about the identity."""
        return (8 * (torch.eye(self.streams) - 1)).flatten()

    def mix(self, logits: Tensor) -> Tensor:
        """Return matrices (..., n, n) for logits (..., n * n): rows and columns sum to one."""
        matrix = logits.exp().view(*logits.shape[:-1], self.streams, self.streams)
        for _ in range(self.iterations):
            matrix = matrix / matrix.sum(-2, keepdim=True)
            matrix = matrix / matrix.sum(-1, keepdim=True)
        return matrix

    def coefficients(self, x: Tensor, l: int) -> tuple[Tensor, Tensor, Tensor]:
        n, flat = self.streams, x.flatten(2)
        u = F.rms_norm(flat, (flat.shape[-1],), eps=1e-6) @ self.project[l - 1]
        a, b = self.scale[l - 1], self.bias[l - 1]
        read = torch.sigmoid(a[0] * u[..., :n] + b[:n])
        write = 2 * torch.sigmoid(a[1] * u[..., n : 2 * n] + b[n : 2 * n])
        return read, self.mix(a[2] * u[..., 2 * n :] + b[2 * n :]), write


@register(
    "mhc-lite",
    title="mHC-lite",
    about="a mixture of n streams, mixed by averages of permutations",
    options=("streams",),
)
class LiteHyper(ManifoldHyper):
    """Mixing matrices that are softmax averages of all n! permutations (arXiv 2601.05732).

    Exactly doubly stochastic without an iteration; the identity starts 8 ahead of the others.
    """

    most = 5  # 120 permutations

    def mix_start(self) -> Tensor:
        # The identity comes first.
        return torch.tensor([0.0] + [-8.0] * (math.factorial(self.streams) - 1))

    def mix(self, logits: Tensor) -> Tensor:
        shares = torch.softmax(logits, -1)
        table = _permutations(self.streams, shares.dtype, shares.device)
        return torch.tensordot(shares, table, dims=1)  # type: ignore[no-any-return]


@functools.cache
def _permutations(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return all permutation matrices (n!, n, n)."""
    rows = torch.tensor(list(itertools.permutations(range(n))))
    return torch.eye(n)[rows].to(device, dtype)
