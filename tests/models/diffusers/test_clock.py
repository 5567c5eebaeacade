"""Clocks and predictions, against diffusers' own schedulers."""

import pytest
import torch

from dar_probe.errors import CheckpointError
from dar_probe.models.diffusers import scheduler as clock
from tests.models.diffusers import tiny

diffusers = pytest.importorskip("diffusers")
S = torch.tensor([0.0, 0.25, 1.0])


def flow(name, config=None, scheduler=None):
    return clock.choose(name, config or {}, scheduler)[0]


@pytest.mark.parametrize(
    ("name", "times", "sign"),
    [
        ("FluxTransformer2DModel", [0, 0.25, 1], 1),
        ("QwenImageTransformer2DModel", [0, 0.25, 1], 1),
        ("SD3Transformer2DModel", [0, 250, 1000], 1),
        ("WanTransformer3DModel", [0, 250, 1000], 1),
        ("SanaTransformer2DModel", [0, 250, 1000], 1),
        ("Lumina2Transformer2DModel", [1, 0.75, 0], -1),
        ("ZImageTransformer2DModel", [1, 0.75, 0], -1),
        ("MochiTransformer3DModel", [1000, 750, 0], -1),
    ],
)
def test_flows(name, times, sign):
    found = flow(name)
    assert found.model_time(S).tolist() == times
    x, noise = torch.zeros(3, 1), torch.ones(3, 1)
    assert found.target(x, noise, S).tolist() == [[sign]] * 3


def test_sana_counts_its_time_as_its_settings_say():
    assert flow("SanaTransformer2DModel", {"timestep_scale": 0.001}).model_time(S).tolist() == [
        0, 0.25, 1,
    ]  # fmt: skip


def test_inverted_sigmas_reverse_the_clock():
    scheduler = {"_class_name": tiny.FLOW, "invert_sigmas": True, "num_train_timesteps": 1}
    found = flow("OfAnotherTime", scheduler=scheduler)
    assert found.model_time(S).tolist() == [1, 0.75, 0]
    assert (found.target(torch.zeros(3, 1), torch.ones(3, 1), S) == -1).all()


def test_what_is_assumed_is_said():
    found, assumed = clock.choose("DiTTransformer2DModel", {}, None)
    assert found.name == "ddpm:linear:eps"
    assert assumed == [
        "there is no scheduler: the objective is 'ddpm:linear:eps', usual for DiTTransformer2DModel"
    ]
    unknown = "the clock of Any is not known: 0 for data, 1,000 for noise is assumed"
    found, assumed = clock.choose("Any", {}, None)
    assert assumed == [
        "there is no scheduler: the objective is 'flow:t=1000s'", unknown,
    ]  # fmt: skip
    assert clock.choose("Any", {}, {"_class_name": tiny.FLOW})[1] == [unknown]
    assert clock.choose("SD3Transformer2DModel", {}, {"_class_name": tiny.FLOW})[1] == []


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        ("DDIMScheduler", {}),
        ("DDPMScheduler", dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.03)),
        ("DDIMScheduler", dict(beta_schedule="squaredcos_cap_v2")),
        ("DDIMScheduler", dict(rescale_betas_zero_snr=True)),
        ("DDPMScheduler", dict(trained_betas=[0.1, 0.2, 0.3], num_train_timesteps=3)),
        ("DPMSolverMultistepScheduler", dict(num_train_timesteps=500)),
        ("CogVideoXDDIMScheduler", {}),
        ("CogVideoXDDIMScheduler", dict(rescale_betas_zero_snr=True)),
    ],
)
def test_noise_levels_of_discrete_steps(scheduler, settings):
    made = getattr(diffusers, scheduler)(**settings)
    found, _ = clock.choose("Any", {}, dict(made.config) | {"_class_name": scheduler})
    # diffusers computes in float32: the largest difference was 1.1e-6.
    wanted = (1 - made.alphas_cumprod.double()).sqrt()
    assert (found.sigmas - wanted).abs().max() < 5e-6
    assert found.model_time(found.sigmas[[0, -1]]).tolist() == [0, len(wanted) - 1]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_predictions_are_those_of_the_scheduler(prediction):
    """With the exact target, one step of DDIM to the clean end returns the data."""
    made = diffusers.DDIMScheduler(
        prediction_type=prediction, clip_sample=False, set_alpha_to_one=True
    )
    made.set_timesteps(1)
    found, _ = clock.choose("Any", {}, dict(made.config) | {"_class_name": "DDIMScheduler"})
    x, noise = torch.tensor([[0.3, -1.2]]), torch.tensor([[-0.7, 0.4]])
    t = int(made.timesteps[0])
    s = found.sigmas[[t]].float()
    x_s = found.interpolate(x, noise, s)
    back = made.step(found.target(x, noise, s), t, x_s).prev_sample
    assert (back - x).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}, "neither a flow nor"),
        ({"_class_name": "SCMScheduler", "prediction_type": "trigflow"}, "neither a flow nor"),
        ({"beta_schedule": "sigmoid"}, "noise schedule 'sigmoid'"),
        ({"beta_schedule": "linear", "prediction_type": "score"}, "prediction type 'score'"),
        ({"beta_schedule": "linear", "num_train_timesteps": 10**9}, "cannot be right"),
        ({}, "neither a flow nor"),
    ],
)
def test_schedulers_without_a_known_objective(settings, match):
    with pytest.raises(CheckpointError, match=match):
        clock.choose("Any", {}, settings)
