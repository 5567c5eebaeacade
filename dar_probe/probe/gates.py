"""Counterfactual reader gates in closed form, from one backward pass.

A gate g[l,i] = 1 multiplies the value of source i as read by reader l alone. Its gradient is the
counterfactual importance of arXiv 2605.20708, section 3:
    dLoss/dg[l,i] = sum over tokens of w[l,i,t] <G_l[t], v_i[t]>,  G_l = dLoss/dh_l by the branch.
"""

import torch
from torch import Tensor


def additive(grads: Tensor, sources: Tensor) -> Tensor:
    """Return the gates (N, R, S) where every source enters with weight one.

    Args:
        grads: G_l (R, N, T, D) of the R readers.
        sources: v_i (S, N, T, D).
    """
    return torch.bmm(
        grads.transpose(0, 1).flatten(2), sources.transpose(0, 1).flatten(2).transpose(1, 2)
    )


def routed(grads: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
    """Return the gates (N, R, S) where weights differ per token: the weight inside the sum.

    Args:
        grads: G_l (R, N, T, D).
        sources: v_i (S, N, T, D).
        weights: w (N, T, R, S), zero where a source is not offered.
    """
    by_token = torch.matmul(grads.permute(1, 2, 0, 3), sources.permute(1, 2, 3, 0))
    return (weights * by_token).sum(1)
