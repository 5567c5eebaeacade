"""Conventions: which way time runs, what is predicted, and the check of what a file hides."""

import math

import pytest
import torch

from dar_probe.diffusion import objectives, samplers
from dar_probe.diffusion.ddpm import DDPM, PREDICTIONS, SCHEDULES, VPSDE
from dar_probe.diffusion.edm import EDM
from dar_probe.diffusion.flow import FLOW_PREDICTIONS, PATHS, Flow
from dar_probe.diffusion.objective import column, per_sample_loss
from dar_probe.errors import UsageError
from dar_probe.probe.denoising import Denoising, contradiction
from tests.helpers import tiny

EVERY_FLOW = [
    f"{clock}:{path}:{prediction}"
    for clock in ("sit", "repa")
    for path in PATHS
    for prediction in FLOW_PREDICTIONS
]
EVERY = [
    *objectives.OBJECTIVES,
    *EVERY_FLOW,
    *(f"ddpm:{s}:{p}" for s in SCHEDULES for p in PREDICTIONS),
    "dit:v",
    "uvit:x0",
    "jit:2",
    "meanflow:gvp:velocity",
]
EVERY_DDPM = [name for name in EVERY if isinstance(objectives.get(name), DDPM)]
X = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# diffusers works in float32. Measured: alpha_bar 7.5e-7 of itself, 1.0e-6 where zero_snr takes the
# difference of two; x_s and v 4.5e-5, at the clean end, where 1 - alpha_bar has few digits.
ALPHA_BAR, ZERO_SNR, MIXED = 1.5e-6, 2e-6, 1e-4


def level(value):
    return torch.full((3,), value, dtype=torch.float64)


@pytest.mark.parametrize("name", ["sit", "repa"])
def test_level_zero_is_data_and_one_is_noise(name):
    flow = objectives.get(name)
    assert torch.equal(flow.interpolate(X, NOISE, level(0.0)), X)
    assert torch.equal(flow.interpolate(X, NOISE, level(1.0)), NOISE)


def test_time_runs_both_ways():
    sit, repa, dit = (objectives.get(name) for name in ("sit", "repa", "dit"))
    assert sit.model_time(level(1.0)).tolist() == [0.0] * 3  # t = 0 is noise
    assert repa.model_time(level(1.0)).tolist() == [1.0] * 3  # t = 1 is noise
    assert dit.model_time(level(1.0)).tolist() == [999] * 3
    assert dit.model_time(level(0.0)).tolist() == [0] * 3
    assert torch.equal(sit.target(X, NOISE, level(0.3)), X - NOISE)
    assert torch.equal(repa.target(X, NOISE, level(0.3)), NOISE - X)
    assert torch.equal(dit.target(X, NOISE, level(0.3)), NOISE)


def test_rae_draws_with_steps_shifted_by_the_size_of_a_sample():
    """The published formula, of 768 x 16 x 16 numbers over 4096: a = sqrt(48)."""
    rae, a = objectives.get("rae"), math.sqrt(48)
    found = rae.steps(4, (768, 16, 16)).tolist()
    assert found == pytest.approx([a * u / (1 + (a - 1) * u) for u in (1, 0.75, 0.5, 0.25, 0)])
    assert rae.steps(4, (4, 32, 32)).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert rae.steps(4, (4, 8, 8)).tolist() == [1, 0.75, 0.5, 0.25, 0]  # never nearer to the data
    assert objectives.get("repa").steps(4, (768, 16, 16)).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert torch.equal(rae.target(X, NOISE, level(0.3)), NOISE - X)
    assert torch.equal(rae.model_time(level(0.3)), level(0.3))  # only steps are shifted, no clock


FLOWS = {
    "sit": objectives.get("sit"),
    "repa": objectives.get("repa"),
    "sd3": Flow("sd3", noise_time=1, scale=1000),
    "reversed": Flow("reversed", noise_time=0, scale=1000),
    **{name: objectives.get(name) for name in EVERY_FLOW if name.endswith("velocity")},
}


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("s", [0.05, 0.5, 0.9])
def test_velocity_is_the_slope_of_the_path_in_the_models_own_time(name, s):
    flow, step = FLOWS[name], 1e-5
    passed = flow.model_time(level(s + step)) - flow.model_time(level(s - step))
    change = flow.interpolate(X, NOISE, level(s + step)) - flow.interpolate(
        X, NOISE, level(s - step)
    )
    torch.testing.assert_close(
        change / float(passed[0]) * flow.scale, flow.target(X, NOISE, level(s)), rtol=0, atol=1e-6
    )


def sit_path(path, t):
    """alpha, sigma of transport/path.py in its own time, which is 1 at data."""
    if path == "linear":
        return t, 1 - t
    if path == "gvp":
        return math.sin(t * math.pi / 2), math.cos(t * math.pi / 2)
    log_mean = -0.25 * (1 - t) ** 2 * (20.0 - 0.1) - 0.5 * (1 - t) * 0.1
    return math.exp(log_mean), math.sqrt(1 - math.exp(2 * log_mean))


@pytest.mark.parametrize("path", PATHS)
def test_paths_and_losses_are_those_of_sit(path):
    for t in (0.02, 0.3, 0.77, 0.99):
        alpha, sigma = sit_path(path, t)
        noise, score = (objectives.get(f"sit:{path}:{p}") for p in ("noise", "score"))
        s = level(1 - t)
        torch.testing.assert_close(noise.model_time(s), level(t))
        for found, wanted in zip(score.alpha_sigma(s), (alpha, sigma), strict=True):
            assert found.tolist() == pytest.approx([wanted] * 3, rel=1e-9)
        output = torch.sin(7 * X)
        wanted = ((output - NOISE) ** 2).mean((1, 2, 3))
        torch.testing.assert_close(noise.loss(output, X, NOISE, s), wanted)
        wanted = ((output * sigma + NOISE) ** 2).mean((1, 2, 3))  # WeightType.NONE
        torch.testing.assert_close(score.loss(output, X, NOISE, s), wanted)
        perfect = score.target(X, NOISE, s)
        torch.testing.assert_close(perfect, -NOISE / sigma)
        assert float(score.loss(perfect, X, NOISE, s).max()) < 1e-25


def test_the_vp_path_is_the_vp_process_at_its_own_time():
    """One process: there the noise level is sigma, here the time along the path."""
    path, process, s = objectives.get("repa:vp:noise"), objectives.get("vp"), level(0.3)
    alpha, sigma = path.alpha_sigma(s)
    torch.testing.assert_close(process.alpha_sigma(sigma)[0], alpha)
    torch.testing.assert_close(process.model_time(sigma), 999 * path.model_time(s))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_linear_velocity_is_the_plain_flow_bit_for_bit(dtype):
    x, noise = X.to(dtype), NOISE.to(dtype)
    for s in torch.rand(64, 1, dtype=dtype, generator=torch.Generator().manual_seed(0)):
        s = s.expand(3)
        sit, repa = objectives.get("sit"), objectives.get("repa")
        assert torch.equal(sit.reached(s), s)
        x_s, at = sit.interpolate(x, noise, s), s[0]
        assert torch.equal(x_s, (1 - at) * x + at * noise)
        for flow, to_noise in ((sit, -X.to(dtype)), (repa, X.to(dtype))):
            clean, left = flow.split(x_s, X.to(dtype), s)
            assert torch.equal(clean, x_s - at * to_noise)
            assert torch.equal(left, x_s + (1 - at) * to_noise)
        assert torch.equal(repa.target(x, noise, s), noise - x)


def test_ddpm_levels_are_those_of_the_schedule():
    dit = objectives.get("dit")
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


def slow_alpha_bars(schedule, steps=1000, start=1e-4, end=2e-2, zero_snr=False):
    """The definitions, step by step in Python floats."""
    kept, found = 1.0, []
    for i in range(steps):
        if schedule == "linear":
            beta = start + (end - start) * i / (steps - 1)
        elif schedule == "scaled-linear":
            beta = (math.sqrt(start) + (math.sqrt(end) - math.sqrt(start)) * i / (steps - 1)) ** 2
        else:
            ends = [math.cos(((j / steps) + 0.008) / 1.008 * math.pi / 2) ** 2 for j in (i, i + 1)]
            beta = min(1 - ends[1] / ends[0], 0.999)
        kept *= 1 - beta
        found.append(kept)
    if zero_snr:
        first, last = math.sqrt(found[0]), math.sqrt(found[-1])
        found = [((math.sqrt(a) - last) * first / (first - last)) ** 2 for a in found]
    return found


SETTINGS = [
    {"schedule": schedule, "zero_snr": zero_snr, **more}
    for schedule in SCHEDULES
    for zero_snr in (False, True)
    for more in ({}, {"steps": 50, "beta_start": 0.00085, "beta_end": 0.012})
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_schedules_equal_a_loop(settings):
    found = objectives.ddpm("mine", **settings).alpha_bar
    renamed = {"beta_start": "start", "beta_end": "end"}
    slow = slow_alpha_bars(**{renamed.get(key, key): value for key, value in settings.items()})
    expected = torch.tensor(slow, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-17)
    if settings["zero_snr"]:
        assert found[-1] == 0
        assert found[0] == pytest.approx(float(objectives.ddpm(
            "mine", **{**settings, "zero_snr": False}).alpha_bar[0]), rel=1e-12)  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("trained", [False, True])
def test_schedules_equal_diffusers(settings, trained):
    diffusers = pytest.importorskip("diffusers")
    spelling = {"scaled-linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
    settings = dict(settings)
    schedule, zero_snr = settings.pop("schedule"), settings.pop("zero_snr")
    spelled = spelling.get(schedule, schedule)
    config = {
        "num_train_timesteps": settings.pop("steps", 1000),
        "beta_start": 1e-4,
        "beta_end": 2e-2,
        **settings,
    }
    theirs = diffusers.DDPMScheduler(beta_schedule=spelled, **config)
    more = {"trained_betas": theirs.betas.tolist()} if trained else {}
    theirs = diffusers.DDPMScheduler(
        beta_schedule=spelled, rescale_betas_zero_snr=zero_snr, **config, **more
    )
    mine = objectives.ddpm(
        "mine",
        schedule=spelled,
        prediction="v_prediction",
        steps=config["num_train_timesteps"],
        zero_snr=zero_snr,
        **{"trained_betas": more["trained_betas"]} if trained else settings,
    )
    torch.testing.assert_close(
        mine.alpha_bar,
        theirs.alphas_cumprod.double(),
        rtol=0 if zero_snr else ALPHA_BAR,
        atol=ZERO_SNR if zero_snr else 1e-10,  # float32 has little of 1 - 0.999
    )
    last = config["num_train_timesteps"] - 1
    steps = torch.tensor([0, last // 2, last])
    s = mine.sigmas[steps]
    assert torch.equal(mine.model_time(s), steps)
    velocity = theirs.get_velocity(X.float(), NOISE.float(), steps)
    torch.testing.assert_close(mine.target(X, NOISE, s).float(), velocity, rtol=0, atol=MIXED)
    noised = theirs.add_noise(X.float(), NOISE.float(), steps)
    torch.testing.assert_close(mine.interpolate(X, NOISE, s).float(), noised, rtol=0, atol=MIXED)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("wanted", [0.05, 0.6, 0.99])
def test_a_perfect_prediction_splits_into_data_and_noise(name, wanted):
    o = objectives.get(name)
    s = o.reached(level(wanted))
    x, noise = o.split(o.interpolate(X, NOISE, s), o.target(X, NOISE, s), s)
    torch.testing.assert_close(x, X, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(noise, NOISE, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_split_is_finite_at_both_ends(name, dtype):
    o = objectives.get(name)
    for wanted in (0.0, 1.0):
        s = o.reached(level(wanted).to(dtype))
        x, noise = (tensor.to(dtype) for tensor in (X, NOISE))
        found = o.split(o.interpolate(x, noise, s), o.target(x, noise, s), s)
        # What is nearly absent from x_s is the worse known the fewer digits there are.
        alpha, sigma = (float(c[0]) for c in o.alpha_sigma(s))
        missing = min((c for c in (alpha, sigma) if c > 0), default=1)
        if name.startswith("jit") and not wanted:
            assert found[1].isfinite().all()  # the data tell no noise: the floor's
            found = found[:1]
        for one, true in zip(found, (x, noise), strict=False):
            torch.testing.assert_close(
                one, true, rtol=0, atol=16 * torch.finfo(dtype).eps / missing
            )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zero_terminal_snr_leaves_no_data_and_v_still_tells_it(schedule):
    o = objectives.ddpm("mine", schedule=schedule, prediction="v", zero_snr=True)
    s = o.reached(level(1.0))
    assert s.tolist() == [1.0] * 3
    assert o.log_snr(s).tolist() == [-math.inf] * 3
    assert torch.equal(o.interpolate(X, NOISE, s), NOISE)
    x, noise = o.split(NOISE, o.target(X, NOISE, s), s)
    assert torch.equal(x, X) and torch.equal(noise, NOISE)
    eps = objectives.ddpm("mine", schedule=schedule, zero_snr=True)
    assert not eps.split(NOISE, NOISE, s)[0].isfinite().any()  # nothing says what the data are


@pytest.mark.parametrize("name", EVERY)
def test_the_time_axis_runs_from_data_to_noise(name):
    o = objectives.get(name)
    reached = o.reached(torch.linspace(0, 1, 201, dtype=torch.float64)).unique()
    assert len(reached) > 190  # unique also sorts
    x_s = o.interpolate(torch.ones(len(reached), 1, dtype=torch.float64), torch.zeros(()), reached)
    assert (x_s[:, 0].diff() < 0).all()  # less and less data
    assert (o.log_snr(reached).diff() < 0).all()
    direction = -1 if name.startswith(("sit", "jit")) else 1
    assert (o.model_time(reached).diff() * direction > 0).all()
    assert torch.equal(o.reached(reached), reached)


@pytest.mark.parametrize("name", EVERY)
def test_log_snr_is_the_log_of_the_ratio_of_powers(name):
    """Data and noise of unit variance keep the powers alpha^2 and sigma^2 at every level."""
    objective = objectives.get(name)
    s = objective.reached(torch.tensor([0.05, 0.3, 0.5, 0.9], dtype=torch.float64))
    one, none = torch.ones(4, 1, 1, 1).double(), torch.zeros(4, 1, 1, 1).double()
    alpha = objective.interpolate(one, none, s).flatten()
    sigma = objective.interpolate(none, one, s).flatten()
    wanted = torch.log(alpha**2 / sigma**2)
    torch.testing.assert_close(objective.log_snr(s).double(), wanted, rtol=1e-9, atol=1e-9)


def test_log_snr_is_even_at_the_middle_of_a_path():
    for name in ("sit", "repa"):
        assert float(objectives.get(name).log_snr(level(0.5))[0]) == pytest.approx(0, abs=1e-12)
    vp = objectives.get("vp")
    assert float(vp.log_snr(level(0.5**0.5))[0]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", EVERY_DDPM)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_step_is_the_one_whose_level_is_nearest(name, dtype):
    o = objectives.get(name)
    start, end = (0.00085, 0.012) if "uvit" in name or "scaled" in name else (1e-4, 2e-2)
    schedule = {"dit": "linear", "uvit": "scaled-linear"}.get(
        name.partition(":")[0], name.split(":")[1] if ":" in name else ""
    )
    levels = [math.sqrt(1 - a) for a in slow_alpha_bars(schedule, start=start, end=end)]
    generator = torch.Generator().manual_seed(0)
    wanted = torch.rand(64, dtype=torch.float64, generator=generator).to(dtype)
    for s, step, reached in zip(
        wanted.tolist(), o.model_time(wanted).tolist(), o.reached(wanted).tolist(), strict=True
    ):
        nearest = min(range(1000), key=lambda i: abs(levels[i] - s))
        assert step == nearest + (1 if name.startswith("uvit") else 0)
        assert reached == pytest.approx(levels[nearest], rel=1e-6)
    # What was reached once is reached again, also after rounding.
    assert torch.equal(o.model_time(o.reached(wanted)), o.model_time(wanted))


def test_uvit_is_fed_steps_from_one():
    uvit = objectives.get("uvit")
    assert uvit.model_time(level(0.0)).tolist() == [1] * 3
    assert uvit.model_time(level(1.0)).tolist() == [1000] * 3
    assert float(uvit.reached(level(0.0))[0]) == pytest.approx(math.sqrt(0.00085), rel=1e-12)


def test_vp_levels_are_the_integral_of_beta():
    vp = objectives.get("vp")
    for t in (1e-4, 0.01, 0.3, 0.9, 1.0):
        # The midpoint rule is exact for a linear beta.
        integral = sum((0.1 + 19.9 * t * (i + 0.5) / 1000) * t / 1000 for i in range(1000))
        s = math.sqrt(-math.expm1(-integral))
        assert float(vp.model_time(level(s))[0]) == pytest.approx(999 * t, rel=1e-9)
        alpha, sigma = vp.alpha_sigma(level(s))
        assert float(alpha[0]) == pytest.approx(math.exp(-integral / 2), rel=1e-9)
        assert float(sigma[0]) == pytest.approx(s, rel=1e-12)
    assert vp.model_time(vp.reached(level(1.0))).tolist() == pytest.approx([999.0] * 3, rel=1e-9)
    assert vp.model_time(vp.reached(level(1.0).float())).max() <= 999
    assert vp.model_time(level(0.0)).tolist() == [0.0] * 3


def test_dit_steps_are_the_vp_process_in_steps():
    """1,000 betas from 1e-4 to 2e-2 discretise beta(t) from 0.1 to 20; up to 3.4 steps apart."""
    dit, vp = objectives.get("dit"), objectives.get("vp")
    times = vp.model_time(dit.sigmas)
    assert (times - torch.arange(1000)).abs().max() < 4


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"schedule": "sigmoid"}, "unknown schedule"),
        ({"prediction": "score"}, "unknown prediction"),
        ({"beta_start": 0.0}, "betas"),
        ({"schedule": "scaled-linear", "beta_start": -1.0}, "betas"),
        ({"beta_end": 1.5}, "betas"),
        ({"trained_betas": [0.1, float("nan")]}, "betas"),
        ({"trained_betas": [0.1]}, "steps"),
        ({"steps": 10**12}, "steps"),
    ],
)
def test_what_is_no_noise_schedule(settings, complaint):
    with pytest.raises(UsageError, match=complaint):
        objectives.ddpm("mine", **settings)


def test_loss_is_the_mean_over_one_sample():
    losses = per_sample_loss(X, NOISE)
    for i in range(3):
        assert float(losses[i]) == pytest.approx(float(((X[i] - NOISE[i]) ** 2).mean()))


@pytest.mark.parametrize(
    "name",
    [
        "rectified",
        "ddpm",
        "ddpm:linear",
        "ddpm:cosine:score",
        "sit:v",
        "ddpm:sigmoid:v",
        "",
        "sit:gvp",
        "sit:gvp:eps",
        "sit:cosine:noise",
        "dit:gvp:noise",
        "sit:gvp:noise:x",
        "meanflow:gvp:noise",
        "jit:",
        "jit:0",
        "jit:nan",
        "jit:1e9",
        "jit:2:0",
        "jit:2:0.05:1",
    ],
)
def test_unknown_objective(name):
    with pytest.raises(UsageError, match=repr(name)) as caught:
        objectives.get(name)
    for word in (
        "sit",
        "uvit",
        "vp",
        "ddpm:SCHEDULE:PREDICTION",
        "cosine",
        "x0",
        "PATH",
        "gvp",
        "score",
        "meanflow",
        "jit:2",
    ):
        assert word in caught.value.hint


@pytest.mark.parametrize(
    ("name", "scale", "floor"), [("jit", 1, 0.05), ("jit:2", 2, 0.05), ("jit:0.5:0.2", 0.5, 0.2)]
)
def test_jit_s_loss_is_that_of_the_velocity(name, scale, floor):
    """arXiv 2511.13720, table 1: x is predicted, v is what the loss compares."""
    o = objectives.get(name)
    assert o == objectives.jit(scale, floor)
    for t in (0.0, 0.3, 0.8, 0.97, 1.0):
        s, z = level(1 - t), t * X + (1 - t) * scale * NOISE
        torch.testing.assert_close(o.interpolate(X, NOISE, s), z)
        torch.testing.assert_close(o.model_time(s), level(t))
        output, rest = torch.sin(7 * X), max(1 - t, floor)
        wanted = (((X - z) / rest - (output - z) / rest) ** 2).mean((1, 2, 3))
        torch.testing.assert_close(o.loss(output, X, NOISE, s), wanted)
    assert torch.equal(o.start(NOISE), scale * NOISE)


@pytest.mark.parametrize("name", EVERY)
def test_every_candidate_can_be_asked_for(name):
    assumed = objectives.get(name)
    assert assumed.name == name
    found = objectives.candidates(assumed)
    assert {"sit", "repa", "dit", name} <= set(found)
    others = 5 * (name in EVERY_FLOW) + 2 * (name in EVERY_DDPM) + 6 * (name == EVERY[-1])
    edm = {"edm"} if not name.startswith("ddpm") else set()
    assert len(found) == len({"sit", "repa", "dit", name} | edm) + others
    for other, o in found.items():
        assert o.name == other and objectives.get(other) == o
        if isinstance(o, DDPM):
            assert torch.equal(objectives.get(other).alpha_bar, o.alpha_bar)


class Oracle(torch.nn.Module):
    """Predicts perfectly for one data point under one convention."""

    def __init__(self, name, x):
        super().__init__()
        self.objective, self.x = objectives.get(name), x
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def level(self, t):
        """The noise level of the model's own time."""
        if isinstance(self.objective, DDPM):
            step = t.long() - self.objective.first
            return self.objective.sigmas[step.clamp(0, 999)]
        if isinstance(self.objective, VPSDE):
            t = t.double() / 999
            return torch.sqrt(-torch.expm1(-(0.1 * t + 19.9 * t**2 / 2)))
        if isinstance(self.objective, EDM):
            sigma = torch.exp(4 * t.double())
            return sigma / torch.sqrt(sigma**2 + 0.25)
        unit = self.objective.scale
        return self.objective.model_time(t / unit) / unit  # its own inverse

    def forward(self, x_s, t, y, r=None):
        s = self.level(t)
        alpha, sigma = (column(v, x_s) for v in self.objective.alpha_sigma(s))
        noise = (x_s - alpha * self.x) / sigma.clamp(min=1e-3)
        if r is not None:
            x_r = self.objective.interpolate(self.x, noise, self.level(r))
            return (x_s - x_r) / column(t - r, x_s)
        return self.objective.target(self.x.expand_as(x_s), noise, s)


@pytest.mark.parametrize("name", EVERY)
def test_euler_steps_reach_the_data(name):
    x = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    o = objectives.get(name)
    drawn = samplers.draw(Oracle(name, x), o, torch.zeros(2, dtype=torch.long), (1, 4, 4), seed=0)
    # DDPM's cleanest step, and where a path must keep off its end, still hold noise.
    left = float(o.alpha_sigma(o.reached(torch.zeros(1)))[1][0])
    if name.startswith("jit"):  # the last of 25 steps goes from 0.04 by 0.04 / 0.05 of the way,
        left = 0.04 * (1 - 0.04 / 0.05) * (o.noise_scale + 1)  # which leads from noise to data
    torch.testing.assert_close(drawn, x.expand(2, -1, -1, -1), rtol=0, atol=1e-3 + 4 * left)


ASSUMED = ["repa:gvp:noise", "sit:vp:score", "sit", "repa", "dit", "uvit", "vp", "edm",
           "ddpm:cosine:v"]  # fmt: skip
WRONG = [
    *((true, assumed) for true in ("sit", "repa", "dit") for assumed in ASSUMED),
    *(("edm", assumed) for assumed in ASSUMED if assumed != "ddpm:cosine:v"),
    ("dit:v", "dit"), ("dit:x0", "dit"), ("dit:eps", "dit:v"), ("uvit:v", "uvit"),
    ("sit:gvp:noise", "repa:gvp:noise"), ("sit:vp:velocity", "sit:vp:score"),
    ("ddpm:cosine:eps", "ddpm:cosine:v"), ("ddpm:cosine:v", "ddpm:cosine:x0"),
]  # fmt: skip


@pytest.fixture(params=[False, True], ids=["in memory", "in files"])
def stored(request, monkeypatch):
    """Weights that lie in memory, or in files: of these fewer levels are compared, at once."""
    if request.param:
        monkeypatch.setattr("dar_probe.models.offload.stored", lambda model: {"some": X})


@pytest.mark.parametrize("true, assumed", WRONG)
def test_a_wrong_clock_is_found(true, assumed, stored):
    sentence = judged(true, assumed)
    if true == assumed:
        assert sentence is None
    else:
        assert "--objective" in sentence
        named = sentence.rpartition("--objective ")[2].removesuffix(".")
        assert (
            objectives.get(named)
            .target(X, NOISE, level(0.5))
            .equal(objectives.get(true).target(X, NOISE, level(0.5)))
        )
        assert named == true or {named, true} == {"dit", "dit:eps"}  # one and the same


@pytest.mark.parametrize("name", EVERY)
def test_the_right_clock_is_not_doubted(name, stored):
    assert judged(name, name) is None


def judged(true, assumed):
    data, _ = tiny.problem(tiny.model(), samples=1)
    problem = Denoising(
        objectives.get(assumed), data, seed=0, device=torch.device("cpu"), dtype=torch.float32
    )
    return contradiction(Oracle(true, data.latents), problem, data, seed=0)


def test_an_untrained_model_contradicts_nothing():
    model = tiny.model(dtype=torch.float32)
    for parameter in model.final_layer.parameters():
        torch.nn.init.zeros_(parameter)
    data, problem = tiny.problem(model, samples=8, dtype=torch.float32)
    assert contradiction(model, problem, data, seed=0) is None
