"""Counterfactual reader gates in closed form, from one backward pass.

A gate g[l,i] = 1 multiplies the value of source i as read by reader l alone. Its gradient is the
counterfactual importance of arXiv 2605.20708, section 3:
    dLoss/dg[l,i] = sum over tokens of w[l,i,t] <G_l[t], v_i[t]>,  G_l = dLoss/dh_l by the branch.
N samples, T tokens, D features; R readers, S sources.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dar_probe.probe.statistics import token_norms, wide

ON_CPU, ON_GPU = 2**18, 2**26  # elements of one stack: what a cache holds; what fills a GPU


def additive(grads: Sequence[Tensor], states: Sequence[Tensor], last: Sequence[int]) -> Tensor:
    """Return the gates (N, R, S) where every earlier source enters with weight one.

    Sources are the differences of successive states. Differences of dots instead would save a
    pass, and lose small writes in a large stream. Pairs beyond ``last`` are undefined.

    Args:
        grads: G_l (N, T, D) each, of R readers.
        states: the stream (N, T, D) after each of S sources.
        last: per reader the last source that it reads.
    """
    readers, half = len(grads), len(grads) // 2
    found = wide(states[0]).new_zeros(len(states[0]), readers, len(states))
    early = last[half - 1] + 1 if half else 0
    buffers: list[Tensor] = []
    for part in _parts(states):
        g = _stack(grads, part, 1, buffers, 0)
        v = writes(states, part, buffers)
        g, v = g.flatten(2), v.flatten(2).transpose(1, 2)
        # Early readers have no late sources: a quarter of the square need not be computed.
        torch.bmm(g[:, :half], v[..., :early], out=found[part, :half, :early])
        torch.bmm(g[:, half:], v, out=found[part, half:])
    return found


def writes(states: Sequence[Tensor], part: slice, buffers: list[Tensor]) -> Tensor:
    """Return v_0 and the differences of successive states (n, S, T, D) of the samples of ``part``.

    ``buffers`` holds one buffer and is given a second one, for all parts.
    """
    few = [state[part] for state in states]
    if len(buffers) < 2:
        n, tokens, width = few[0].shape
        buffers.append(wide(few[0]).new_empty(n, len(states), tokens, width))
    v = buffers[1][: len(few[0])]
    v[:, 0] = few[0]
    for i in range(1, len(few)):
        torch.sub(wide(few[i]), wide(few[i - 1]), out=v[:, i])
    return v


def routed(
    grads: Sequence[Tensor], reads: Sequence[Tensor], sources: Sequence[Tensor], weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return gates (N, R, S) where weights differ per token, and how far reads are from the sum.

    Args:
        grads: G_l (N, T, D) each.
        reads: h_l (N, T, D) each.
        sources: v_i (N, T, D) each.
        weights: w (N, T, R, S), zero where a source is not offered.

    Returns:
        The gates, the weight inside the sum over tokens, and |sum_i w v_i - h_l| (R, N, T).
    """
    gates, errors = [], []
    buffers: list[Tensor] = []
    for part in _parts(reads):
        g = _stack(grads, part, 2, buffers, 0)  # (n, T, R, D)
        v = _stack(sources, part, 2, buffers, 1)
        by_token = torch.matmul(g, v.transpose(2, 3))
        gates.append(by_token.mul_(weights[part]).sum(1))
        rebuilt = torch.matmul(weights[part], v, out=g)
        rebuilt -= _stack(reads, part, 2, buffers, 1)
        errors.append(token_norms(rebuilt))
    return torch.cat(gates), torch.cat(errors).permute(2, 0, 1)


def _parts(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Cut the samples so that one stack of all tensors stays small."""
    n = len(tensors[0])
    room = ON_GPU if tensors[0].is_cuda else ON_CPU
    step = max(1, room * n // (len(tensors) * tensors[0].numel()))
    for start in range(0, n, step):
        yield slice(start, start + step)


def _stack(
    tensors: Sequence[Tensor], part: slice, dim: int, buffers: list[Tensor], at: int
) -> Tensor:
    """Stack the samples of ``part`` along ``dim``, in buffer ``at`` from the second time on."""
    few = [tensor[part] for tensor in tensors]
    if tensors[0].element_size() < 4:
        few = [wide(tensor) for tensor in few]
    if len(buffers) <= at:
        buffers.append(torch.stack(few, dim))
        return buffers[at]
    return torch.stack(few, dim, out=buffers[at][: len(few[0])])
