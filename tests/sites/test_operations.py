"""Branches that begin with operations give the numbers of the same stack with modules there."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dar_probe as dp
from tests.sites.test_written_otherwise import (
    DEPTH,
    FEW,
    Attention,
    ChannelsFirst,
    D,
    Stack,
    audit,
    batch,
    drawn,
    loss,
    made,
    mlp,
    same,
)


class RMS(nn.Module):
    """The norm as a module."""

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


RMS.__name__ = "RMSNorm"


class LN(nn.Module):
    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


LN.__name__ = "LayerNorm"


class Plain(nn.Module):
    norm = RMS

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = self.norm(), self.norm()
        self.attn, self.mlp = Attention(), mlp()

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Centred(Plain):
    norm = LN


class Functional(Plain):
    """As nanochat-like code has it."""

    def forward(self, x):
        x = x + self.attn(F.rms_norm(x, (D,), eps=1e-6))
        return x + self.mlp(F.rms_norm(x, (D,), eps=1e-6))


class ByHand(Plain):
    """The formula, with its state used twice."""

    def forward(self, x):
        for branch in (self.attn, self.mlp):
            size = x.pow(2).mean(-1, keepdim=True)
            x = x + branch(x / (size + 1e-6).sqrt())
        return x


class LayerNormed(Plain):
    norm = LN

    def forward(self, x):
        x = x + self.attn(F.layer_norm(x, (D,)))
        return x + self.mlp(F.layer_norm(x, (D,)))


class Modulated(Plain):
    """AdaLN around norms that are modules."""

    def __init__(self):
        super().__init__()
        self.modulation = nn.Linear(D, 6 * D)

    def normed(self, x, k):
        return (self.norm1, self.norm2)[k](x)

    def forward(self, x):
        c = self.modulation(x.mean(1, keepdim=True).detach() * 0 + 1).chunk(6, -1)
        for k, branch in enumerate((self.attn, self.mlp)):
            shift, scale, gate = c[3 * k : 3 * k + 3]
            x = x + gate * branch(self.normed(x, k) * (1 + scale) + shift)
        return x


class ModulatedFunctional(Modulated):
    def normed(self, x, k):
        return F.rms_norm(x, (D,), eps=1e-6)


PAIRS = [
    (Functional, Plain),
    (ByHand, Plain),
    (LayerNormed, Centred),
    (ModulatedFunctional, Modulated),
]


@pytest.mark.parametrize(("kind", "plain"), PAIRS)
def test_norms_that_are_functions_have_sites(kind, plain):
    expected = made(Stack, plain)
    found = audit(made(Stack, kind, like=expected))
    other = audit(expected).dataset
    same(found.dataset, other, set(other.data_vars) - {"gate_conservation"})  # it is rounding
    assert list(found.dataset["reader_kind"].values) == ["attention", "mlp"] * DEPTH + ["head"]
    assert np.nanmax(found.dataset["gate_conservation"]) < 1e-2


@pytest.mark.parametrize(("kind", "plain"), PAIRS)
def test_interventions_change_what_operations_take(kind, plain):
    few = {"batch": batch, "loss": loss, "noise_levels": [0.5], "samples": 3, "pairs": 4}
    expected = made(Stack, plain)
    found = dp.ablate(made(Stack, kind, like=expected), **few).dataset
    same(found, dp.ablate(expected, **few).dataset, ("gate_ablated", "gate_linear"))


def test_the_gate_of_a_functional_norm_is_that_of_a_factor_on_the_write():
    model = made(Stack, Functional)
    ids = torch.arange(3)
    state, factor = drawn(ids, *batch(ids, None)[0][0].shape[1:]), torch.ones(3, 1, 1)
    factor.requires_grad_()
    for block in model.blocks[:-1]:
        state = block(state)
    last = model.blocks[-1]
    write = last.attn(F.rms_norm(state, (D,), eps=1e-6))
    after = state + write
    out = after + last.mlp(F.rms_norm(state + factor * write, (D,), eps=1e-6))
    total = loss(model.head(model.norm_out(out)), ids, None).sum()
    (gate,) = torch.autograd.grad(total, factor)
    found = audit(model).dataset["gate"].values[0, :, 2 * DEPTH - 1, 2 * DEPTH - 1]
    np.testing.assert_allclose(found, gate.flatten(), rtol=1e-4)


def test_streams_with_features_before_tokens_have_sublayers():
    plain = made()
    found = audit(made(ChannelsFirst, like=plain))
    same(found.dataset, audit(plain).dataset)


class FirstByFunction(Plain):
    """States (N, D, T), and no module normalises over D."""

    def forward(self, x):
        x = x + self.attn(F.rms_norm(x.mT, (D,), eps=1e-6)).mT
        return x + self.mlp((x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)).mT).mT


def test_operations_tell_which_axis_they_normalise_over():
    plain = made(Stack, Functional)
    model = made(ChannelsFirst, FirstByFunction, like=plain)
    expected = audit(plain)
    assert not any("axis" in one or "features" in one for one in expected.manifest["assumptions"])
    found = audit(model)
    assert any("are N D ...: N samples" in one for one in found.manifest["assumptions"])
    same(found.dataset, expected.dataset)
    same(dp.audit(model, batch=batch, loss=loss, layout="N D T", **FEW).dataset, expected.dataset)


def test_without_norms_the_axis_of_features_is_said_to_be_assumed():
    class Bare(Plain):
        def forward(self, x):
            x = x + self.attn(0.5 * x)
            return x + self.mlp(0.5 * x)

    said = audit(made(Stack, Bare)).manifest["assumptions"]
    assert any("no norm tells the axis of the features" in one for one in said)


class Looped(Stack):
    def __init__(self):
        super().__init__(Functional, depth=1)

    def run(self, x):
        for _ in range(DEPTH):
            x = self.blocks[0](x)
        return x


def test_each_pass_of_a_looped_block_has_operations_of_its_own():
    model, plain = made(Looped), made(Stack, Functional)
    for block in plain.blocks:
        block.load_state_dict(model.blocks[0].state_dict())
    plain.norm_out.load_state_dict(model.norm_out.state_dict())
    plain.head.load_state_dict(model.head.state_dict())
    same(audit(model).dataset, audit(plain).dataset)


@pytest.mark.parametrize(
    ("late", "words"),
    [(DEPTH - 1, "runs more often than the 3 times"), (DEPTH + 2, r"'block 5 \w+' fired 0 times")],
)
def test_a_block_that_loops_as_often_as_the_noise_level_says_is_refused(late, words):
    class ByLevel(Looped):
        def forward(self, x, level):
            for _ in range(DEPTH if level < 0.5 else late):
                x = self.blocks[0](x)
            return self.head(self.norm_out(x))

    with pytest.raises(dp.ProbeError, match=words):
        dp.audit(
            made(ByLevel),
            batch=lambda ids, level, /: ((*batch(ids, level)[0], float(level.max())), {}),
            loss=loss, batch_size=1, **FEW,
        )  # fmt: skip


class Halved(Plain):
    """A factor is no norm: what is read keeps its scale."""

    def forward(self, x):
        x = x + self.attn(x * 0.5)
        return x + self.mlp(F.rms_norm(x, (D,)))


def test_operations_that_keep_the_scale_are_no_norm():
    found = audit(made(Stack, Halved)).dataset["gate_conservation"]
    assert np.isnan(found[..., 2]).all()
    assert np.isfinite(found[..., 1]).all()


class Undecided(Plain):
    """Takes another way where samples come in numbers."""

    def forward(self, x):
        if len(x) > 2:
            return x + self.attn(F.layer_norm(x, (D,)))
        return x + self.attn(F.rms_norm(x, (D,)))


def test_a_forward_that_takes_another_way_is_refused():
    with pytest.raises(dp.ProbeError, match="runs 'layer_norm' where it ran 'rms_norm'"):
        audit(made(Stack, Undecided))


def test_nnsight_is_told_that_it_cannot_meet_an_operation():
    model = made(Stack, Functional)
    with pytest.raises(dp.ProbeError, match=r"begins with an operation \(rms_norm\)"):
        dp.analyze(model, batch=batch, loss=loss, engine="nnsight", **FEW)
