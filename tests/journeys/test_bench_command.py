"""``dar-probe bench`` as a person and as a script use it."""

import json
from dataclasses import replace

import pytest

from dar_probe.training.config import TrainConfig
from dar_probe.training.loop import train
from tests.helpers.shell import run, without_progress

SMALL = TrainConfig(depth=3, width=16, batch_size=16, steps=2, lr=3e-3, warmup=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return train(
        replace(SMALL, routing="dar", query="static+t", chunk_size=2),
        tmp_path_factory.mktemp("run") / "run",
    )


def test_a_checkpoint(checkpoint, tmp_path):
    done = run("bench", checkpoint, "--repeats", 2, "--threads", 1, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert without_progress(done.stderr) == "" and not list(tmp_path.iterdir())
    assert max(map(len, done.stdout.splitlines())) <= 80
    for words in ("floor", "probe", "peak memory", "3 blocks x 16", "1 thread,", "torch"):
        assert words in done.stdout
    assert "The complete diagnosis costs " in done.stdout
    assert " of the bare pass." in done.stdout


def test_json_of_a_preset():
    done = run(
        "bench", "--model", "SiT-S/8", "--batch-size", 1, "--repeats", 1, "--threads", 1, "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["name"] == "SiT-S/8" and found["batch_size"] == 1
    assert found["model"] == {"depth": 12, "width": 384, "tokens": 16, "routing": "residual"}
    assert found["machine"]["threads"] == 1 and found["machine"]["name"]
    for side in ("floor", "probe"):
        assert found[side]["seconds"] > 0 and found[side]["peak_bytes"] > 0
    assert found["ratio"] > 0 and found["samples_per_second"] > 0
