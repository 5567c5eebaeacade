"""Autograd begins at the first block, wherever the model uses what that block reads."""

import numpy as np
import pytest
import torch
from torch import nn

import dar_probe as dp
from tests.test_audit import Branch


class Added(nn.Module):
    """Adds what its two branches write outside of all modules; no tensor requires grad before."""

    def __init__(self, width=16, depth=3):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(width), Branch(width), nn.LayerNorm(width), Branch(width)])
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, ids=None, state=None, long=0.0):
        x = first = self.embed(ids) if state is None else state
        for norm1, attention, norm2, mlp in self.layers:
            x = attention(norm1(x)) + x
            x = mlp(norm2(x)) + x
        return self.norm(x + long * first)


def tokens(ids, level):
    rows = [torch.randint(20, (6,), generator=torch.Generator().manual_seed(int(i))) for i in ids]
    return torch.stack(rows)


def loss(output, ids, level):
    return (output - 1).square().mean((1, 2))


def audited(model, batch):
    return dp.audit(model, batch=batch, loss=loss, samples=2).dataset


def test_a_first_block_whose_writes_are_added_outside_of_it_is_measured_like_the_others():
    torch.manual_seed(0)
    model = Added()
    with torch.no_grad():
        states = {i: model.embed(tokens([i], None))[0] for i in range(2)}

    def stated(ids):
        return torch.stack([states[int(i)] for i in ids])

    by_ids = audited(model, lambda ids, level: ((tokens(ids, level),), {}))
    by_name = audited(model, lambda ids, level: ((), {"state": stated(ids)}))
    expected = audited(model, lambda ids, level: ((None, stated(ids).requires_grad_()), {}))
    kinds = [f"block {k} {kind}" for k in (1, 2, 3) for kind in ("mlp 1", "mlp 2")]
    for found in (by_ids, by_name):
        assert list(found["source_name"].values) == ["embedding", *kinds]
        for name in ("rms", "grad_rms", "cosine", "write_rms", "gate"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-8)


def test_what_a_model_adds_again_behind_its_blocks_counts_in_the_gradient_of_the_embedding():
    torch.manual_seed(0)
    model = Added()
    ids = tokens([0, 1], None)
    state = model.embed(ids).detach().requires_grad_()
    losses = loss(model(state=state, long=0.5), None, None)
    (slope,) = torch.autograd.grad(losses.sum(), state)
    found = audited(model, lambda ids, level: ((tokens(ids, level),), {"long": 0.5}))
    expected = slope.square().mean((1, 2)).sqrt()
    np.testing.assert_allclose(found["grad_rms"][0, :, 0], expected, rtol=1e-5)


def test_tensors_of_the_caller_and_of_the_model_require_no_grad_afterwards():
    torch.manual_seed(0)
    model = Added()
    model.register_buffer("start", torch.randn(1, 6, 16))
    given = torch.randn(2, 6, 16)
    kept = {ids: given[list(ids)] for ids in ((0,), (1,), (0, 1))}
    audited(model, lambda ids, level: ((), {"state": kept[tuple(ids.tolist())]}))
    assert not any(value.requires_grad for value in kept.values())
    dp.audit(Buffered(model), batch=lambda ids, level: ((ids,), {}), loss=loss, samples=1)
    assert not model.start.requires_grad


class Buffered(nn.Module):
    """Begins at a buffer as it is, which is one sample."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return (1 + ids) * self.model(state=self.model.start)


class Overwriting(Added):
    def forward(self, given):
        x = given if given.is_floating_point() else self.embed(given)
        for norm1, attention, norm2, mlp in self.layers:
            x += attention(norm1(x))
            x += mlp(norm2(x))
        return self.norm(x)


@pytest.mark.parametrize("embedded", [False, True])
def test_an_overwriting_of_what_the_first_block_reads_gets_one_sentence(embedded):
    model = Overwriting()

    def batch(ids, level):
        made = tokens(ids, level)
        return (model.embed(made).detach() if embedded else made,), {}

    with pytest.raises(dp.ProbeError, match="overwrites in place what its gradient needs"):
        audited(model, batch)
