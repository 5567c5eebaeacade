"""Blocks that hand on what they write and what it is to be added to, as a pair."""

import pytest
import torch.nn.functional as F
from torch import nn

import dar_probe as dp
from tests.sites.test_written_otherwise import Block, D, Stack, audit, made, same


class Pair(Block):
    """Adds up what it gets before its norm reads it."""

    def forward(self, written, residual):
        residual = written if residual is None else written + residual
        residual = residual + self.attn(self.norm1(residual))
        return self.mlp(self.norm2(residual)), residual


class Within(nn.LayerNorm):
    """Adds up what it gets by itself, and hands the sum on."""

    def forward(self, written, residual):
        residual = written if residual is None else written + residual
        return super().forward(residual), residual


class ByNorm(Block):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = Within(D), Within(D)

    def forward(self, written, residual):
        x, residual = self.norm1(written, residual)
        x, residual = self.norm2(self.attn(x), residual)
        return self.mlp(x), residual


class ByFunction(Block):
    def forward(self, written, residual):
        x, residual = self.added(self.norm1, written, residual)
        x, residual = self.added(self.norm2, self.attn(x), residual)
        return self.mlp(x), residual

    def added(self, norm, written, residual):
        residual = written if residual is None else written + residual
        return F.layer_norm(residual, (D,), norm.weight, norm.bias), residual


class Pairs(Stack):
    def __init__(self, block, bare=False):
        super().__init__(block)
        self.bare = bare

    def run(self, x):
        written, residual = x, None
        for block in self.blocks:
            written, residual = block(written, residual)
        x = written + residual
        return x / x.square().mean(-1, keepdim=True).sqrt() if self.bare else x

    def forward(self, x):
        return self.run(x) if self.bare else super().forward(x)


@pytest.mark.parametrize("block", [Pair, ByFunction])
def test_a_pair_is_the_stream_once_it_is_added_up(block):
    plain = made(Stack)
    found = audit(made(Pairs, block, like=plain)).dataset
    same(found, audit(plain).dataset, ["rms", "grad_rms", "cosine", "write_rms", "gate"])


@pytest.mark.parametrize(("block", "bare"), [(ByNorm, False), (ByFunction, True)])
def test_a_sum_that_stands_nowhere_is_not_taken_for_what_was_written_last(block, bare):
    with pytest.raises(dp.ProbeError, match="adds up two states that the block before handed on"):
        audit(made(Pairs, block, bare))
