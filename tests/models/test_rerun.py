"""Calls that run again in the backward: the same gradients, and little that stays."""

import gc
import weakref

import pytest
import torch
from torch import nn

import dar_probe as dp
from dar_probe.models.rerun import Rerun

CPU = torch.device("cpu")


def blocks(count=3):
    torch.manual_seed(0)
    made = [nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(count)]
    return [block.requires_grad_(False) for block in made]


def run(rerun, made, x):
    states = [x]
    for block in made:
        states.append(states[-1] + rerun.run(block, (states[-1],), {}))
    return states


def test_gradients_are_the_same_and_the_graph_may_be_asked_in_parts():
    made, x = blocks(), torch.randn(2, 4, requires_grad=True)
    plain = [x]
    for block in made:
        plain.append(plain[-1] + block(plain[-1]))
    states = run(Rerun(CPU), made, x)
    for after in (3, 1, 2, 3):
        for before in range(after):
            pair = [
                torch.autograd.grad(s[after].sin().sum(), s[before], retain_graph=True)[0]
                for s in (states, plain)
            ]
            assert torch.equal(*pair)


def test_inner_tensors_of_one_call_live_at_a_time():
    living = []

    class Watched(nn.Module):
        def forward(self, x):
            inner = x.tanh()
            living.append(weakref.ref(inner.untyped_storage()))
            return inner.sin()

    rerun, x = Rerun(CPU), torch.randn(2, 4, requires_grad=True)
    gc.disable()  # what a cycle keeps alive counts
    try:
        states = run(rerun, [Watched() for _ in range(5)], x)
        assert not any(one() is not None for one in living)
        for after in (5, 4, 3, 2, 1):  # the graph stays, and a part of each call is asked for
            torch.autograd.grad(states[after].sum(), states[after - 1], retain_graph=True)
            assert sum(one() is not None for one in living) == 1
        assert len(living) == 10
        rerun.forget()
        assert not any(one() is not None for one in living)
    finally:
        gc.enable()


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x.sin() * self.calls


def test_what_is_not_the_same_again_is_refused():
    x = torch.randn(2, 4, requires_grad=True)
    with pytest.raises(dp.ProbeError, match="returns other numbers when it is run again"):
        torch.autograd.grad(Rerun(CPU).run(Remembers(), (x,), {}).sum(), x)
    state = x * 1
    found = Rerun(CPU).run(torch.sin, (state,), {})
    state.mul_(1)
    with pytest.raises(dp.ProbeError, match="its input was overwritten"):
        torch.autograd.grad(found.sum(), x)


def test_random_numbers_and_autocast_are_those_of_the_forward():
    x, layer = torch.randn(8, 4, requires_grad=True), nn.Linear(4, 4).requires_grad_(False)

    def forward(x):
        return torch.dropout(layer(x), 0.5, True).sin()

    slopes = []
    for call in (forward, lambda x: Rerun(CPU).run(forward, (x,), {})):
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = call(x)
        before = torch.get_rng_state()
        slopes.append(torch.autograd.grad(found.float().sum(), x)[0])
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*slopes) and slopes[0].abs().sum() > 0


def test_nothing_is_kept_where_there_is_no_backward():
    x = torch.randn(2, 4, requires_grad=True)
    with torch.no_grad():
        assert Rerun(CPU).run(Remembers(), (x,), {}).grad_fn is None
