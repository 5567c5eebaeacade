"""Samplers against data whose flow and marginals are known in closed form."""

import sys
from dataclasses import replace

import pytest
import torch

from dar_probe import UsageError
from dar_probe.diffusion import data, objectives, samplers
from dar_probe.diffusion.ddpm import DDPM
from dar_probe.diffusion.objective import column
from dar_probe.diffusion.samplers import Sampler

MEAN, SPREAD = 0.7, 0.4
SHAPE = (1, 2, 2)


class Exact(torch.nn.Module):
    """The best predictor for pixels drawn from N(MEAN + label, SPREAD^2)."""

    def __init__(self, name):
        super().__init__()
        self.objective = objectives.get(name)

    def forward(self, x_s, t, y, r=None):
        if r is not None:  # the mean velocity, on the line that quantiles follow from t to r
            places = [self.place(time, y, x_s) for time in (t, r)]
            (mean, spread), (mean_there, spread_there) = places
            there = mean_there + spread_there / spread * (x_s - mean)
            return (x_s - there) / column(t - r, x_s)
        o = self.objective
        if isinstance(o, DDPM):
            s = o.sigmas[t - o.first]
        else:
            s = o.model_time(t)  # a flow's clock is its own inverse
        alpha, sigma = (column(c, x_s) for c in o.alpha_sigma(s))
        mean = MEAN + column(y, x_s)
        pull = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
        clean = mean + pull * (x_s - alpha * mean)
        return o.target(clean, (x_s - alpha * clean) / sigma.clamp(min=1e-12), s)

    def place(self, t, y, like):
        """Mean and spread of x_s at a time of a flow."""
        alpha, sigma = (column(c, like) for c in self.objective.alpha_sigma(t))
        return alpha * (MEAN + column(y, like)), (alpha**2 * SPREAD**2 + sigma**2).sqrt()


def drawn(name="sit", *, count=6, labels=None, batch_size=16, **settings):
    labels = torch.zeros(count, dtype=torch.long) if labels is None else labels
    return samplers.draw(
        Exact(name), objectives.get(name), labels, SHAPE, seed=3, sampler=Sampler(**settings),
        place=samplers.Place(dtype=torch.float64, batch_size=batch_size),
    )  # fmt: skip


def flow(count=6):
    """Where the ODE leads: quantiles keep their places."""
    return MEAN + SPREAD * data.noise(range(count), SHAPE, seed=3)


@pytest.mark.parametrize("name", ["sit", "repa"])
@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2)])
def test_solvers_have_their_order(name, solver, order):
    errors = [
        float((drawn(name, solver=solver, steps=steps) - flow()).abs().max()) for steps in (32, 64)
    ]
    assert errors[1] < (0.03 if order == 1 else 2e-3)
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)


@pytest.mark.parametrize("name", ["meanflow", "meanflow:gvp:velocity"])
def test_one_step_of_mean_velocities_is_the_flow(name):
    for steps in (1, 3):
        torch.testing.assert_close(drawn(name, steps=steps), flow(), rtol=0, atol=1e-6)
    # Other solvers take the velocity at r = t.
    error = (drawn(name, solver="heun", steps=64) - flow()).abs().max()
    assert 1e-6 < float(error) < 3e-3


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_jit_steps_are_those_of_its_formulas(solver):
    """From 2 times the noise; 1 - t is at least 0.05, and the last step is Euler's."""
    model, label, steps = Exact("jit:2"), torch.zeros(6, dtype=torch.long), 30
    z = 2 * data.noise(range(6), SHAPE, seed=3).double()

    def velocity(z, t):
        time = torch.full((6,), t, dtype=torch.float64)
        return (model(z, time, label) - z) / max(1 - t, 0.05)

    for k in range(steps):
        t, after = k / steps, (k + 1) / steps
        v = velocity(z, t)
        if solver == "heun" and k + 1 < steps:
            v = (v + velocity(z + (after - t) * v, after)) / 2
        z = z + (after - t) * v
    found = drawn("jit:2", solver=solver, steps=steps).double()
    torch.testing.assert_close(found, z, rtol=0, atol=1e-6)
    torch.testing.assert_close(found, flow().double(), rtol=0, atol=0.2)


def test_steps_are_those_of_the_objective():
    """Of 4 numbers over a base of 1: u becomes 2 u / (1 + u)."""
    seen = []
    model = Exact("repa")
    model.register_forward_pre_hook(lambda _, args: seen.append(float(args[1][0])))
    samplers.draw(
        model, replace(objectives.get("rae"), base=1), torch.zeros(1, dtype=torch.long), SHAPE,
        seed=3, sampler=Sampler(steps=4),
    )  # fmt: skip
    assert seen == pytest.approx([1, 6 / 7, 2 / 3, 2 / 5])


@pytest.mark.parametrize("name", ["dit", "dit:v"])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_discrete_steps_follow_the_flow(name, solver):
    found = drawn(name, solver=solver, steps=100)
    torch.testing.assert_close(found, flow(), rtol=0, atol=0.03)


# A prediction of the noise tells no data at pure noise: it starts at s = 0.999.
@pytest.mark.parametrize(("name", "error"), [("sit", 2e-3), ("sit:linear:noise", 4e-3)])
def test_dopri5_follows_the_flow(name, error):
    torch.testing.assert_close(drawn(name, solver="dopri5"), flow(), rtol=0, atol=error)


@pytest.mark.parametrize("name", ["sit", "dit"])
def test_fresh_noise_keeps_the_distribution(name):
    found = drawn(name, solver="sde", steps=100, count=1000, batch_size=1000).double()
    error = SPREAD / len(found.flatten()) ** 0.5
    assert float(found.mean()) == pytest.approx(MEAN, abs=4 * error + 0.01)
    assert float(found.std()) == pytest.approx(SPREAD, rel=0.05)
    # It is noise of its own, and not the flow's.
    first = torch.stack([found.flatten(), flow(1000).double().flatten()])
    assert abs(float(torch.corrcoef(first)[0, 1])) < 0.3


@pytest.mark.parametrize("solver", ["euler", "heun", "sde"])
def test_a_sample_is_the_same_in_any_batch(solver):
    whole, parts = (drawn(solver=solver, steps=8, batch_size=n) for n in (16, 2))
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-6)


def test_guidance_is_linear_in_the_prediction():
    labels = torch.full((4,), 2)
    plain = drawn(labels=labels)
    assert torch.equal(drawn(labels=labels, guidance=1.0, null_class=5), plain)
    free = drawn(labels=torch.full((4,), 5))
    assert torch.equal(drawn(labels=labels, guidance=0.0, null_class=5), free)
    # The predictor is affine in the label: guidance 3 over label 5 leads to 5 + 3 (2 - 5).
    far = drawn(labels=torch.full((4,), -4))
    torch.testing.assert_close(drawn(labels=labels, guidance=3.0, null_class=5), far)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"solver": "rk4"}, "unknown solver 'rk4'"),
        ({"steps": 0}, "0 steps draw no samples"),
        ({"guidance": float("nan"), "null_class": 1}, "guidance nan makes no sense"),
        ({"guidance": 2.0}, "guidance needs a model"),
    ],
)
def test_refusals(settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        Sampler(**settings)


def test_dopri5_needs_a_continuous_path_and_its_package(monkeypatch):
    with pytest.raises(UsageError, match="dit has discrete steps"):
        drawn("dit", solver="dopri5")
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(UsageError, match="needs torchdiffeq"):
        drawn(solver="dopri5")
