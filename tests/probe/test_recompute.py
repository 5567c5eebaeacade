"""Inner tensors that are made again: the same numbers bit for bit, in less memory."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import dar_probe as dp
from dar_probe.models import sit_family
from dar_probe.probe import bench, recompute
from dar_probe.probe.measure import hooks, measure
from dar_probe.probe.recorder import untouched
from dar_probe.sites.discover import discover
from tests.sites import test_operations
from tests.sites.test_written_otherwise import FEW, InLists, Stack, batch, loss, made

SIZES = {"depth": 6, "width": 32, "heads": 2, "in_channels": 1, "input_size": 8, "num_classes": 10}
CPU = torch.device("cpu")
ROUTINGS = [{}, {"routing": "dar", "query": "dynamic"}, {"routing": "attnres"},
            {"routing": "uvit"}]  # fmt: skip


def equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(value), err_msg=name)


def both(subject, given, losses):
    """Measure three samples with inner tensors kept, and made again."""
    at = torch.arange(3), torch.full((3,), 0.5, dtype=torch.float64)
    with untouched(subject.model):
        kept = measure(subject, given, losses, *at)
        again = measure(subject, given, losses, *at, engine=recompute.recomputed(hooks, subject))
    return again, kept


def bundled(**options):
    torch.manual_seed(0)
    model = dp.build("SiT-S/2", **{**SIZES, **options}).eval()
    side = model.config.input_size
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)

    def inputs(ids, level, /):
        draws = [torch.Generator().manual_seed(int(i)) for i in ids]
        x = torch.stack([torch.randn(1, side, side, generator=draw) for draw in draws])
        return (x, level.float(), ids % 10), {}

    return sit_family.subject(model), inputs, lambda o, i, s: o.square().flatten(1).mean(1)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_bundled_models(routing):
    equal(*both(*bundled(**routing)))


class OneByOne(Stack):
    """Its blocks are in no list."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.last = self.blocks
        del self.blocks

    def run(self, x):
        return self.last(self.third(self.second(self.first(x))))


@pytest.mark.parametrize(
    ("kind", "blocks"),
    [
        (Stack, None), (InLists, None), (test_operations.ChannelsFirst, None),
        (test_operations.Looped, None), (OneByOne, "first,second,third,last"),
    ],
)  # fmt: skip
def test_modules(kind, blocks):
    model = made(kind)
    subject = discover(model, *batch(torch.zeros(1, dtype=torch.int64), None), blocks=blocks)
    equal(*both(subject, batch, loss))


def test_norms_that_are_functions():
    model = made(Stack, test_operations.Functional)
    subject = discover(model, *batch(torch.zeros(1, dtype=torch.int64), None))
    equal(*both(subject, batch, loss))


def test_whole_analyses_and_ablations():
    model = made()
    given = {"batch": batch, "loss": loss, **FEW}
    plain, again = dp.audit(model, **given), dp.audit(model, recompute=True, **given)
    equal(dict(again.dataset.data_vars), dict(plain.dataset.data_vars))
    assert again.manifest["recompute"] is True and plain.manifest["recompute"] is False
    few = {**given, "pairs": 3}
    plain, again = dp.ablate(model, **few), dp.ablate(model, recompute=True, **few)
    equal(dict(again.dataset.data_vars), dict(plain.dataset.data_vars))


def test_memory_is_that_of_reads_and_one_block():
    subject, inputs, losses = bundled(width=64, input_size=16)
    at = torch.arange(8), torch.full((8,), 0.5, dtype=torch.float64)
    engines = hooks, recompute.recomputed(hooks, subject)
    with untouched(subject.model):
        kept, again = (
            bench.peak_bytes(partial(measure, subject, inputs, losses, *at, engine=engine), CPU)
            for engine in engines
        )
    assert again < 0.75 * kept  # measured: 0.63; deeper models save more


class Remembers(nn.Module):
    """Returns something else each time."""

    def __init__(self, block):
        super().__init__()
        self.block, self.calls = block, 0

    def forward(self, x):
        self.calls += 1
        return self.block(x) + 1e-3 * self.calls


def test_blocks_that_are_not_the_same_again_are_refused():
    model = made()
    model.blocks = nn.ModuleList(Remembers(block) for block in model.blocks)
    with pytest.raises(dp.ProbeError, match="returns other numbers when it is run again"):
        dp.audit(model, batch=batch, loss=loss, recompute=True, **FEW)


def test_modules_are_left_as_they_were():
    model = made()
    dp.audit(model, batch=batch, loss=loss, recompute=True, **FEW)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_it_is_taken_where_memory_runs_out():
    """Before a batch is halved."""
    model = made()
    full = []

    def losses(out, ids, level, /):
        if len(ids) == 6 and not full:  # all cells, where checks have fewer
            full.append(True)
            raise torch.OutOfMemoryError
        return loss(out, ids, level)

    found = dp.audit(model, batch=batch, loss=losses, **FEW)
    assert found.manifest["recompute"] is True
    assert found.manifest["batch_size"] == 8, "it was halved"
    equal(dict(found.dataset.data_vars), dict(dp.audit(model, batch=batch, loss=loss, **FEW)
                                              .dataset.data_vars))  # fmt: skip


def test_what_cannot_is_refused():
    with pytest.raises(dp.UsageError, match="recompute is of hooks, and the engine is nnsight"):
        dp.analyze(made(), batch=batch, loss=loss, engine="nnsight", recompute=True, **FEW)
    subject, *_ = bundled(routing="densenet")
    with pytest.raises(dp.UsageError, match="no module of this model is known"):
        recompute.parts(subject)
