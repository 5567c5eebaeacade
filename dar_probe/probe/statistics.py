"""Pure tensor reductions: what one recorded forward and backward say, per sample.

N samples, T tokens, D features; R = L + 1 readers, S = L + 1 sources, B blocks. Definitions are
in ``dar_probe.results.schema``. A fresh temporary as large as a state costs more than the
arithmetic on it (page faults), so every loop works in buffers that are made once.
"""

import math
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

TOP = 0.01  # share of channels, or of tokens, that counts as the largest ones


def block_statistics(
    states: Sequence[Tensor], norms: Tensor, grads: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return every variable over blocks, see ``dar_probe.results.schema``, (N, B+1) each.

    Args:
        states: z_0..z_B (N, T, D) each.
        norms: their norms, token by token (B+1, N, T).
        grads: dLoss/dz_k, shaped like the states.
    """
    width = states[0].shape[-1]
    # What is (N, D) or (N, T) per block is collected, and reduced for all blocks at once.
    energy, grad_norms, dots = [], [], []
    centred_norms, centred_dots = [], []
    # Some models hand on float32 behind blocks of another type.
    common = reduce(torch.promote_types, (wide(state[:0]).dtype for state in states))
    buffers = [torch.empty_like(states[0], dtype=common) for _ in range(2)]
    for k, (state, grad) in enumerate(zip((s.to(common) for s in states), grads, strict=True)):
        energy.append(torch.linalg.vecdot(state, state, dim=1))
        grad_norms.append(token_norms(grad))
        centred, before = buffers[k % 2], buffers[1 - k % 2]
        torch.sub(state, state.mean(1, keepdim=True), out=centred)
        centred_norms.append(token_norms(centred))
        if k:
            dots.append(torch.linalg.vecdot(state, states[k - 1].to(common)))
            centred_dots.append(torch.linalg.vecdot(centred, before))
    return {
        "rms": rms(norms, width).T,
        "rms_top1": _top_share(torch.stack(energy, 1)),
        "token_top1": _top_share(norms.square()).T,
        "token_norm_top1": _top_share(norms).T,
        "grad_rms": rms(torch.stack(grad_norms, 1), width),
        "cosine": _cosine(dots, norms),
        "cosine_centred": _cosine(centred_dots, torch.stack(centred_norms)),
    }


class Rounding:
    """What rounding loses while writes are added to a stream, as the forward goes on.

    Only norms, token by token (N, T) each, are kept of every write and every read.
    """

    def __init__(self) -> None:
        self._write: list[Tensor] = []
        self._lost: list[Tensor] = []
        self._error: list[Tensor] = []
        self._gap = self._sum = torch.empty(0)
        self._elements = 0

    @torch.no_grad()
    def start(self, read: Tensor, embedding: Tensor) -> None:
        """Compare what reader 1 reads with the embedding (N, T, D)."""
        self._elements = read[0].numel()
        self._sum = wide(read) - wide(embedding)
        self._gap = torch.empty_like(self._sum)
        self._error.append(token_norms(self._sum))

    @torch.no_grad()
    def add(self, before: Tensor, after: Tensor, write: Tensor) -> None:
        """Compare the states before and after a write (N, T, D) with the write itself."""
        gap = torch.sub(wide(after), wide(before), out=self._gap).sub_(write)
        self._sum.add_(gap)
        self._lost.append(token_norms(gap))
        self._write.append(token_norms(write))
        self._error.append(token_norms(self._sum))

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return write_rms and write_lost (N, L), and |h_l - (v_0 + ... + v_(l-1))| (R, N, T)."""
        lost, size = (
            torch.stack(norms, 1).square().sum(-1).sqrt() for norms in (self._lost, self._write)
        )
        return size / math.sqrt(self._elements), lost / size, torch.stack(self._error)


def route_statistics(weights: Tensor) -> dict[str, Tensor]:
    """Return route, route_token_std (N, R, S) and route_entropy (N, R).

    Args:
        weights: w (N, T, R, S), zero where a source is not offered.
    """
    share = weights.abs() / weights.abs().sum(-1, keepdim=True)
    return {
        "route": weights.mean(1),
        "route_token_std": weights.std(1, correction=0),
        "route_entropy": torch.special.entr(share).sum(-1).mean(1),
    }


def plain_routes(offered: Tensor, *, like: Tensor) -> dict[str, Tensor]:
    """Return the same for plain residuals: every offered source (R, S) enters with weight 1.

    ``like`` is (N, R, S), of the wanted type.
    """
    count = offered.sum(1).to(like.dtype)
    entropy = torch.where(count > 0, count.log(), math.nan)
    return {
        "route": torch.ones_like(like),
        "route_token_std": torch.zeros_like(like),
        "route_entropy": entropy.expand(len(like), -1),
    }


def query_share(gate: Tensor, sources: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
    """Return the share of each source's effect that flows through queries (N, S).

    Args:
        gate: reader gates (N, R, S), NaN where not offered.
        sources: v_i (N, T, D) each.
        grads: dLoss/dv_i, shaped like the sources.
    """
    whole = [
        torch.linalg.vecdot(wide(v), wide(g)).sum(-1) for v, g in zip(sources, grads, strict=True)
    ]
    stream = gate.nansum(1)
    through_query = torch.stack(whole, 1) - stream
    return through_query.abs() / (through_query.abs() + stream.abs())


def write_rms(states: Sequence[Tensor]) -> Tensor:
    """Return the RMS of the differences of successive states (N, T, D) each: (N, states - 1)."""
    buffer = torch.empty_like(wide(states[0]))
    norms = [
        token_norms(torch.sub(wide(after), wide(before), out=buffer))
        for before, after in pairwise(states)
    ]
    return rms(torch.stack(norms, 1), buffer.shape[-1])


def token_norms(x: Tensor) -> Tensor:
    """Norm over features, in float32 at least: (..., T, D) -> (..., T)."""
    return torch.linalg.vector_norm(wide(x), dim=-1)  # type: ignore[no-any-return]


def rms(norms: Tensor, width: int) -> Tensor:
    """Token norms (..., T) -> sqrt of the mean over tokens and ``width`` features (...)."""
    return norms.square().mean(-1).div_(width).sqrt_()


def wide(x: Tensor) -> Tensor:
    """Return half precision as float32: it would lose what is to be measured."""
    return x if x.element_size() >= 4 else x.float()


def _cosine(dots: Sequence[Tensor], norms: Tensor) -> Tensor:
    """Mean over tokens of dots (N, T) of neighbours over their norms (B+1, N, T): (N, B+1)."""
    unknown = torch.full_like(norms[0, :, :1], math.nan)  # block 0 has no neighbour before it
    if not dots:
        return unknown
    cosine = (torch.stack(list(dots)) / (norms[1:] * norms[:-1])).mean(-1).clamp(-1, 1)
    return torch.cat([unknown, cosine.T], 1)


def _top_share(energy: Tensor) -> Tensor:
    """Share that the largest 1 % of the last axis have, at least one of them."""
    count = max(1, math.ceil(TOP * energy.shape[-1]))
    return energy.topk(count, dim=-1).values.sum(-1) / energy.sum(-1)
