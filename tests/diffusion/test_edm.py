"""EDM against the formulas of arXiv 2206.00364, whose network sees data over sigma_data."""

import math

import pytest
import torch

from dar_probe.diffusion import data, objectives, samplers
from dar_probe.diffusion.samplers import Sampler

EDM = objectives.get("edm")
SIGMAS = [0.002, 0.0321, math.exp(-1.2), 0.5, 3.7, 80.0]
GENERATOR = torch.Generator().manual_seed(0)
X, NOISE, OUTPUT = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64, generator=GENERATOR)


def factors(sigma, sigma_data=0.5):
    """c_skip, c_out, c_in, c_noise and the weight of the loss: table 1 of the paper."""
    total = sigma**2 + sigma_data**2
    return (
        sigma_data**2 / total,
        sigma * sigma_data / math.sqrt(total),
        1 / math.sqrt(total),
        math.log(sigma) / 4,
        total / (sigma * sigma_data) ** 2,
    )


def level(sigma):
    return torch.full((2,), sigma / math.sqrt(sigma**2 + 0.25), dtype=torch.float64)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_network_between_its_factors(sigma):
    """At sigma = 80 rounding of the level leaves 13 digits of what is left of the data."""
    skip, out, into, clock, weight = factors(sigma)
    s, noised = level(sigma), X + sigma * NOISE
    near = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(EDM.reached(s), s, rtol=1e-15, atol=0)
    torch.testing.assert_close(EDM.interpolate(X, NOISE, s), into * noised, **near)
    torch.testing.assert_close(EDM.model_time(s), torch.full_like(s, clock), **near)
    torch.testing.assert_close(EDM.log_snr(s), torch.full_like(s, -2 * math.log(sigma)), **near)
    denoised = skip * noised + out * OUTPUT
    loss = (weight * (denoised - X) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(EDM.loss(OUTPUT, X, NOISE, s), loss, rtol=1e-10, atol=0)
    clean, noise = EDM.split(into * noised, OUTPUT, s)
    torch.testing.assert_close(clean, denoised, **near)
    torch.testing.assert_close(noise, (noised - denoised) / sigma, **near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_clock_ends_where_the_authors_sampler_does(dtype):
    ends = EDM.reached(torch.tensor([0.0, 1.0], dtype=dtype))
    times = EDM.model_time(ends)
    assert torch.equal(EDM.reached(ends), ends) and times.dtype == dtype
    # A float32 level leaves three digits of 1 - s^2 at the noisy end.
    near = {"abs": 1e-3 if dtype == torch.float32 else 1e-12}
    assert times.tolist() == pytest.approx([math.log(0.002) / 4, math.log(80) / 4], **near)


def test_half_of_training_lies_below_the_level_that_is_said():
    assert float(level(math.exp(-1.2))[0]) == pytest.approx(0.52, abs=0.005)
    assert "half of it lies below level 0.52" in " ".join(type(EDM).__doc__.split())


class Exact(torch.nn.Module):
    """F for the best denoiser of pixels from N(0.7, 0.4^2)."""

    def forward(self, x_s, t, y):
        sigma = float(torch.exp(4 * t[0]))
        skip, out, into, _, _ = factors(sigma)
        noised = x_s / into
        denoised = 0.7 + 0.16 / (0.16 + sigma**2) * (noised - 0.7)
        return (denoised - skip * noised) / out


def drawn(**settings):
    return samplers.draw(
        Exact(), EDM, torch.zeros(settings.pop("count", 4), dtype=torch.long), (1, 2, 2), seed=3,
        sampler=Sampler(**settings), place=samplers.Place(dtype=torch.float64, batch_size=1000),
    )  # fmt: skip


def follows(error, **settings):
    flow = 0.7 + 0.4 * data.noise(range(4), (1, 2, 2), seed=3)
    torch.testing.assert_close(drawn(**settings), flow, rtol=0, atol=error)


# Measured: 0.021 and 0.0035, which is 0.7 0.4 / 80: the first noise holds no trace of the data.
@pytest.mark.parametrize(("solver", "error"), [("euler", 0.04), ("heun", 0.007)])
def test_samples_follow_the_flow_to_data_of_their_own_size(solver, error):
    follows(error, solver=solver, steps=100)


def test_dopri5_does_not_step_over_the_end_of_the_clock():
    follows(0.004, solver="dopri5")  # measured: 0.0021


def test_fresh_noise_keeps_the_distribution():
    found = drawn(solver="sde", steps=100, count=1000).double()
    assert float(found.mean()) == pytest.approx(0.7, abs=0.035)  # four errors, and 0.01
    assert float(found.std()) == pytest.approx(0.4, rel=0.05)
