"""Conventions: which way time runs, what is predicted, and the check of what a file hides."""

import math

import pytest
import torch

from dar_probe import objective
from dar_probe.errors import UsageError
from dar_probe.probe.denoising import Denoising, contradiction
from dar_probe.train import sample
from tests import tiny

X = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def level(value):
    return torch.full((3,), value, dtype=torch.float64)


@pytest.mark.parametrize("name", ["sit", "repa"])
def test_level_zero_is_data_and_one_is_noise(name):
    flow = objective.get(name)
    assert torch.equal(flow.interpolate(X, NOISE, level(0.0)), X)
    assert torch.equal(flow.interpolate(X, NOISE, level(1.0)), NOISE)


def test_time_runs_both_ways():
    sit, repa, dit = (objective.get(name) for name in ("sit", "repa", "dit"))
    assert sit.model_time(level(1.0)).tolist() == [0.0] * 3  # t = 0 is noise
    assert repa.model_time(level(1.0)).tolist() == [1.0] * 3  # t = 1 is noise
    assert dit.model_time(level(1.0)).tolist() == [999] * 3
    assert dit.model_time(level(0.0)).tolist() == [0] * 3
    assert torch.equal(sit.target(X, NOISE), X - NOISE)
    assert torch.equal(repa.target(X, NOISE), NOISE - X)
    assert torch.equal(dit.target(X, NOISE), NOISE)


@pytest.mark.parametrize("name", ["sit", "repa"])
def test_velocity_is_the_slope_of_the_path_in_the_models_own_time(name):
    flow, step = objective.get(name), 1e-6
    direction = float(flow.model_time(level(0.5 + step))[0] - flow.model_time(level(0.5))[0])
    change = flow.interpolate(X, NOISE, level(0.5 + step)) - flow.interpolate(X, NOISE, level(0.5))
    torch.testing.assert_close(change / direction, flow.target(X, NOISE), rtol=1e-8, atol=1e-8)


def test_ddpm_levels_are_those_of_the_schedule():
    dit = objective.get("dit")
    alpha_bar = 1.0
    sigmas = []
    for step in range(1000):
        alpha_bar *= 1 - (1e-4 + step * (2e-2 - 1e-4) / 999)
        sigmas.append(math.sqrt(1 - alpha_bar))
    torch.testing.assert_close(dit.sigmas.tolist(), sigmas, rtol=1e-10, atol=0)
    wanted = torch.linspace(0, 1, 41, dtype=torch.float64)
    reached = dit.reached(wanted)
    for s, found in zip(wanted.tolist(), reached.tolist(), strict=True):
        assert abs(found - s) == pytest.approx(min(abs(sigma - s) for sigma in sigmas), abs=1e-12)
    assert reached[0] == pytest.approx(0.01, rel=1e-3)  # step 0 still holds 1 % noise
    assert reached[-1] == pytest.approx(0.99998, rel=1e-4)
    alpha, sigma = dit.alpha_sigma(reached)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


@pytest.mark.parametrize("name", objective.OBJECTIVES)
def test_a_perfect_prediction_splits_into_data_and_noise(name):
    o = objective.get(name)
    s = o.reached(level(0.6))
    x, noise = o.split(o.interpolate(X, NOISE, s), o.target(X, NOISE), s)
    torch.testing.assert_close(x, X, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(noise, NOISE, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", objective.OBJECTIVES)
def test_log_snr_falls_with_noise(name):
    o = objective.get(name)
    values = o.log_snr(o.reached(torch.linspace(0.1, 0.9, 9, dtype=torch.float64)))
    assert (values.diff() < 0).all()
    if name != "dit":
        assert float(o.log_snr(level(0.5))[0]) == pytest.approx(0, abs=1e-12)


def test_loss_is_the_mean_over_one_sample():
    losses = objective.per_sample_loss(X, NOISE)
    for i in range(3):
        assert float(losses[i]) == pytest.approx(float(((X[i] - NOISE[i]) ** 2).mean()))


def test_unknown_objective():
    with pytest.raises(UsageError, match="rectified"):
        objective.get("rectified")


class Oracle(torch.nn.Module):
    """Predicts perfectly for one data point under one convention."""

    def __init__(self, name, x):
        super().__init__()
        self.objective, self.x = objective.get(name), x
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x_s, t, y):
        if self.objective.name == "dit":
            s = self.objective.sigmas[t.clamp(0, 999).long()].to(x_s.dtype)
        else:
            s = self.objective.model_time(t)  # its own inverse
        alpha, sigma = self.objective.alpha_sigma(s)
        alpha, sigma = (objective.column(v, x_s) for v in (alpha, sigma))
        noise = (x_s - alpha * self.x) / sigma.clamp(min=1e-3)
        return self.objective.target(self.x.expand_as(x_s), noise)


@pytest.mark.parametrize("name", objective.OBJECTIVES)
def test_euler_steps_reach_the_data(name):
    x = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    drawn = sample.draw(
        Oracle(name, x), objective.get(name), torch.zeros(2, dtype=torch.long), (1, 4, 4), seed=0
    )
    # DDPM's last step, 0, still holds 1 % noise.
    torch.testing.assert_close(drawn, x.expand(2, -1, -1, -1), rtol=0, atol=0.05)


@pytest.mark.parametrize("true", objective.OBJECTIVES)
@pytest.mark.parametrize("assumed", objective.OBJECTIVES)
def test_a_wrong_clock_is_found(true, assumed):
    model = tiny.model()
    data, _ = tiny.problem(model, samples=1)
    oracle = Oracle(true, data.latents)
    problem = Denoising(
        objective.get(assumed), data, seed=0, device=torch.device("cpu"), dtype=torch.float32
    )
    sentence = contradiction(oracle, problem, data, seed=0)
    if true == assumed:
        assert sentence is None
    else:
        assert f"--objective {true}" in sentence


def test_an_untrained_model_contradicts_nothing():
    model = tiny.model(dtype=torch.float32)
    for parameter in model.final_layer.parameters():
        torch.nn.init.zeros_(parameter)
    data, problem = tiny.problem(model, samples=8, dtype=torch.float32)
    assert contradiction(model, problem, data, seed=0) is None
