"""Triton kernels for mixtures on a GPU: a read passes over its sources once and stacks nothing.

``mixing`` and its plain torch operations are the reference, and what runs wherever these do not
fit. They are used where the environment says ``DAR_PROBE_KERNELS=triton``: they are checked in
Triton's interpreter and compiled for 8.0 and 9.0, but have not run on a GPU.

One program works on one row, that is one token of one sample, whose D numbers lie in registers;
sources are separate tensors, of which a kernel gets the addresses.
"""

# What Triton compiles has types of its own.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
WIDEST = 16384  # a row must fit into the registers of one program


def fit(sources: Sequence[Tensor], *vectors: Tensor) -> bool:
    """Tell whether tensors (N, T, D) are dense and on the GPU, and the sources of one type."""
    first = sources[0]
    return all(
        (v.is_cuda or INTERPRETED)
        and v.is_contiguous()
        and v.dtype in TYPES
        and v.shape == first.shape
        and v.shape[-1] <= WIDEST
        for v in (*sources, *vectors)
    ) and all(v.dtype == first.dtype and v.data_ptr() % 16 == 0 for v in sources)


def mixture(weights: Tensor, sources: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the sum (N, T, D) of sources (N, T, D) with weights (N, T, n), as ``dtype``."""
    out = torch.empty_like(sources[0], dtype=dtype)
    weights = weights.expand(*out.shape[:2], -1)
    _launch(_mixture, sources, weights, out, len(sources), *out.shape[1:], *weights.stride())
    return out


def products(vector: Tensor, sources: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the products (N, T, n) of a vector (N, T, D) with every source, as ``dtype``."""
    out = vector.new_empty(*vector.shape[:2], len(sources), dtype=dtype)
    _launch(_products, sources, vector, out, len(sources), vector.shape[-1])
    return out


def attend(
    query: Tensor, factors: Tensor, sources: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return h (N, T, D), and its weights softmax_i(factors_i q . v_i), (N, T, n).

    Args:
        query: (N, T, D).
        factors: (N, T, n), dense: inverse RMS times scale.
        sources: n of (N, T, D).
        dtype: of both.
    """
    h = torch.empty_like(query, dtype=dtype)
    weights = torch.empty_like(factors, dtype=dtype)
    n = len(sources)
    slots = triton.next_power_of_2(n)
    _launch(_attend, sources, query, factors, h, weights, n, query.shape[-1], SLOTS=slots)
    return h, weights


def attend_backward(
    grad_h: Tensor, query: Tensor, factors: Tensor, h: Tensor, weights: Tensor,
    sources: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of the query (N, T, D), of q . v_i and of the factors (N, T, n)."""
    grad_query = torch.empty_like(query)
    grad_dots, grad_factors = torch.empty_like(weights), torch.empty_like(factors)
    _launch(
        _attend_backward, sources, grad_h, query, factors, h, weights, grad_query, grad_dots,
        grad_factors, len(sources), query.shape[-1],
    )  # fmt: skip
    return grad_query, grad_dots, grad_factors


TYPES = {
    torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}  # fmt: skip


def constants(sources: Sequence[Tensor], *others: Tensor) -> dict[str, Any]:
    """Say in which type sources lie, in which sums are taken, and how wide a program is."""
    double = any(one.dtype == torch.float64 for one in (sources[0], *others))
    columns = triton.next_power_of_2(sources[0].shape[-1])
    return {
        "TYPE": TYPES[sources[0].dtype],
        "SUM": tl.float64 if double else tl.float32,
        "COLUMNS": columns,
        "num_warps": min(8, max(1, columns // 256)),  # of 32 lanes with 8 numbers of a row each
    }


def _launch(kernel: Any, sources: Sequence[Tensor], *arguments: Any, **more: int) -> None:
    """Start one program for every row of the sources."""
    first = sources[0]
    tensors = [one for one in arguments if isinstance(one, Tensor)]
    # Pinned memory is copied without waiting for the GPU.
    places = [v.data_ptr() for v in sources]
    addresses = torch.tensor(places, dtype=torch.int64, pin_memory=first.is_cuda)
    with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
        kernel[(first.shape[0] * first.shape[1],)](
            addresses.to(first.device, non_blocking=True), *arguments,
            **constants(sources, *tensors), **more,
        )  # fmt: skip


@triton.jit(do_not_specialize=["n"])
def _mixture(
    addresses, weights, out, n, tokens, width, stride_N, stride_T, stride_n,
    TYPE: tl.constexpr, SUM: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    weights += (row // tokens) * stride_N + (row % tokens) * stride_T
    total = tl.zeros((COLUMNS,), SUM)
    for i in range(n):
        weight = tl.load(weights + i * stride_n).to(SUM)
        total += weight * _source(addresses, i, row, columns, width, TYPE, SUM)
    tl.store(out + row * width + columns, total.to(out.dtype.element_ty), mask=columns < width)


@triton.jit(do_not_specialize=["n"])
def _products(
    addresses, vector, out, n, width,
    TYPE: tl.constexpr, SUM: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    fixed = _row(vector, row, columns, width, SUM)
    for i in range(n):
        dot = tl.sum(fixed * _source(addresses, i, row, columns, width, TYPE, SUM))
        tl.store(out + row * n + i, dot.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["n"])
def _attend(
    addresses, query, factors, h, weights, n, width,
    TYPE: tl.constexpr, SUM: tl.constexpr, COLUMNS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns, slots = tl.arange(0, COLUMNS), tl.arange(0, SLOTS)
    q = _row(query, row, columns, width, SUM)
    logits = tl.full((SLOTS,), float("-inf"), SUM)
    mean = tl.zeros((COLUMNS,), SUM)
    top = tl.full((), float("-inf"), SUM)
    mass = tl.zeros((), SUM)
    # The softmax of what is known so far, rescaled whenever a higher logit comes.
    for i in range(n):
        v = _source(addresses, i, row, columns, width, TYPE, SUM)
        logit = tl.sum(q * v) * tl.load(factors + row * n + i).to(SUM)
        logits = tl.where(slots == i, logit, logits)
        higher = tl.maximum(top, logit)
        kept, part = tl.exp(top - higher), tl.exp(logit - higher)
        mass = mass * kept + part
        mean = mean * kept + part * v
        top = higher
    tl.store(h + row * width + columns, (mean / mass).to(h.dtype.element_ty), mask=columns < width)
    found = (tl.exp(logits - top) / mass).to(weights.dtype.element_ty)
    tl.store(weights + row * n + slots, found, mask=slots < n)


@triton.jit(do_not_specialize=["n"])
def _attend_backward(
    addresses, grad_h, query, factors, h, weights, grad_query, grad_dots, grad_factors, n, width,
    TYPE: tl.constexpr, SUM: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    q = _row(query, row, columns, width, SUM)
    g = _row(grad_h, row, columns, width, SUM)
    # sum_i w_i g . v_i, what all logits share in the softmax's gradient, is g . h.
    shared = tl.sum(g * _row(h, row, columns, width, SUM))
    total = tl.zeros((COLUMNS,), SUM)
    for i in range(n):
        v = _source(addresses, i, row, columns, width, TYPE, SUM)
        weight = tl.load(weights + row * n + i).to(SUM)
        factor = tl.load(factors + row * n + i).to(SUM)
        grad_logit = weight * (tl.sum(g * v) - shared)
        total += grad_logit * factor * v
        tl.store(grad_dots + row * n + i, (grad_logit * factor).to(grad_dots.dtype.element_ty))
        grad_factor = grad_logit * tl.sum(q * v)
        tl.store(grad_factors + row * n + i, grad_factor.to(grad_factors.dtype.element_ty))
    out = grad_query + row * width + columns
    tl.store(out, total.to(grad_query.dtype.element_ty), mask=columns < width)


@triton.jit
def _row(base, row, columns, width, SUM: tl.constexpr):
    return tl.load(base + row * width + columns, mask=columns < width, other=0.0).to(SUM)


@triton.jit
def _source(addresses, i, row, columns, width, TYPE: tl.constexpr, SUM: tl.constexpr):
    base = tl.load(addresses + i).to(tl.pointer_type(TYPE))
    return _row(tl.multiple_of(base, 16), row, columns, width, SUM)
