"""Streams that the model itself scales, or mixes with an earlier state, between its blocks."""

import numpy as np
import pytest
import torch
from torch import nn

import dar_probe as dp
from tests.sites.test_written_otherwise import FEW, Block, D, Stack, T, drawn, loss, made

DEPTH = 3


class Mixed(Stack):
    """Scales the stream and adds the embedding before every block."""

    def __init__(self):
        super().__init__(Block, DEPTH)
        self.keep = nn.Parameter(1 - 0.2 * torch.rand(DEPTH))
        self.first = nn.Parameter(torch.rand(DEPTH))

    def between(self, at, x, embedding):
        return self.keep[at] * x + self.first[at] * embedding

    def run(self, x):
        embedding = x
        for at, block in enumerate(self.blocks):
            x = block(self.between(at, x, embedding))
        return x


class Projected(Mixed):
    """Mixes both by a projection, as a long skip does."""

    def __init__(self):
        super().__init__()
        self.mix = nn.ModuleList(nn.Linear(2 * D, D, bias=False) for _ in range(DEPTH))

    def between(self, at, x, embedding):
        return self.mix[at](torch.cat([x, embedding], -1))


def batch(ids, level, /):
    return (drawn(ids, T, D).double(),), {}


def by_hand(model, ids):
    """Return the gates (N, R, S), rms of what readers read (N, R) and rms of writes (N, L)."""
    (x,), _ = batch(ids, None)
    factors = []
    embedding, sources, reads, writes = x, [], [], []

    def read(x):
        factors.append(torch.ones(len(ids), len(sources), dtype=x.dtype, requires_grad=True))
        reads.append(x)
        apart = (factors[-1] - 1)[..., None, None] * torch.stack(sources, 1).detach()
        return x + apart.sum(1)

    def write(x, branch, norm):
        writes.append(branch(norm(read(x))))
        sources.append(writes[-1])
        return x + writes[-1]

    for at, block in enumerate(model.blocks):
        new = model.between(at, x, embedding)
        sources.append(new - x if at else new)
        x = write(new, block.attn, block.norm1)
        x = write(x, block.mlp, block.norm2)
    output = model.head(model.norm_out(read(x)))
    slopes = torch.autograd.grad(loss(output, ids, None).sum(), factors)
    gates = [torch.nn.functional.pad(s, (0, len(sources) - s.shape[1])) for s in slopes]
    sizes = [[v.square().mean((1, 2)).sqrt() for v in values] for values in (reads, writes)]
    return torch.stack(gates, 1), *(torch.stack(values, 1).detach() for values in sizes)


@pytest.mark.parametrize("kind", [Mixed, Projected])
def test_what_is_done_to_the_stream_between_two_blocks_is_a_fusion(kind):
    model = made(kind).double()
    found = dp.audit(model, batch=batch, loss=loss, **FEW).dataset
    fusions = [f"block {k} fusion" for k in range(2, DEPTH + 1)]
    assert [str(n) for n in found["source_name"].values if "fusion" in str(n)] == fusions
    gates, reads, writes = by_hand(model, range(FEW["samples"]))
    for level in range(2):
        at = found.isel(noise_level=level)
        np.testing.assert_allclose(np.nan_to_num(at["gate"].values), gates, atol=1e-12)
        np.testing.assert_allclose(at["write_rms"], writes, rtol=1e-12)
        np.testing.assert_allclose(at["rms"], reads[:, ::2], rtol=1e-12)


class Two(Block):
    def forward(self, x, other):
        return super().forward(x), super().forward(other)


class Crossing(Stack):
    """Adds up two streams of one shape between the blocks: neither is the old one."""

    def __init__(self):
        super().__init__(Two, DEPTH)

    def run(self, x):
        other = 0.5 * x
        for block in self.blocks:
            x, other = block(0.6 * x + 0.3 * other, 0.3 * x + 0.6 * other)
        return x


def test_two_streams_that_are_mixed_are_none_that_goes_on():
    analysis = dp.audit(made(Crossing).double(), batch=batch, loss=loss, **FEW)
    assert not [s for s in analysis.dataset["source_kind"].values if s == "fusion"]
    assert any("no pre-norm stack" in s for s in analysis.manifest["assumptions"])


class Rolling(Block):
    def forward(self, x):
        return super().forward(x.roll(1, 1))


def test_tokens_at_other_places_are_no_fusion():
    with pytest.raises(dp.ProbeError, match="tokens change their places from a Rolling"):
        dp.audit(made(Stack, Rolling).double(), batch=batch, loss=loss, **FEW)


class Overwriting(Block):
    def forward(self, x):
        x = x.clone()
        x += self.attn(self.norm1(x))
        x += self.mlp(self.norm2(x))
        return x


def test_an_overwriting_that_autograd_refuses_gets_one_sentence():
    with pytest.raises(dp.ProbeError, match="overwrites in place what its gradient needs"):
        dp.audit(made(Stack, Overwriting).double(), batch=batch, loss=loss, **FEW)
