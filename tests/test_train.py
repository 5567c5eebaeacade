"""The trainer: learns, stores plain data, and resumes bit for bit after SIGKILL."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from dar_probe import store
from dar_probe.checkpoints.reader import read
from dar_probe.errors import CheckpointError, ProbeError, UsageError
from dar_probe.subjects.sit_layout import read_sizes
from dar_probe.train import data as datasets
from dar_probe.train import ema
from dar_probe.train.config import TrainConfig, from_dict, read_toml
from dar_probe.train.loop import COLUMNS, train

SMALL = TrainConfig(
    depth=2, width=16, batch_size=8, steps=6, warmup=2, validate_every=3, checkpoint_every=2,
    validation_samples=16,
)  # fmt: skip
RUNNER = """
import sys
from pathlib import Path
from dar_probe.train.config import TrainConfig
from dar_probe.train.loop import train
config = TrainConfig(**eval(sys.argv[2]))
train(config, Path(sys.argv[1]), resume=True, on_step=lambda p: print(p.step, flush=True))
"""


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


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
    arguments = [sys.executable, "-c", RUNNER, str(tmp_path / "killed"), repr(config.to_dict())]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    seen = 0
    for target in (3, 29):
        child = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)
        while seen < target:
            seen = int(child.stdout.readline())
        time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
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
    held = datasets.load("digits", split="held-out").first(16)
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
    "left", [[], ["metrics.csv"], ["checkpoints/.step-0000002.pt.7.tmp"], ["trajectory.nc"]]
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
