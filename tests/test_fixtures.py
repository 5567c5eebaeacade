"""The shipped checkpoints: really trained, small, and showing what the docs say."""

from pathlib import Path

import pytest
import torch

import dar_probe as dp
from dar_probe.checkpoints import read
from dar_probe.models.sit import SiT, SiTConfig

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
NAMES = ["digits-residual", "digits-dar-static", "digits-dar-dynamic"]


@pytest.fixture
def analyses(measured):
    return {name: measured(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_file(name):
    path = FIXTURES / f"{name}.pt"
    assert path.stat().st_size <= 10_000_000
    content = torch.load(path, weights_only=True)
    assert set(content) == {"ema", "args"}
    assert {tensor.dtype for tensor in content["ema"].values()} == {torch.float32}
    official = SiT(
        SiTConfig(depth=28, width=64, heads=2, patch=2, in_channels=1, input_size=8,
                  num_classes=10, learn_sigma=False)
    ).state_dict()  # fmt: skip
    assert {key for key in content["ema"] if not key.startswith("stream.")} == set(official)
    if name == "digits-residual":
        assert set(content["ema"]) == set(official)


def test_they_differ_in_routing_alone():
    settings = [dict(read(FIXTURES / f"{name}.pt").args["train"]) for name in NAMES]
    for setting in settings:
        for key in ("routing", "query", "chunk_size"):
            del setting[key]
    assert settings[0] == settings[1] == settings[2]


def test_residual_shows_the_symptoms_and_dar_less(analyses):
    residual, *routed = (analyses[name].metrics for name in NAMES)
    assert residual["inflation"].low > 1 and residual["gradient_decay"].low > 1
    for metrics in routed:
        for symptom in ("inflation", "gradient_decay", "redundancy"):
            assert residual[symptom].low > metrics[symptom].high, symptom


def test_residual_grows_and_its_gradient_falls_with_depth(analyses):
    ds = analyses["digits-residual"].dataset
    rms = (ds["rms"] ** 2).mean(("noise_level", "sample")) ** 0.5
    grad = (ds["grad_rms"] ** 2).mean(("noise_level", "sample")) ** 0.5
    assert (rms.diff("block")[1:] > 0).mean() > 0.9
    assert (grad.diff("block")[1:] < 0).mean() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_error_bars_are_small(analyses, name):
    metrics = analyses[name].metrics
    assert metrics["gate_conservation"].value < 1e-2
    assert metrics["read_residual"].value < 1e-6
    assert analyses[name].manifest["warnings"] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_clock_is_the_first_thing_said(name):
    wrong = dp.analyze(FIXTURES / f"{name}.pt", noise_levels=2, samples=4, objective="repa")
    (warning,) = wrong.manifest["warnings"]
    assert "contradict" in warning and "--objective sit" in warning


def test_routes_of_dar_depend_on_the_noise_level(analyses):
    for name in NAMES[1:]:
        assert analyses[name].metrics["selectivity_shift"].low > 0.05
        assert analyses[name].metrics["selectivity"].low > 0.02
