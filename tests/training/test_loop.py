"""The trainer: learns, stores plain data, and resumes bit for bit after SIGKILL."""

import csv
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dar_probe.adapt.warm_start import sizes
from dar_probe.checkpoints.reader import read
from dar_probe.diffusion import data as datasets
from dar_probe.diffusion.flow import FLOW_PREDICTIONS, PATHS
from dar_probe.diffusion.samplers import Sampler, draw
from dar_probe.errors import CheckpointError, ProbeError, UsageError
from dar_probe.files.toml_file import read_toml
from dar_probe.models.loading import load_checkpoint as load_subject
from dar_probe.models.options import CheckpointOptions
from dar_probe.models.sit_layout import read_sizes
from dar_probe.results import store
from dar_probe.training import ema
from dar_probe.training.config import TrainConfig, from_dict
from dar_probe.training.loop import COLUMNS, Run, train
from tests.helpers.warm import begin

SMALL = TrainConfig(
    depth=2, width=16, batch_size=8, steps=6, warmup=2, validate_every=3, checkpoint_every=2,
    validation_samples=16,
)  # fmt: skip
RUNNER = """
import sys
from pathlib import Path
from dar_probe.training.config import TrainConfig
from dar_probe.training.loop import train
config = TrainConfig(**eval(sys.argv[2]))
seen = Path(sys.argv[3])
train(config, Path(sys.argv[1]), resume=True, on_step=lambda p: seen.write_text(str(p.step)))
"""


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def column(folder, name):
    with (folder / "metrics.csv").open() as file:
        return [row[name] for row in csv.DictReader(file)]


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"routing": "dar", "query": "dynamic", "chunk_size": 2},
        {"autocast": "bf16", "probe_every": 10, "probe_samples": 2, "probe_levels": 2},
    ],
    ids=str,
)
def test_killed_run_equals_the_uninterrupted_one(tmp_path, changes):
    config = replace(SMALL, steps=60, **changes)
    whole = load(train(config, tmp_path / "whole"))
    (tmp_path / "runner.py").write_text(RUNNER)
    seen = tmp_path / "seen"
    arguments = [tmp_path / "killed", repr(config.to_dict()), seen]
    for target in (3, 29):
        child = begin(*arguments, path=tmp_path / "runner.py")
        while not seen.exists() or int(seen.read_text() or 0) < target:
            assert os.path.exists(f"/proc/{child.process}")
            time.sleep(0.001)
        time.sleep(0.005)
        os.kill(child.process, signal.SIGKILL)
        assert child.wait().returncode == -signal.SIGKILL
    last = train(config, tmp_path / "killed", resume=True)
    assert same(load(last), whole)
    tables = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "killed")]
    assert tables[0] == tables[1]
    if config.probe_every:
        one, other = (store.read(tmp_path / name / "trajectory.nc") for name in ("whole", "killed"))
        assert one.drop_attrs().identical(other.drop_attrs())


@pytest.mark.parametrize("routing", ["residual", "dar"])
def test_it_learns(tmp_path, routing):
    config = replace(SMALL, steps=80, width=32, lr=3e-3, batch_size=32, routing=routing, ema=0.9)
    train(config, tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and [int(r["step"]) for r in rows] == list(range(1, 81))
    first = float(rows[2]["val_loss"])
    assert float(rows[-1]["val_loss"]) < 0.8 * first
    held = datasets.load_data("digits", split="held-out").first(16)
    noise = datasets.noise(held.ids, (1, 8, 8), seed=0)
    predicting_zero = float((held.latents - noise).square().mean())
    assert first == pytest.approx(predicting_zero, rel=0.1)


def test_checkpoint_has_the_official_layout_and_plain_data(tmp_path):
    path = train(replace(SMALL, routing="dar", query="static+t", chunk_size=2), tmp_path / "run")
    assert path.name == "step-0000006.pt"
    state = load(path)
    assert set(state) == {"model", "ema", "opt", "step", "args"}
    found = read_sizes(read(path).header)
    assert (found.family, found.depth, found.width, found.heads) == ("dar-probe", 2, 16, 1)
    assert found.routing == {"routing": "dar", "query": "static+t", "chunk_size": 2}
    names = sorted(p.name for p in path.parent.iterdir())
    assert names == [f"step-000000{i}.pt" for i in (2, 4, 6)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", FLOW_PREDICTIONS)
def test_every_path_and_prediction_is_learnt_and_read_back(tmp_path, path, prediction):
    config = replace(
        SMALL, steps=40, lr=3e-3, ema=0.9, validate_every=4, checkpoint_every=40, batch_size=32,
        objective="repa", path=path, prediction=prediction,
    )  # fmt: skip
    last = train(config, tmp_path / "run")
    losses = [float(v) for v in column(tmp_path / "run", "val_loss") if v]
    assert losses[-1] < 0.95 * losses[0]
    loaded = load_subject(CheckpointOptions(path=last))
    usual = (path, prediction) == ("linear", "velocity")
    assert loaded.objective.name == ("repa" if usual else f"repa:{path}:{prediction}")
    drawn = draw(
        loaded.model,
        loaded.objective,
        torch.zeros(2, dtype=torch.long),
        (1, 8, 8),
        seed=0,
        sampler=Sampler(steps=5),
    )
    assert drawn.isfinite().all()
    assert sizes(last)["path"] == path and sizes(last)["prediction"] == prediction


def test_logit_normal_levels_have_their_law_and_leave_the_batch_as_it_was():
    config = replace(SMALL, batch_size=2000)
    uniform = Run(config, Path("unused"), device="cpu").batch(3)
    config = replace(config, time_sampling="logit-normal", time_mean=0.5, time_std=2.0)
    run = Run(config, Path("unused"), device="cpu")
    found = run.batch(3)
    for at in (0, 1, 3):  # data, noise, labels with the dropped ones
        assert torch.equal(found[at], uniform[at])
    assert torch.equal(run.batch(3)[2], found[2]) and not torch.equal(run.batch(4)[2], found[2])
    assert uniform[2].double().mean() == pytest.approx(0.5, abs=0.02)
    normal = found[2].double().logit()
    assert normal.mean() == pytest.approx(0.5, abs=0.15)
    assert normal.std() == pytest.approx(2.0, abs=0.1)
    below = [(normal < 0.5 + 2.0 * z).double().mean() for z in (-1, 0, 1)]
    assert below == pytest.approx([0.1587, 0.5, 0.8413], abs=0.03)
    # The number is one and the same draw, so levels are in the order of the uniform ones.
    assert torch.equal(found[2].argsort(stable=True), uniform[2].argsort(stable=True))


def test_the_learning_rate_warms_up_in_equal_steps_and_stays(tmp_path):
    train(replace(SMALL, lr=1e-3, warmup=4), tmp_path / "run")
    rates = [float(rate) for rate in column(tmp_path / "run", "lr")]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3], rel=1e-12)


def test_without_warm_up_the_first_step_has_the_whole_learning_rate(tmp_path):
    train(replace(SMALL, lr=1e-3, warmup=0, steps=2), tmp_path / "run")
    assert [float(rate) for rate in column(tmp_path / "run", "lr")] == [1e-3, 1e-3]


def test_callers_are_told_the_start_and_every_step(tmp_path):
    starts, steps = [], []
    train(replace(SMALL, steps=2), tmp_path / "run", on_start=starts.append, on_step=steps.append)
    assert starts == [{}]
    assert [(one.step, one.steps) for one in steps] == [(1, 2), (2, 2)]
    assert [one.loss for one in steps] == pytest.approx(
        [float(loss) for loss in column(tmp_path / "run", "loss")], rel=1e-6
    )


def test_a_run_starts_only_from_its_own_path(tmp_path):
    last = train(replace(SMALL, path="gvp", prediction="score"), tmp_path / "one")
    with pytest.raises(UsageError, match="the objective sit:gvp:score, this run sit\n") as caught:
        train(replace(SMALL, init_from=str(last)), tmp_path / "two")
    assert caught.value.hint == "add --objective sit --path gvp --prediction score"
    again = replace(SMALL, path="gvp", prediction="score", init_from=str(last))
    assert load(train(again, tmp_path / "three"))["args"]["objective"] == "sit:gvp:score"


def test_another_run_is_not_overwritten(tmp_path):
    train(SMALL, tmp_path / "run")
    with pytest.raises(UsageError, match="not empty"):
        train(SMALL, tmp_path / "run")
    with pytest.raises(UsageError, match="lr is 0.001 there and 0.0005 here"):
        train(replace(SMALL, lr=5e-4), tmp_path / "run", resume=True)
    with pytest.raises(UsageError, match="steps is 6 there and 4 here"):
        train(replace(SMALL, steps=4), tmp_path / "run", resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        train(SMALL, tmp_path / "mine", resume=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"


def test_a_run_can_be_extended(tmp_path):
    whole = load(train(replace(SMALL, steps=10), tmp_path / "whole"))
    train(SMALL, tmp_path / "run")
    longer = load(train(replace(SMALL, steps=10), tmp_path / "run", resume=True))
    assert same(longer, whole)


@pytest.mark.parametrize(
    "left",
    [
        [],
        ["metrics.csv"],
        [".metrics.csv.7.tmp"],
        ["checkpoints/.step-0000002.pt.7.tmp"],
        ["trajectory.nc"],
    ],
)
def test_what_a_kill_before_the_first_checkpoint_leaves_is_no_obstacle(tmp_path, left):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in left:
        (tmp_path / "run" / name).write_text("half")
    path = train(SMALL, tmp_path / "run", resume=True)
    assert sorted(p.name for p in path.parent.iterdir())[0] == "step-0000002.pt"


def test_damaged_checkpoint_is_named(tmp_path):
    path = train(SMALL, tmp_path / "run")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="step-0000006.pt"):
        train(SMALL, tmp_path / "run", resume=True)


def test_finished_run_returns_at_once(tmp_path):
    path = train(SMALL, tmp_path / "run")
    before = path.stat().st_mtime_ns
    assert train(SMALL, tmp_path / "run", resume=True) == path
    assert path.stat().st_mtime_ns == before


def test_divergence_is_an_error(tmp_path):
    with pytest.raises(ProbeError, match="loss is"):
        train(replace(SMALL, steps=300, lr=1e30, warmup=0), tmp_path / "run")


def test_ema_decay():
    assert ema.decay_at(1, 0.9999) == pytest.approx(2 / 11)
    assert ema.decay_at(10**6, 0.999) == 0.999
    average, model = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    expected = average.weight.item() * 2 / 11 + model.weight.item() * 9 / 11
    ema.update(average, model, step=1, decay=0.9999)
    assert average.weight.item() == pytest.approx(expected)


@pytest.mark.parametrize(("step", "decay"), [(1, 0.9999), (4, 0.9999), (9, 0.9), (100, 0.9)])
def test_the_average_moves_by_what_the_decay_leaves(step, decay):
    kept = min(decay, (1 + step) / (10 + step))
    average, model = (torch.nn.Linear(3, 2).double() for _ in range(2))
    expected = [
        kept * a + (1 - kept) * b.detach()
        for a, b in zip(
            [p.detach().clone() for p in average.parameters()], model.parameters(), strict=True
        )
    ]
    ema.update(average, model, step=step, decay=decay)
    for found, wanted in zip(average.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-12, atol=0)


def test_settings_read_toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('routing = "dar"\nlr = 1\nsteps = 5\n')
    config = from_dict({**read_toml(path), "steps": 7})
    assert (config.routing, config.lr, config.steps) == ("dar", 1.0, 7)
    assert from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"colour": 1}, "unknown training setting"),
        ({"steps": "ten"}, "expected int"),
        ({"steps": True}, "expected int"),
        ({"steps": 0}, "at least 1"),
        ({"lr": 0.0}, "above 0"),
        ({"ema": 1.0}, "in"),
        ({"autocast": "fp8"}, "none or bf16"),
        ({"objective": "dit"}, "sit or repa"),
        ({"time_sampling": "cosine"}, "it must be uniform or logit-normal"),
        ({"time_std": 0.0}, "above 0"),
        ({"time_mean": math.inf}, "finite"),
        ({"path": "cosine"}, "it must be linear, gvp or vp"),
        ({"prediction": "eps"}, "it must be velocity, noise or score"),
        ({"seed": -1}, "at least 0"),
        ({"probe_every": -1}, "at least 0"),
        ({"probe_samples": 0}, "at least 1"),
    ],
)
def test_bad_settings(settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        from_dict(settings)


def test_bad_toml(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_toml(tmp_path / "nowhere.toml")
    (tmp_path / "bad.toml").write_text("steps = = 3")
    with pytest.raises(UsageError, match="no TOML"):
        read_toml(tmp_path / "bad.toml")
