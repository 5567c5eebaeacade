"""What an analysis will need is known beforehand, from one block."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import dar_probe as dp
from dar_probe.checkpoints import memory_check
from dar_probe.cli import app
from dar_probe.probe import bench, recompute
from dar_probe.probe.estimate import Foreseen, estimate
from dar_probe.probe.measure import hooks, measure
from dar_probe.probe.module_plan import of_module
from dar_probe.probe.options import GridOptions, ModuleOptions
from dar_probe.probe.recorder import untouched
from dar_probe.probe.sharding import Grid
from dar_probe.sites.discover import discover
from tests.sites import joint

CPU, D, T = torch.device("cpu"), 64, 64


class Encoder(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(D, 4, 4 * D, 0, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(D)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def batch(ids, level, /):
    draws = [torch.Generator().manual_seed(int(i)) for i in ids]
    return (torch.stack([torch.randn(T, D, generator=draw) for draw in draws]),), {}


def loss(out, ids, level, /):
    return (out * torch.linspace(0, 1, D)).square().flatten(1).mean(1)


def found(depth):
    model = Encoder(depth).eval()
    with untouched(model):
        return discover(model, *batch(torch.zeros(1), None))


@pytest.mark.parametrize("depth", [4, 8])
def test_memory_is_foreseen_within_a_factor(depth):
    subject, grid = found(depth), Grid(levels=(0.5,), ids=tuple(range(4)), batch_size=4)
    said = estimate(subject, batch, grid)
    at = torch.arange(4), torch.full((4,), 0.5, dtype=torch.float64)
    with untouched(subject.model):
        for engine, again in ((hooks, False), (recompute.recomputed(hooks, subject), True)):
            run = partial(measure, subject, batch, loss, *at, engine=engine)
            true = bench.peak_bytes(run, CPU)
            assert true < 1.2 * said.memory(recompute=again) < 3 * true


def test_numbers_grow_with_depth_and_cells():
    grid = Grid(levels=(0.2, 0.8), ids=(0, 1, 2), batch_size=2)
    small, deep = (estimate(found(depth), batch, grid) for depth in (3, 9))
    assert (small.cells, small.batch_size) == (6, 2)
    assert deep.inner == 3 * small.inner and deep.block == small.block
    assert deep.weights > 2.9 * small.weights and deep.disk > small.disk
    assert small.memory(recompute=True) < small.memory(recompute=False)
    each = small.memory(recompute=False, batch_size=1)
    assert small.cells_within(5 * each + 1, recompute=False) == 5
    assert small.cells_within(each - 1, recompute=False) == 0
    assert 0 < small.seconds < small.seconds_again


def test_the_model_is_left_as_it_was():
    subject = found(3)
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    estimate(subject, batch, Grid(levels=(0.5,), ids=(0,), batch_size=1))
    assert all(torch.equal(before[k], v) for k, v in subject.model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules())


def test_both_streams_count():
    model = joint.made()
    given = ModuleOptions(batch=joint.batch, loss=joint.loss)
    one, both = (
        of_module(
            model, given, GridOptions(noise_levels=[0.5], samples=2, stream=stream)
        ).estimate()
        for stream in ("image", "all")
    )
    assert both.states > 1.5 * one.states and both.inner == one.inner


def test_what_would_not_fit_is_recomputed_from_the_beginning(monkeypatch):
    given = ModuleOptions(batch=batch, loss=loss)
    task = of_module(Encoder(4).eval(), given, GridOptions(noise_levels=[0.5], samples=2))
    need = task.estimate().memory(recompute=False)
    for room, expected in ((need + 1, None), (need - 1, True)):
        monkeypatch.setattr(memory_check, "available", lambda device, room=room: room)
        assert task.fitting().grid.recompute is expected
    never = replace(task, grid=replace(task.grid, recompute=False))
    assert never.fitting() is never


def test_the_command_line_says_whether_it_fits():
    words = ["analyze", "fixtures/digits-residual.pt", "--samples", "4", "--estimate"]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "80"})
    assert done.exit_code == 0 and "It fits into memory as it is." in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    several = CliRunner().invoke(app, [*words[:2], "fixtures/digits-dar-static.pt", "--estimate"])
    assert several.exit_code == 2 and "is of one checkpoint" in several.stderr
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    same = dp.estimate("fixtures/digits-residual.pt", samples=4)
    assert told["cells"] == same.estimate.cells == 40 and told["memory"] > 0


def test_what_does_not_fit_is_told_what_would():
    one = estimate(found(8), batch, Grid(levels=(0.5,), ids=tuple(range(8)), batch_size=8))
    few = one.memory(recompute=True, batch_size=3)
    rooms = [one.memory(recompute=False), one.memory(recompute=True), few, 1]
    said = [Foreseen(estimate=one, available=room).sentence for room in rooms]
    assert [text.partition(",")[0] for text in said] == [
        "It fits into memory as it is.",
        "It fits with --recompute",
        "It fits with --recompute --batch-size 3.",
        "Not even one cell fits: --dtype bfloat16 halves it",
    ]
