"""The nnsight engine: the same numbers bit for bit, and no trace of nnsight in the process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dar_probe as dp
from dar_probe.models import sit_family
from dar_probe.models.options import CheckpointOptions
from dar_probe.models.registry import find
from dar_probe.probe import nnsight_engine
from dar_probe.probe.measure import measure
from dar_probe.probe.options import GridOptions
from dar_probe.probe.plan import of_checkpoint
from dar_probe.probe.recorder import untouched
from tests.helpers import tiny

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


@pytest.mark.parametrize("name", ["digits-residual", "digits-dar-static", "digits-dar-dynamic"])
def test_both_engines_give_bit_equal_datasets_of_every_fixture(name):
    one, other = (
        dp.analyze(FIXTURES / f"{name}.pt", noise_levels=2, samples=3, engine=engine).dataset
        for engine in ("hooks", "nnsight")
    )
    for variable in one.data_vars:
        assert one[variable].equals(other[variable]), variable
    assert dp.Analysis(other).manifest["engine"] == "nnsight"


@pytest.mark.parametrize("options", tiny.ROUTINGS, ids=tiny.name_of)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_engines_agree_in_every_precision(options, dtype):
    model = tiny.model(dtype=dtype, **options)
    data, problem = tiny.problem(model, dtype=dtype)
    subject, levels = sit_family.subject(model), torch.full((4,), 0.4, dtype=torch.float64)
    with untouched(model):
        one = measure(subject, problem.batch, problem.loss, data.ids, levels)
        other = measure(
            subject, problem.batch, problem.loss, data.ids, levels, engine=nnsight_engine.forward
        )
    for name, value in one.items():
        assert torch.equal(value.nan_to_num(7), other[name].nan_to_num(7)), name


def test_engines_agree_on_discovered_sites():
    model = transformer()
    levels = torch.zeros(3, dtype=torch.float64)
    with untouched(model):
        subject = find(model, *batch(torch.zeros(1, dtype=torch.int64), levels[:1]))
        one, other = (
            measure(subject, batch, square, torch.arange(3), levels, **engine)
            for engine in ({}, {"engine": nnsight_engine.forward})
        )
    for name, value in one.items():
        assert torch.equal(value.nan_to_num(7), other[name].nan_to_num(7)), name


def transformer():
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    norm = torch.nn.LayerNorm(16)
    return torch.nn.TransformerEncoder(layer, 2, norm=norm, enable_nested_tensor=False)


def batch(ids, level):
    rows = [torch.randn(4, 16, generator=torch.Generator().manual_seed(int(i))) for i in ids]
    return (torch.stack(rows),), {}


def square(output, ids, level):
    return output.square().mean((1, 2))


def test_the_model_is_unwrapped_and_a_users_own_wrapping_stays():
    model = tiny.model()
    with nnsight_engine.wrapped(model):
        assert any("forward" in module.__dict__ for module in model.modules())
    assert not any({"forward", "__nnsight__"} & set(module.__dict__) for module in model.modules())
    nnsight_engine.import_nnsight().NNsight(model)
    with nnsight_engine.wrapped(model):
        pass
    assert all("__nnsight__" in module.__dict__ for module in model.modules())


CONTAINED = """
import torch
from dar_probe.probe import nnsight_engine as trace
backward = torch.Tensor.backward
trace.import_nnsight()
assert torch.Tensor.backward is backward
assert not hasattr(3, "save")
weight = torch.ones(1, requires_grad=True)
with torch.enable_grad(): (2 * weight).sum().backward()
assert weight.grad.item() == 2
"""
RELIED_ON = """
import nnsight
from dar_probe.probe import nnsight_engine as trace
assert trace.import_nnsight() is nnsight
assert hasattr(3, "save")
"""


@pytest.mark.parametrize("code", [CONTAINED, RELIED_ON], ids=["contained", "relied on"])
def test_importing_nnsight_changes_nothing_that_the_user_did_not_ask_for(code, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_source_is_patched_from_one_noise_level_into_another():
    """By hand with nnsight, and by replacing the writer's output with a plain hook."""
    with dp.Probe(FIXTURES / "digits-residual.pt", samples=4) as probe:
        ids = probe.ids
        with probe.trace(0.1):
            early = probe.save(probe.writes["block 3 mlp"].output)
        with probe.trace(0.9):
            probe.writes["block 3 mlp"].output = early
            patched = probe.save(probe.model.output)
        with probe.trace(0.9):
            plain = probe.save(probe.model.output)
        after = probe.loss(patched, 0.9)
    task = of_checkpoint(
        CheckpointOptions(path=FIXTURES / "digits-residual.pt"), GridOptions(samples=4)
    )
    model = task.subject.model
    writer = model.stream.writers[6]

    def forward(level, hook=None):
        args, _ = task.batch(torch.tensor(ids), torch.full((4,), level, dtype=torch.float64))
        handle = hook and writer.register_forward_hook(hook)
        with torch.no_grad():
            out = model(*args)
        if handle:
            handle.remove()
        return out

    kept = []
    forward(0.1, lambda m, a, out: kept.append(out))
    expected = forward(0.9, lambda m, a, out: kept[0])
    assert torch.equal(patched, expected)
    assert torch.equal(plain, forward(0.9))
    assert after.shape == (4,) and float((patched - plain).detach().abs().max()) > 0.01


def test_a_module_is_given_back_as_it_was():
    model = transformer().train()
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    probe = dp.Probe(model, batch=batch)
    assert not model.training
    with probe.trace(0.0, ids=[0, 1]):
        read = probe.save(probe.reads["head"].input)
    assert read.shape[0] == 2
    assert set(probe.writes) == set(probe.reads) - {"head"}  # its branches return what they write
    probe.close()
    assert model.training and before == {n: p.requires_grad for n, p in model.named_parameters()}
    assert not any("__nnsight__" in module.__dict__ for module in model.modules())


def test_a_module_without_a_stream_is_traced_by_its_own_paths():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())

    def batch(ids, level):
        return (torch.ones(len(ids), 4),), {}

    with dp.Probe(model, batch=batch) as probe:
        with probe.trace(0.0):
            hidden = probe.save(probe.modules["0"].output)
        np.testing.assert_array_equal(hidden.detach(), model[0](torch.ones(8, 4)).detach())
        assert not probe.reads
    with pytest.raises(dp.UsageError, match="batch function"):
        dp.Probe(model)
