"""Mixtures of a growing history of sources, differentiated source by source.

Autograd of the textbook form makes one gradient (N, T, D) for every pair of reader and source, and
adds them up. Here a reader only leaves what its sources will need; when the backward comes to a
source all its readers have been there, and its gradient is one mixture of what they left.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class Sources:
    """The sources of one forward, (N, T, D) each, of which every reader takes a mixture.

    Args:
        readers: how many there are.
    """

    def __init__(self, readers: int) -> None:
        self.values: list[Tensor] = []
        self._readers = readers
        self._tokens: list[Tensor] = []
        self._record = _Record()

    def __len__(self) -> int:
        return len(self.values)

    def append(self, v: Tensor) -> None:
        """Hand in the next source."""
        self.values.append(v)
        if torch.compiler.is_compiling():
            return
        self._record.values.append(v.detach())
        self._record.versions.append(v._version)
        token = _Offer.apply(v, self._record, len(self._tokens), 2 * self._readers)  # type: ignore[no-untyped-call]
        self._tokens.append(token)

    def dots(self, query: Tensor, ids: Sequence[int], reader: int) -> Tensor:
        """Return the products (N, T, n) of sources with a query (N, T, D), of reader 1, 2, ..."""
        if torch.compiler.is_compiling():  # which fuses the textbook form itself
            return products(query, [self.values[i] for i in ids])
        found: Tensor = _Dots.apply(  # type: ignore[no-untyped-call]
            query, self._record, (self._readers + reader - 1, 2 * self._readers), ids,
            *(self._tokens[i] for i in ids),
        )  # fmt: skip
        return found

    def mix(self, weights: Tensor, ids: Sequence[int], reader: int) -> Tensor:
        """Return the sum (N, T, D) of sources with weights (N, T, n), for reader 1, 2, ..."""
        if torch.compiler.is_compiling():
            return mixture(weights, [self.values[i] for i in ids])
        mixed: Tensor = _Mixture.apply(  # type: ignore[no-untyped-call]
            weights, self._record, (reader - 1, 2 * self._readers), ids,
            *(self._tokens[i] for i in ids),
        )  # fmt: skip
        return mixed


@dataclass
class _Record:
    """What the backward needs; nothing in here has a graph, so that no circle keeps it alive.

    ``left`` has, of every reader that a backward has passed, its sources, their coefficients
    (N, T, n), and the vector (N, T, D) that these multiply in the sources' gradients.
    """

    values: list[Tensor] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    left: dict[int, tuple[Sequence[int], Tensor, Tensor]] = field(default_factory=dict)

    def take(self, ids: Sequence[int]) -> list[Tensor]:
        if any(self.values[i]._version != self.versions[i] for i in ids):
            raise RuntimeError("a source was changed in place after it was handed in")
        return [self.values[i] for i in ids]


class _Offer(torch.autograd.Function):
    """Stands for a source in the graph: readers depend on its token, which has no value.

    The token's gradient tells what this backward has left for the source: it may be a part.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, record: _Record, i: int, rows: int) -> Tensor:
        ctx.record, ctx.i = record, i
        return torch.zeros(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, passed: Tensor) -> tuple[Tensor | None, None, None, None]:
        grad = None
        for row in passed.nonzero()[:, 0].tolist():
            ids, coefficients, vector = ctx.record.left[row]
            coefficient = coefficients[..., ids.index(ctx.i), None]
            if grad is None:
                grad = torch.empty_like(ctx.record.values[ctx.i])
                torch.mul(vector, coefficient, out=grad)
            else:
                grad.addcmul_(vector, coefficient)
        return grad, None, None, None


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weights: Tensor,
        record: _Record,
        place: tuple[int, int],
        ids: Sequence[int],
        *tokens: Tensor,
    ) -> Tensor:
        ctx.record, ctx.place, ctx.ids = record, place, ids
        ctx.save_for_backward(weights)
        return mixture(weights, record.take(ids))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        (weights,) = ctx.saved_tensors
        values = ctx.record.take(ctx.ids)
        found = None
        if ctx.needs_input_grad[0]:
            found = products(grad_h, values).sum_to_size(weights.shape)
        return found, *_leave(ctx, weights.detach(), grad_h)


class _Dots(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        record: _Record,
        place: tuple[int, int],
        ids: Sequence[int],
        *tokens: Tensor,
    ) -> Tensor:
        ctx.record, ctx.place, ctx.ids = record, place, ids
        ctx.save_for_backward(query)
        return products(query, record.take(ids))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_dots: Tensor) -> tuple[Tensor | None, ...]:
        (query,) = ctx.saved_tensors
        values = ctx.record.take(ctx.ids)
        found = None
        if ctx.needs_input_grad[0]:
            found = mixture(grad_dots, values).sum_to_size(query.shape)
        return found, *_leave(ctx, grad_dots, query.detach())


def _leave(ctx: Any, coefficients: Tensor, vector: Tensor) -> tuple[Tensor | None, ...]:
    """Leave what the sources need; return the gradients of all but the first argument."""
    row, rows = ctx.place
    ctx.record.left[row] = ctx.ids, coefficients, vector
    token = torch.zeros(rows)
    token[row] = 1.0
    return None, None, None, *(token for _ in ctx.ids)


def products(vector: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Return the products (N, T, n) of a vector (N, T, D) with every source (N, T, D)."""
    return torch.stack([(v * vector).sum(-1) for v in sources], -1)


def mixture(weights: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Return the sum (N, T, D) of sources (N, T, D) with weights (N, T, n)."""
    h = sources[0] * weights[..., 0, None]
    for i, v in enumerate(sources[1:], 1):
        h.addcmul_(v, weights[..., i, None])
    return h
