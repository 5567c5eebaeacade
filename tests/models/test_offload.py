"""Weights that come block by block: the same numbers, little at once, and all as it was."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import dar_probe as dp
from dar_probe.models import offload
from tests.sites.test_written_otherwise import FEW, Stack, batch, loss, made

accelerate = pytest.importorskip("accelerate")
CPU = torch.device("cpu")


def audit(model):
    return dp.audit(model, batch=batch, loss=loss, **FEW).dataset


def test_numbers_are_the_same_and_the_module_is_left_as_it_was():
    model = made()
    model.blocks[1].mlp[0].weight.requires_grad_(False)
    model.register_buffer("table", torch.arange(3.0))
    plain = audit(model)
    before = {name: (id(p), p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    with offload.streamed(model, CPU):
        assert all(p.is_meta for p in model.blocks.parameters())
        assert not any(p.is_meta for p in [*model.norm_out.parameters(), model.table])
        again = audit(model)
    for name, value in plain.data_vars.items():
        np.testing.assert_array_equal(again[name].values, value.values, err_msg=name)
    for name, parameter in model.named_parameters():
        own, requires_grad, value = before[name]
        assert id(parameter) == own and parameter.requires_grad is requires_grad, name
        assert torch.equal(parameter, value), name
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not offload.stored(model)


def test_a_module_is_left_as_it_was_after_an_error():
    model = made()
    first = next(model.blocks.parameters())
    with pytest.raises(KeyError), offload.streamed(model, CPU):
        raise KeyError
    assert next(model.blocks.parameters()) is first


def test_a_block_that_fails_leaves_no_weights_behind():
    model = made()
    with offload.streamed(model, CPU):
        with pytest.raises(RuntimeError, match="shape"):
            model.blocks[0](torch.zeros(1, 3, 5))
        model.blocks[1](torch.zeros(1, 6, 16))
        assert here(model.blocks) == [1]


def test_weights_that_do_not_come_whole_do_not_stay(monkeypatch):
    model = made()
    weights = dict(model.named_parameters())
    last = weights.pop("blocks.0.mlp.2.bias")
    offload.stream(model, weights, CPU)
    with pytest.raises(KeyError):
        model.blocks[0](torch.zeros(1, 6, 16))
    assert here(model.blocks) == []
    weights["blocks.0.mlp.2.bias"] = last
    model.blocks[0](torch.zeros(1, 6, 16))
    assert here(model.blocks) == [0]


def here(blocks):
    """Return the blocks with weights that are not on the meta device."""
    return [i for i, one in enumerate(blocks) if not all(p.is_meta for p in one.parameters())]


class Copied(dict):
    """Weights that are made anew whenever they are asked for, and how many of them live."""

    def __init__(self, model):
        super().__init__(model.named_parameters())
        self.living, self.most, self.times = 0, 0, 0

    def __getitem__(self, name):
        made = super().__getitem__(name).detach().clone()
        self.times += name == "blocks.0.norm1.weight"
        self.living += made.nbytes
        self.most = max(self.most, self.living)
        weakref.finalize(made.untyped_storage(), self.gone, made.nbytes)
        return made

    def gone(self, size):
        self.living -= size


@pytest.mark.parametrize("depth", [4, 12])
def test_few_blocks_live_at_once_forward_and_backward(depth):
    torch.manual_seed(0)
    model = Stack(depth=depth).eval().requires_grad_(False)
    weights = Copied(model)
    offload.stream(model, weights, CPU)
    x = torch.randn(1, 6, 16, requires_grad=True)
    weights.most = weights.living
    resident = weights.living
    gc.disable()  # what a cycle keeps alive counts
    try:
        (grad,) = torch.autograd.grad(model(x).square().sum(), x)
    finally:
        gc.enable()
    assert weights.times == 2, "once forward and once backward"
    assert grad.abs().sum() > 0
    block = sum(p.nbytes for p in model.blocks[0].parameters())
    assert weights.most - resident <= 2 * block
    assert here(model.blocks) == [0]
    model.blocks[0](x)
    assert weights.times == 2, "the block that ran last is fetched no more"
    assert offload.needed(model) == block + resident


class Beside(nn.Module):
    """It calls a part of its first block outside of it, as diffusers' DiT does."""

    def __init__(self):
        super().__init__()
        self.stack = Stack()

    def forward(self, x):
        return self.stack(x) + self.stack.blocks[0].norm1(x)


def test_a_part_that_is_called_outside_its_block():
    torch.manual_seed(0)
    model, x = Beside().eval(), torch.randn(2, 6, 16, requires_grad=True)
    expected = model(x)
    (expected_slope,) = torch.autograd.grad(expected.sum(), x)
    with offload.streamed(model, CPU):
        for _ in range(2):
            x.requires_grad_()
            found = model(x)
            assert torch.equal(found, expected)
            (slope,) = torch.autograd.grad(found.sum(), x)
            torch.testing.assert_close(slope, expected_slope, rtol=0, atol=0)
        assert here(model.stack.blocks) == [0]


def test_blocks_are_members_of_the_outermost_lists():
    model = nn.ModuleDict({
        "first": nn.ModuleList([nn.ModuleList([nn.Linear(1, 1)]), nn.Sequential(nn.Linear(1, 1))]),
        "rest": nn.Linear(1, 1),
    })  # fmt: skip
    assert list(offload.blocks(model)) == ["first.0.0", "first.1"]
    with pytest.raises(dp.UsageError, match="a Linear has no list of blocks"):
        offload.blocks(nn.Linear(2, 2))


def test_what_it_takes_is_asked_for(monkeypatch):
    offload.check(None)
    offload.check("disk")
    with pytest.raises(dp.UsageError, match="unknown place 'moon'"):
        offload.check("moon")
    with pytest.raises(dp.UsageError, match="this one runs on the CPU"):
        offload.check_cpu(CPU)
    offload.check_cpu(torch.device("cuda"))
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(dp.UsageError, match="accelerate, which is not installed"):
        offload.check("disk")
