"""Mixtures of a growing history of sources, differentiated source by source.

Autograd of the textbook form makes one gradient (N, T, D) for every pair of reader and source, and
adds them up. Here a reader only leaves what its sources will need; when the backward comes to a
source all its readers have been there, and its gradient is one mixture of what they left.

On a GPU ``DAR_PROBE_KERNELS=triton`` takes the fused kernels of ``kernels`` where they fit.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dar_probe.errors import UsageError


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

    def attend(
        self, query: Tensor, factors: Tensor, ids: Sequence[int], reader: int
    ) -> tuple[Tensor, Tensor]:
        """Return h (N, T, D) and its weights (N, T, n), softmax_i(factors_i q . v_i).

        Args:
            query: (N, T, D).
            factors: (N, T, n), which logits are multiplied by.
            ids: the n sources.
            reader: 1, 2, ...
        """
        if fused := kernels([self.values[i] for i in ids], query):
            places = (reader - 1, self._readers + reader - 1, 2 * self._readers)
            h, weights = _Attention.apply(  # type: ignore[no-untyped-call]
                query, factors, self._record, fused, places, ids, *(self._tokens[i] for i in ids)
            )
        else:
            weights = torch.softmax(self.dots(query, ids, reader) * factors, -1)
            h = self.mix(weights, ids, reader)
        return h, weights


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

    def leave(self, rows: int, left: dict[int, tuple[Sequence[int], Tensor, Tensor]]) -> Tensor:
        """Keep what a reader leaves; return the gradient of its sources' tokens, (rows,)."""
        self.left.update(left)
        token = torch.zeros(rows)
        token[list(left)] = 1.0
        return token


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
        left = [ctx.record.left[row] for row in passed.nonzero()[:, 0].tolist()]
        vectors = [vector for _, _, vector in left]
        columns = [coefficients[..., ids.index(ctx.i)] for ids, coefficients, _ in left]
        if not vectors:
            return None, None, None, None
        value = ctx.record.values[ctx.i]
        if fused := kernels(vectors):
            weights = torch.stack([column.expand(value.shape[:-1]) for column in columns], -1)
            return fused.mixture(weights, vectors, value.dtype), None, None, None
        grad = torch.empty_like(value)
        torch.mul(vectors[0], columns[0][..., None], out=grad)
        for vector, column in zip(vectors[1:], columns[1:], strict=True):
            grad.addcmul_(vector, column[..., None])
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


class _Attention(torch.autograd.Function):
    """Products, softmax and mixture of a reader in one pass over its sources, and one back."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        factors: Tensor,
        record: _Record,
        fused: ModuleType,
        places: tuple[int, int, int],
        ids: Sequence[int],
        *tokens: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.record, ctx.fused, ctx.places, ctx.ids = record, fused, places, ids
        values = record.take(ids)
        dtype = torch.promote_types(torch.result_type(query, values[0]), factors.dtype)
        h, weights = fused.attend(query, factors, values, dtype)
        ctx.save_for_backward(query, factors, h, weights)
        ctx.mark_non_differentiable(weights)
        return h, weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_h: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        query, factors, h, weights = ctx.saved_tensors
        grad_h = grad_h.contiguous()
        grad_query, grad_dots, grad_factors = ctx.fused.attend_backward(
            grad_h, query, factors, h, weights, ctx.record.take(ctx.ids)
        )
        mixed, met, rows = ctx.places
        token = ctx.record.leave(rows, {
            mixed: (ctx.ids, weights, grad_h), met: (ctx.ids, grad_dots, query.detach()),
        })  # fmt: skip
        return grad_query, grad_factors, None, None, None, None, *(token for _ in ctx.ids)


def _leave(ctx: Any, coefficients: Tensor, vector: Tensor) -> tuple[Tensor | None, ...]:
    """Leave what the sources need; return the gradients of all but the first argument."""
    row, rows = ctx.place
    token = ctx.record.leave(rows, {row: (ctx.ids, coefficients, vector)})
    return None, None, None, *(token for _ in ctx.ids)


def kernels(sources: Sequence[Tensor], *vectors: Tensor) -> ModuleType | None:
    """Return the module of fused kernels where they are asked for and fit (N, T, D) tensors.

    Raises:
        UsageError: the environment asks for kernels that there are not.
    """
    asked = os.environ.get("DAR_PROBE_KERNELS") or "torch"
    if asked == "torch" or torch.compiler.is_compiling():
        return None
    if asked != "triton":
        raise UsageError(
            f"DAR_PROBE_KERNELS is {asked!r}", hint="there are 'torch', the default, and 'triton'"
        )
    try:
        from dar_probe.routing import kernels as fused
    except ImportError as error:
        raise UsageError(
            f"DAR_PROBE_KERNELS asks for triton, which cannot be imported: {error}",
            hint="pip install triton",
        ) from None
    return fused if fused.fit(sources, *vectors) else None


def products(vector: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Return the products (N, T, n) of a vector (N, T, D) with every source (N, T, D)."""
    if fused := kernels(sources, vector):
        dtype = torch.result_type(vector, sources[0])
        return fused.products(vector, sources, dtype)  # type: ignore[no-any-return]
    return torch.stack([(v * vector).sum(-1) for v in sources], -1)


def mixture(weights: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Return the sum (N, T, D) of sources (N, T, D) with weights (N, T, n)."""
    if fused := kernels(sources):
        dtype = torch.result_type(weights, sources[0])
        return fused.mixture(weights, sources, dtype)  # type: ignore[no-any-return]
    h = sources[0] * weights[..., 0, None]
    for i, v in enumerate(sources[1:], 1):
        h.addcmul_(v, weights[..., i, None])
    return h
