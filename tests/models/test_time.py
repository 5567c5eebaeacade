"""The time axis of every family: noise rises, and the model's own clock runs its own way."""

import math

import numpy as np
import pytest
import torch

from dar_probe.models.options import CheckpointOptions
from dar_probe.probe import plan
from dar_probe.probe.options import GridOptions
from tests.models import files

ENDS = 1e-6, 1 - 1e-6
LEVELS = [ENDS[0], 0.2, 0.4, 0.6, 0.8, ENDS[1]]
# Model time at the two ends, and whether it counts steps.
CLOCKS = {
    "sit": (ENDS[1], ENDS[0], False),
    "repa": (*ENDS, False),
    "jit": (ENDS[1], ENDS[0], False),
    "meanflow": (*ENDS, False),
    "rae": (*ENDS, False),
    "open-sora": (1000 * ENDS[0], 1000 * ENDS[1], False),
    "dit": (0, 999, True),
    "uvit": (1, 1000, True),
    # 999 t, where sigma is nearly sqrt(beta_start t), and where t has reached 1.
    "vp": (999 * ENDS[0] ** 2 / 0.1, 999, False),
    # ln(sigma) / 4, from 0.002 to 80.
    "edm": (math.log(0.002) / 4, math.log(80) / 4, False),
}
SPREAD = {"edm": 0.5}  # of what the data are divided by


@pytest.mark.parametrize("case", files.CASES)
def test_noise_rises_and_the_clock_runs_the_family_s_own_way(case, tmp_path):
    file = files.write(case, tmp_path)
    planned = plan.of_checkpoint(
        CheckpointOptions(path=file.path, heads=file.heads, dtype="float64"),
        GridOptions(
            data=file.data, noise_levels=LEVELS, samples=files.SAMPLES, batch_size=files.SAMPLES
        ),
    )
    seen = {}

    def hook(module, args):
        if len(args[0]) == files.SAMPLES:  # one batch a level, and self-checks on parts of it
            seen.setdefault(float(args[1][0]), [arg.detach().clone() for arg in args])

    planned.subject.model.register_forward_pre_hook(hook)
    ds = planned.measure()
    first, last, whole = CLOCKS[file.clock]
    time = ds["timestep"].values
    assert (np.diff(ds["noise_level"].values) > 0).all()
    assert (np.diff(ds["log_snr"].values) < 0).all()
    assert (np.diff(time) * np.sign(last - first) > 0).all()
    np.testing.assert_allclose([time[0], time[-1]], [first, last], rtol=1e-6)
    assert not whole or (time == np.round(time)).all()
    assert len(seen) == len(LEVELS)
    inputs = [seen[key] for key in sorted(seen, reverse=last < first)]
    for (_, t, y), expected in zip(inputs, time, strict=True):
        assert t.tolist() == pytest.approx([expected] * files.SAMPLES, rel=1e-12)
        assert torch.equal(y, file.labels)
    noise = [np.random.default_rng([0, i]).standard_normal(file.latents.shape[1:], np.float32)
             for i in range(files.SAMPLES)]  # fmt: skip
    clean, noisy = SPREAD.get(file.clock, 1) * inputs[0][0].numpy(), inputs[-1][0].numpy()
    # Measured: at most 0.03 and 0.07, of the discrete steps of U-ViT; the others lie far apart.
    assert rms(clean - file.latents.numpy()) < 0.1 < 1 < rms(clean - np.stack(noise))
    assert rms(noisy - np.stack(noise)) < 0.1 < 1 < rms(noisy - file.latents.numpy())


def rms(x):
    return np.sqrt(np.square(x).mean())
