"""States that blocks hand on within tuples, dicts and dataclasses, and those within others."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import dar_probe as dp
from dar_probe.probe import nnsight_engine
from dar_probe.probe.measure import measure
from dar_probe.probe.recorder import untouched
from dar_probe.sites import discover
from dar_probe.sites.packing import element, leaves, replaced
from tests.sites.test_written_otherwise import (
    FEW,
    Block,
    D,
    Stack,
    T,
    batch,
    drawn,
    loss,
    made,
    same,
)

Pair = namedtuple("Pair", "state other")


@dataclass(frozen=True)
class Output:
    inner: object


def test_every_way_to_an_element_reads_and_replaces_it():
    one, other = torch.zeros(1), torch.ones(1)
    output = (Pair({"state": [None, one]}, 3), Output((other,)))
    ways = {(0, 0, "state", 1): one, (1, "inner", 0): other}
    found = leaves(output)
    assert {k: v for k, v in found.items() if isinstance(v, torch.Tensor)} == ways
    assert found[0, 1] == 3 and found[0, 0, "state", 0] is None
    for way, value in ways.items():
        assert element(output, way) is value
        new = torch.full((1,), 2.0)
        changed = replaced(output, way, new)
        assert element(changed, way) is new and element(output, way) is value
        assert isinstance(changed[0], Pair) and isinstance(changed[1], Output)
    assert leaves(one) == {None: one} and leaves((one,)) == {0: one}


class Nested(Block):
    """Returns (state, what a router says), and a cache, as layers with experts do."""

    def forward(self, x):
        return (super().forward(x), x.mean(-1)), (x.detach(), None)


class Unpacking(Stack):
    def __init__(self, added=0.0):
        super().__init__(Nested)
        self.added = nn.Parameter(torch.full((T, D), added))

    def run(self, x):
        for block in self.blocks:
            (x, _), _ = block(x)
            x = x + self.added
        return x


class Plain(Unpacking):
    def __init__(self, added=0.0):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in self.blocks)

    def run(self, x):
        for block in self.blocks:
            x = block(x) + self.added
        return x


@pytest.mark.parametrize("added", [0.0, 0.5])
def test_a_state_within_a_tuple_within_a_tuple_is_followed(added):
    plain = made(Plain, added)
    packed = made(Unpacking, added, like=plain)
    expected = dp.audit(plain, batch=batch, loss=loss, **FEW).dataset
    found = dp.audit(packed, batch=batch, loss=loss, **FEW).dataset
    assert list(found["source_name"].values) == list(expected["source_name"].values)
    same(found, expected, ["rms", "grad_rms", "cosine", "write_rms", "gate"])


def test_nnsight_reads_it_too():
    model = made(Unpacking)
    with untouched(model):
        subject = discover.discover(model, (drawn([0], T, D),), {})
        at = torch.arange(2), torch.zeros(2)
        found = measure(subject, batch, loss, *at, engine=nnsight_engine.forward)
        expected = measure(subject, batch, loss, *at)
    for name in ("rms", "gate", "write_rms"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, equal_nan=True)
