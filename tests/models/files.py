"""Small files of every family, as its official trainer or release stores them, and their data."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from tests.hostile import builders
from tests.models import (
    check,
    test_ddt,
    test_ditmoe,
    test_fit,
    test_jit,
    test_latte,
    test_lightningdit,
    test_maskdit,
    test_mdt,
    test_meanflow,
    test_opensora,
    test_rae,
    test_udit,
    test_uvit,
)

SAMPLES = 4
SMALL = {"depth": 3, "width": 16, "size": 8, "rows": 11}
DAR = {"routing": "dar", "query": "dynamic", "chunk_size": 2}
HEADS = 2


@dataclass(frozen=True, kw_only=True)
class File:
    """One file on disk.

    Attributes:
        path: of the file.
        family: that it must be taken for.
        clock: a name of ``CLOCKS``.
        heads: what the user must say.
        latents: (SAMPLES, C, h, w) and labels (SAMPLES,) that fit, in float64 and as a file.
    """

    path: Path
    family: str
    clock: str
    heads: int | None
    latents: torch.Tensor
    labels: torch.Tensor

    @property
    def data(self):
        return f"latents:{self.path.parent / 'data.npz'}"

    @property
    def words(self):
        """What a person types after the command."""
        heads = ["--heads", str(self.heads)] if self.heads else []
        return [str(self.path), "--data", self.data, *heads]


def plain(**sizes):
    return check.random_state(builders.official_shapes(**{**SMALL, **sizes}))


def repa_e():
    """REPA's names and a batch norm of latents that are far from mean 0 and variance 1."""
    state = plain(projectors=(5,))
    state["bn.running_mean"] = torch.tensor([-1.5, 0.25, 0.0, 3.0], dtype=torch.float64)
    state["bn.running_var"] = torch.tensor([30.0, 0.01, 1.0, 9.0], dtype=torch.float64)
    return {**state, "bn.num_batches_tracked": torch.tensor(400_000)}


def routed():
    shapes = builders.official_shapes(**SMALL)
    for row in range(2 * SMALL["depth"] + 1):
        shapes[f"stream.readers.{row}.norm.weight"] = (SMALL["width"],)
        shapes[f"stream.readers.{row}.query.weight"] = (SMALL["width"],) * 2
    return check.random_state(shapes)


def lightningdit(flags):
    return test_lightningdit.file(flags)


def settings(**model):
    return {
        "data": {"image_size": 256, "num_classes": test_lightningdit.ROWS - 1},
        "model": {"model_type": "LightningDiT-B/2", **model},
        "transport": {"path_type": "Linear", "prediction": "velocity"},
    }


SIT = argparse.Namespace(
    model="SiT-S/2", num_classes=10, path_type="Linear", prediction="velocity", cfg_scale=4.0
)
REPA = argparse.Namespace(
    model="SiT-B/2", num_classes=10, cfg_prob=0.1, path_type="linear", prediction="v"
)
UDIT = {"model": "U-DiT-S", "num_classes": test_udit.ROWS - 1, **test_udit.OPTIONS}
OWN = {"format": "dar-probe", "objective": "repa", "num_classes": 10, "heads": HEADS, **DAR}
# state, what lies beside it (None: a flat file), family, clock, --heads, shape, classes
CASES = {
    "SiT": (lambda: plain(sigma=True), {"args": SIT}, "sit", "sit", HEADS, (4, 8, 8), 10),
    "DiT": (
        lambda: plain(sigma=True),
        {"args": argparse.Namespace(model="DiT-S/2", num_classes=10)},
        *("dit", "dit", HEADS, (4, 8, 8), 10),
    ),
    "REPA": (
        lambda: plain(head=8, projectors=(5, 3)),
        {"args": REPA, "steps": 400_000},
        *("repa", "repa", None, (4, 8, 8), 10),
    ),
    "REPA-E": (
        repa_e,
        {
            "args": argparse.Namespace(**vars(REPA), bn_momentum=0.1, qk_norm=False),
            "vae": {"encoder.down.0.block.0.conv1.weight": torch.zeros(4, 3, 3, 3)},
            "discriminator": {"main.0.weight": torch.zeros(4, 3, 4, 4)},
            "opt_vae": {"state": {}, "param_groups": []},
            "steps": 400_000,
        },
        *("repa", "repa", HEADS, (4, 8, 8), 10),
    ),
    "dar-probe": (routed, {"args": OWN, "step": 6}, "dar-probe", "repa", None, (4, 8, 8), 10),
    "U-ViT latent": (
        lambda: check.random_state(test_uvit.official_shapes(**test_uvit.LATENT)),
        None,
        *("uvit", "uvit", test_uvit.HEADS, (4, 4, 4), 10),
    ),
    "U-ViT pixel": (
        lambda: check.random_state(test_uvit.official_shapes(**test_uvit.PIXEL)),
        None,
        *("uvit", "vp", test_uvit.HEADS, (3, 4, 4), 1),
    ),
    "MDTv2": (
        lambda: test_mdt.official_state(test_mdt.SMALL),
        None,
        *("mdt", "dit", None, (4, 6, 6), 10),
    ),
    "LightningDiT": (
        lambda: lightningdit("swiglu rmsnorm rope qk_norm wo_shift learn_sigma"),
        {"config": settings(use_swiglu=True, wo_shift=True)},
        *("lightningdit", "sit", None, (3, 6, 6), 5),
    ),
    "LightningDiT without shifts": (
        lambda: lightningdit("wo_shift"),
        {"config": settings(wo_shift=True)},
        *("lightningdit", "sit", HEADS, (3, 6, 6), 5),
    ),
    "Latte": (
        lambda: test_latte.official_state(test_latte.SMALL),
        {},
        *("latte", "dit", test_latte.HEADS, (3, 4, 4, 4), 10),
    ),
    "Open-Sora": (
        lambda: test_opensora.official_state(test_opensora.FLOW),
        {"args": argparse.Namespace(**test_opensora.settings(test_opensora.FLOW))},
        *("opensora", "open-sora", None, test_opensora.shape_of(test_opensora.FLOW), 1),
    ),
    "FiT": (
        lambda: test_fit.official_state(test_fit.FIRST),
        None,
        *("fit", "dit", test_fit.HEADS, (4, 32, 32), 10),
    ),
    "FiTv2": (
        lambda: test_fit.official_state(test_fit.SECOND),
        None,
        *("fit", "sit", test_fit.HEADS, (3, 32, 32), 10),
    ),
    "U-DiT": (
        lambda: check.random_state(test_udit.official(depths=[1, 2, 1, 1, 1])),
        {"args": argparse.Namespace(**UDIT)},
        *("udit", "dit", None, (2, 16, 16), 5),
    ),
    "JiT": (
        lambda: check.random_state(test_jit.official_shapes(**test_jit.SMALL)),
        {"args": argparse.Namespace(**test_jit.settings(2))},
        *("jit", "jit", None, (3, 6, 6), 5),
    ),
    "MeanFlow": (
        lambda: check.random_state(test_meanflow.official_shapes()),
        {"args": argparse.Namespace(**test_meanflow.PLAIN)},
        *("meanflow", "meanflow", test_meanflow.HEADS, (3, 6, 6), test_meanflow.CLASSES),
    ),
    "DDT": (
        lambda: check.random_state(test_ddt.official()),
        {"args": argparse.Namespace(**test_ddt.OPTIONS)},
        *("ddt", "sit", None, test_ddt.SHAPE, 5),
    ),
    "DiT-DH": (
        lambda: test_rae.file("swiglu rmsnorm"),
        {"epoch": 1, "scheduler": None},
        *("rae", "rae", None, test_rae.SHAPE, 5),
    ),
    "MaskDiT": (
        lambda: test_maskdit.file(**test_maskdit.FULL),
        {"args": argparse.Namespace(config="imagenet256-latent.yaml")},
        *("maskdit", "edm", test_maskdit.HEADS, (3, 8, 8), 7),
    ),
    "DiT-MoE": (
        lambda: test_ditmoe.file(**test_ditmoe.NORMED),
        {"args": argparse.Namespace(rf=True, num_experts_per_tok=3, num_classes=5)},
        *("ditmoe", "repa", None, (3, 6, 6), 5),
    ),
}


def write(case, folder):
    """Return the file of a case with its data beside it; U-ViT's latent model is safetensors."""
    state, beside, family, clock, heads, shape, classes = CASES[case]
    weights = {k: v.float() if v.is_floating_point() else v for k, v in state().items()}
    path = folder / ("model.safetensors" if case == "U-ViT latent" else "0400000.pt")
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    elif beside is None:
        torch.save(weights, path)
    else:
        raw = {f"module.{k}": v + 1 for k, v in weights.items()}
        optimiser = {"state": {}, "param_groups": [{"lr": 1e-4}]}
        torch.save({"model": raw, "ema": weights, "opt": optimiser, **beside}, path)
    latents = np.random.default_rng(1).standard_normal((SAMPLES, *shape), dtype=np.float32)
    labels = np.arange(SAMPLES) % classes
    np.savez(folder / "data.npz", latents=latents, labels=labels)
    if case == "REPA-E":
        mean, var = (weights[f"bn.running_{n}"].numpy()[:, None, None] for n in ("mean", "var"))
        latents = (latents.astype(np.float64) - mean) / np.sqrt(var.astype(np.float64) + 1e-4)
        latents = latents.astype(np.float32)
    return File(
        path=path, family=family, clock=clock, heads=heads,
        latents=torch.from_numpy(latents).double(), labels=torch.from_numpy(labels),
    )  # fmt: skip


def sit(s):
    """Return the level that is reached, alpha, sigma and the model's time."""
    return s, 1 - s, s, 1 - s


def repa(s):
    return s, 1 - s, s, s


def open_sora(s):
    return s, 1 - s, s, 1000 * s


def steps(betas, first):
    """Discrete steps: the one whose noise level is nearest, the cleanest is called ``first``."""
    kept, levels = 1.0, []
    for beta in betas:
        kept *= 1 - beta
        levels.append((math.sqrt(1 - kept), math.sqrt(kept)))

    def clock(s):
        step = min(range(len(levels)), key=lambda k: abs(levels[k][0] - s))
        return levels[step][0], levels[step][1], levels[step][0], step + first

    return clock


def vp(s):
    """Bisect the time t at which exp(-(0.1 t + 19.9 t^2 / 2)) is what is left of the data."""
    low, high = 0.0, 1.0
    for _ in range(80):
        t = (low + high) / 2
        low, high = (t, high) if 1 - math.exp(-(0.1 * t + 9.95 * t * t)) < s * s else (low, t)
    return s, math.sqrt(1 - s * s), s, 999 * low


def edm(s):
    """The coefficients of data and noise in c_in (x + size noise), and ln(size) / 4."""
    size = s / math.sqrt(1 - s * s) / 2
    size = min(max(size, 0.002), 80)
    total = math.hypot(size, 0.5)
    return size / total, 1 / total, size / total, math.log(size) / 4


def edm_target(x, noise, alpha, sigma):
    size = sigma / alpha
    kept = 0.25 / (size**2 + 0.25)
    return (x - kept * (x + size * noise)) / (size / 2 / math.hypot(size, 0.5))


def line(low, high, count=1000):
    return [low + (high - low) * k / (count - 1) for k in range(count)]


CLOCKS = {
    "sit": sit,
    "repa": repa,
    "rae": repa,
    "open-sora": open_sora,
    "dit": steps(line(1e-4, 2e-2), 0),
    "uvit": steps([b * b for b in line(0.00085**0.5, 0.012**0.5)], 1),
    "vp": vp,
    "jit": sit,
    "meanflow": repa,
    "edm": edm,
}
TARGETS = {
    "sit": lambda x, noise, *_: x - noise,
    "open-sora": lambda x, noise, *_: x - noise,
    "repa": lambda x, noise, *_: noise - x,
    "rae": lambda x, noise, *_: noise - x,
    "meanflow": lambda x, noise, *_: noise - x,
    "jit": lambda x, noise, *_: x,
    "edm": edm_target,
}
# What the error is divided by before it is squared, where that is not one.
DIVISORS = {"jit": lambda s: max(s, 0.05)}


def problem(file, s, rows):
    """Return the level reached, the model's inputs and its loss for the first ``rows`` samples.

    Noise of sample i is drawn with the seeds (0, i), at every level alike.
    """
    level, alpha, sigma, time = CLOCKS[file.clock](s)
    x, shape = file.latents[:rows], file.latents.shape[1:]
    noise = torch.stack([
        torch.from_numpy(np.random.default_rng([0, i]).standard_normal(shape, dtype=np.float32))
        for i in range(rows)
    ]).double()  # fmt: skip
    target = TARGETS.get(file.clock, lambda x, noise, *_: noise)(x, noise, alpha, sigma)
    kind = torch.int64 if isinstance(time, int) else torch.float64
    times = torch.full((rows,), time, dtype=kind)
    inputs = alpha * x + sigma * noise, times, file.labels[:rows]
    size = DIVISORS.get(file.clock, lambda s: 1)(s)
    return level, inputs, lambda out: (((out - target) / size) ** 2).reshape(rows, -1).mean(1)
