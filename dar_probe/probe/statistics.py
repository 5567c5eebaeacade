"""Pure tensor reductions: what one recorded forward and backward say, per sample.

N samples, T tokens, D features; R = L + 1 readers, S = L + 1 sources, B blocks. Definitions are
in ``dar_probe.schema``.
"""

import math

import torch
from torch import Tensor

from dar_probe.probe import gates

TOP_CHANNELS = 0.01


def block_statistics(z: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Return rms, rms_top1, grad_rms, cosine and cosine_centred, (N, B+1) each.

    Args:
        z: the states z_0..z_B (B+1, N, T, D).
        grad: dLoss/dz_k, in the same shape.
    """
    centred = z - z.mean(2, keepdim=True)
    statistics = {
        "rms": rms(z),
        "rms_top1": top_share(z),
        "grad_rms": rms(grad),
        "cosine": neighbour_cosine(z),
        "cosine_centred": neighbour_cosine(centred),
    }
    return {name: value.T for name, value in statistics.items()}


def write_statistics(reads: Tensor, writes: Tensor, *, measured: bool) -> dict[str, Tensor]:
    """Return write_rms, write_ratio and write_lost, (N, L) each.

    Args:
        reads: h_l of all readers (R, N, T, D).
        writes: v_1..v_L (L, N, T, D).
        measured: the reads are sums of the writes, and the writes were recorded on their own.
    """
    write_rms = rms(writes)
    lost = torch.full_like(write_rms, math.nan)
    if measured:
        lost = rms((reads[1:] - reads[:-1]).sub_(writes)) / write_rms
    read_rms = rms(reads[:-1])
    ratio = torch.where(read_rms > 0, write_rms / read_rms, math.nan)
    return {
        "write_rms": write_rms.T,
        "write_ratio": ratio.T,
        "write_lost": lost.T,
    }


def gate_statistics(
    grads: Tensor, reads: Tensor, sources: Tensor, weights: Tensor | None, offered: Tensor
) -> dict[str, Tensor]:
    """Return gate, route, route_token_std (N, R, S) and their errors and entropy (N, R).

    Args:
        grads: G_l = dLoss/dh_l along each reader's branch (R, N, T, D).
        reads: h_l (R, N, T, D).
        sources: v_i (S, N, T, D).
        weights: w (N, T, R, S), zero where not offered; None where all are one.
        offered: (R, S), True where a source may enter a reader.
    """
    n = reads.shape[1]
    if weights is None:
        gate = gates.additive(grads, sources)
        route = offered.to(reads.dtype).expand(n, -1, -1)
        spread = torch.zeros_like(route)
        entropy = offered.sum(1).to(reads.dtype).log().expand(n, -1)
        rebuilt = sources.cumsum(0)  # reader l has the sources 0..l-1
    else:
        gate = gates.routed(grads, sources, weights)
        route = weights.mean(1)
        spread = weights.std(1, correction=0)
        share = weights.abs() / weights.abs().sum(-1, keepdim=True)
        entropy = torch.special.entr(share).sum(-1).mean(1)
        rebuilt = torch.matmul(weights, sources.permute(1, 2, 0, 3)).permute(2, 0, 1, 3)
    error = (rebuilt - reads).norm(dim=-1) / reads.norm(dim=-1)
    gate = gate.masked_fill(~offered, 0)
    absent = ~offered.expand_as(gate)
    conservation = gate.sum(-1).abs() / gate.abs().amax(-1)
    return {
        "gate": gate.masked_fill(absent, math.nan),
        "route": route.masked_fill(absent, math.nan),
        "route_token_std": spread.masked_fill(absent, math.nan),
        "route_entropy": entropy,
        "gate_conservation": conservation.masked_fill(offered.sum(1) < 2, math.nan),
        "read_residual": error.mean(-1).T,
    }


def query_share(gate: Tensor, sources: Tensor, grads: Tensor) -> Tensor:
    """Return the share of each source's effect that flows through queries (N, S).

    Args:
        gate: reader gates (N, R, S), NaN where not offered.
        sources: v_i (S, N, T, D).
        grads: dLoss/dv_i, in the same shape.
    """
    stream = gate.nansum(1)
    through_query = (sources * grads).sum((2, 3)).T - stream
    return through_query.abs() / (through_query.abs() + stream.abs())


def rms(x: Tensor) -> Tensor:
    """Sqrt of the mean over tokens and features: (..., T, D) -> (...)."""
    return x.square().mean((-2, -1)).sqrt()


def top_share(z: Tensor) -> Tensor:
    """Share of the energy in the largest 1 % of channels: (..., T, D) -> (...)."""
    energy = z.square().sum(-2)
    count = max(1, math.ceil(TOP_CHANNELS * energy.shape[-1]))
    return energy.topk(count, dim=-1).values.sum(-1) / energy.sum(-1)


def neighbour_cosine(z: Tensor) -> Tensor:
    """Mean over tokens of cos(z_(k-1), z_k): (B+1, N, T, D) -> (B+1, N), NaN at 0."""
    cosine = torch.nn.functional.cosine_similarity(z[1:], z[:-1], dim=-1, eps=0).mean(-1)
    return torch.cat([torch.full_like(cosine[:1], math.nan), cosine])
