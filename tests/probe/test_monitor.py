"""Probe.watch: training goes on as if nobody looked, and the file is always of one run."""

import copy
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import nn

import dar_probe as dp
from dar_probe.probe.monitor import EVERY
from dar_probe.results import schema, store, trajectory
from tests.probe.test_untouched import loss
from tests.test_audit import Stack, batch

GRID = {"noise_levels": [0.2, 0.8], "samples": 3}


def stack(depth=2, width=8):
    torch.manual_seed(0)
    return Stack(depth=depth, width=width)


def watched(model, out, **settings):
    return dp.Probe.watch(model, **{"batch": batch, "loss": loss, **GRID, "out": out, **settings})


def same(one, other):
    """Compare numbers, names and provenance but its date."""
    manifests = [{**schema.manifest(ds), "created": None, "steps": None} for ds in (one, other)]
    return one.drop_attrs().identical(other.drop_attrs()) and manifests[0] == manifests[1]


@contextmanager
def alone(module):
    """Put a module into DistributedDataParallel, whose hooks watch its parameters."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield nn.parallel.DistributedDataParallel(module)
    finally:
        dist.destroy_process_group()


@contextmanager
def plain(module):
    yield module


def trained(model, watch=lambda step: None, steps=2):
    """Train with random inputs, which are drawn from the process's own random state."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    found = {}
    for step in range(steps + 1):
        found[step] = (watch(step), copy.deepcopy(model))
        optimiser.zero_grad()
        model(torch.randn(4, 3, 5)).square().mean().backward()
        optimiser.step()
    return found


@pytest.mark.parametrize("wrapped", [plain, alone])
def test_a_watched_training_has_the_bits_of_an_unwatched_one(wrapped, tmp_path):
    free = stack()
    with wrapped(free) as whole:
        trained(whole)
    model, out = stack(), tmp_path / "run" / "trajectory.nc"
    with wrapped(model) as whole:
        found = trained(whole, watched(whole, out, every=2))
    for (name, one), other in zip(free.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert [step for step, (one, _) in found.items() if one] == [0, 2]
    kept = dp.open_analysis(out)
    for step, one in kept.steps:
        audit = dp.audit(found[step][1], batch=batch, loss=loss, **GRID)
        assert same(one.dataset, audit.dataset) and same(one.dataset, found[step][0].dataset)
    assert [one.verdict.status == "untrained" for _, one in kept.steps] == [True, False]


def test_a_resumed_training_continues_its_trajectory(tmp_path):
    out, model = tmp_path / "trajectory.nc", stack()
    first = watched(model, out, every=1)
    for step in (0, 2, 3):
        first(step)
    before = dict(trajectory.split(store.read(out)))
    model.embed.weight.data.mul_(2)
    again = watched(model, out, every=1, batch_size=2)
    again(2)  # a run that went back to a checkpoint of step 1
    found = dict(trajectory.split(store.read(out)))
    assert list(found) == [0, 2]
    assert same(found[0], before[0]) and not same(found[2], before[2])
    with pytest.raises(dp.UsageError, match="changed by another process"):
        first(4)
    assert dp.open_analysis(out).trajectory["step"].values.tolist() == [0, 2]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with a trajectory, the analysis of one moment, and something else."""
    folder = tmp_path_factory.mktemp("kept")
    one = watched(stack(), folder / "trajectory.nc")(0)
    store.write(one.dataset, folder / "one.nc")
    (folder / "notes.txt").write_text("precious")
    return folder


@pytest.mark.parametrize(
    ("model", "settings", "sentence"),
    [
        (stack(depth=3), {}, "another model or grid: it differs in parameters"),
        (stack(), {"samples": 4}, "another model or grid: it differs in samples"),
        (stack(), {"noise_levels": [0.2, 0.9]}, "it differs in noise_levels"),
        (stack(), {"every": 0}, "every is 0"),
        (stack(), {"out": "one.nc"}, "the analysis of one moment, no trajectory"),
        (stack(), {"out": "notes.txt"}, "is not a NetCDF-4 file"),
        (stack(), {"out": "notes.txt/trajectory.nc"}, "cannot be written"),
        (stack(), {"batch": None}, "without a batch function"),
        ("run/checkpoint.pt", {}, "a str cannot be watched"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(model, settings, sentence, kept):
    before = {path: path.read_bytes() for path in kept.iterdir()}
    out = kept / settings.get("out", "trajectory.nc")
    with pytest.raises((dp.UsageError, dp.CheckpointError), match=sentence):
        watched(model, **{**settings, "out": out})
    assert {path: path.read_bytes() for path in kept.iterdir()} == before


def test_only_steps_that_are_due_are_measured(tmp_path):
    watch = watched(stack(), tmp_path / "trajectory.nc")
    assert watch.every == EVERY
    assert watch(EVERY - 1) is None and not watch.path.exists()
    assert watch(torch.tensor(EVERY)).dataset.sizes["sample"] == 3
    with pytest.raises(dp.UsageError, match="no training step -1000"):
        watch(-EVERY)


def test_a_process_that_does_not_lead_its_job_measures_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    watch = watched(stack(), tmp_path / "run" / "trajectory.nc", every=1)
    assert watch(0) is None
    assert list(tmp_path.iterdir()) == []
