"""A run that starts from trained weights, and how far from them it starts."""

import argparse

import pytest
import torch

from dar_probe.adapt.warm_start import SIZES, sizes
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.training.config import TrainConfig
from dar_probe.training.loop import train
from tests.training.test_loop import load

SETTINGS = {
    "depth": 4, "width": 16, "heads": 2, "batch_size": 32, "warmup": 5, "validation_samples": 16,
    "lr": 3e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    config = TrainConfig(**SETTINGS, steps=60, ema=0.9)
    return train(config, tmp_path_factory.mktemp("plain") / "run")


def begun(plain, folder, **changes):
    """Train one step; return what the run started from, and its checkpoint."""
    told = []
    settings = {**SETTINGS, "steps": 1, "init_from": str(plain), **changes}
    path = train(TrainConfig(**settings), folder / "run", on_start=told.append)
    return told[0], path


# How far outputs are from the original's: measured; the transcription of routing.md 11.4 agrees.
NEAR = [
    ({"routing": "residual"}, 0.0),
    ({"routing": "densenet"}, 1e-6),
    ({"routing": "denseformer"}, 1e-6),
    ({"routing": "hc-static"}, 1e-3),
    ({"routing": "attnres"}, 1e-3),
    ({"routing": "attnres-block", "chunk_size": 3}, 1e-3),
    ({"routing": "delta-attnres"}, 1e-3),
    ({"routing": "dar", "query": "static", "chunk_size": 1}, 1e-3),
    ({"routing": "dar", "query": "dynamic", "chunk_size": 1}, 1e-3),
]


@pytest.mark.parametrize(("changes", "most"), NEAR, ids=lambda value: str(value))
def test_dense_routings_start_where_the_original_ended(plain, changes, most, tmp_path):
    origin, path = begun(plain, tmp_path, **changes)
    assert origin["name"] == plain.name and origin["weights"] == "ema"
    assert origin["distance"] <= most
    assert load(path)["args"]["init_from"] == origin


@pytest.mark.parametrize(
    "changes",
    [
        {"routing": "dar", "query": "static", "chunk_size": 2},
        {"routing": "dar", "query": "static+t", "chunk_size": 1},  # its t-embedder is not zero
        {"routing": "uvit"},
        {"routing": "rezero"},
    ],
    ids=str,
)
def test_others_say_how_far_from_it_they_start(plain, changes, tmp_path):
    origin, _ = begun(plain, tmp_path, **changes)
    assert 0.01 < origin["distance"] < 10


def test_a_run_that_is_continued_knows_what_it_started_from(plain, tmp_path):
    origin, _ = begun(plain, tmp_path, routing="attnres")
    told = []
    settings = {**SETTINGS, "steps": 2, "init_from": str(plain), "routing": "attnres"}
    path = train(TrainConfig(**settings), tmp_path / "run", resume=True, on_start=told.append)
    assert told == [origin] and load(path)["args"]["init_from"] == origin


def test_sizes_are_those_of_the_file(plain, tmp_path):
    found = sizes(plain)
    objective = {"objective": "sit", "path": "linear", "prediction": "velocity"}
    assert found == {**{n: load(plain)["args"][n] for n in SIZES}, **objective}
    with pytest.raises(UsageError, match="depth is 4 in 'step-0000060.pt' and 3 here"):
        begun(plain, tmp_path, depth=3)
    with pytest.raises(UsageError, match="the objective sit, this run repa"):
        begun(plain, tmp_path, objective="repa")
    assert not list(tmp_path.rglob("*.pt"))


def test_an_official_file_is_an_original_too(plain, tmp_path):
    state = load(plain)
    official = {"ema": state["ema"], "args": argparse.Namespace(num_heads=2)}
    torch.save(official, tmp_path / "official.pt")
    origin, _ = begun(tmp_path / "official.pt", tmp_path, routing="attnres")
    assert origin["distance"] < 1e-3


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError):
        begun(tmp_path / "text.pt", tmp_path)
    assert not (tmp_path / "run" / "checkpoints").exists()
