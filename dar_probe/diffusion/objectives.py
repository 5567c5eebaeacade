"""Every objective by its name.

The noise level s is 0 for data and 1 for pure noise everywhere in dar-probe; only an Objective
knows which way the model's own clock runs, in which unit, and what the model predicts.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from dar_probe.diffusion.ddpm import DDPM, PREDICTIONS, SCHEDULES, VPSDE, betas, shifted
from dar_probe.diffusion.edm import EDM
from dar_probe.diffusion.flow import FLOW_PREDICTIONS, PATHS, DataFlow, Flow
from dar_probe.diffusion.objective import Objective
from dar_probe.errors import UsageError

MAX_STEPS = 100_000
MAX_NOISE = 1000.0
CLOCKS = ("sit", "repa", "meanflow")

# The same in the words of a diffusers scheduler config.
DIFFUSERS_SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled-linear",
    "squaredcos_cap_v2": "cosine",
}
DIFFUSERS_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def flow(clock: str, path: str = "linear", prediction: str = "velocity") -> Flow:
    """Return the flow of a clock ("sit", "repa", "meanflow"), a path and a prediction.

    Raises:
        UsageError: there is none.
    """
    usual = (path, prediction) == ("linear", "velocity")
    name = clock if usual else f"{clock}:{path}:{prediction}"
    known = ("velocity",) if clock == "meanflow" else FLOW_PREDICTIONS
    if clock not in CLOCKS or path not in PATHS or prediction not in known:
        raise _unknown("objective", name)
    return Flow(
        name, float(clock != "sit"), path=path, prediction=prediction, two_times=clock == "meanflow"
    )


def jit(noise_scale: float = 1.0, floor: float = 0.05) -> DataFlow:
    """Return JiT's objective for a size of the noise, and a least divisor of its velocity.

    Raises:
        UsageError: one of them makes no sense.
    """
    parts = ["jit", *(f"{value!r}".removesuffix(".0") for value in (noise_scale, floor))]
    name = ":".join(parts[: 3 if floor != 0.05 else 2 if noise_scale != 1 else 1])
    if not (0 < noise_scale <= MAX_NOISE and 0 < floor <= 1):
        raise _unknown("objective", name)
    return DataFlow(name, 0.0, noise_scale=noise_scale, floor=floor)


def ddpm(
    name: str,
    *,
    schedule: str = "linear",
    prediction: str = "eps",
    beta_start: float = 1e-4,
    beta_end: float = 2e-2,
    steps: int = 1000,
    trained_betas: Sequence[float] | None = None,
    zero_snr: bool = False,
) -> DDPM:
    """Return the objective of a model trained on discrete steps.

    ``schedule`` and ``prediction`` are also taken in diffusers' spelling. ``trained_betas``
    replace schedule, beta_start, beta_end and steps.

    Raises:
        UsageError: a name is unknown, or the betas are no noise schedule.
    """
    schedule = DIFFUSERS_SCHEDULES.get(schedule, schedule)
    prediction = DIFFUSERS_PREDICTIONS.get(prediction, prediction)
    if prediction not in PREDICTIONS:
        raise _unknown("prediction", prediction)
    if trained_betas is None and schedule not in SCHEDULES:
        raise _unknown("schedule", schedule)
    count = steps if trained_betas is None else len(trained_betas)
    if not 2 <= count <= MAX_STEPS:
        raise UsageError(f"a noise schedule has 2 to {MAX_STEPS} steps, not {count}")
    given = (beta_start, beta_end) if trained_betas is None else trained_betas
    if not all(0 < beta < 1 for beta in given):
        raise UsageError(
            "the betas of a noise schedule lie between 0 and 1, these do not",
            hint="check beta_start, beta_end and trained_betas",
        )
    if trained_betas is None:
        added = betas(schedule, beta_start, beta_end, steps)
    else:
        added = torch.tensor(trained_betas, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - added, 0)
    return DDPM(name, prediction, shifted(alpha_bar) if zero_snr else alpha_bar)


_LDM = ddpm("ddpm:scaled-linear", schedule="scaled-linear", beta_start=0.00085, beta_end=0.012)
OBJECTIVES: dict[str, Objective] = {
    "sit": flow("sit"),
    "repa": flow("repa"),
    "meanflow": flow("meanflow"),
    "jit": jit(),
    # 4096 numbers: 4 x 32 x 32, the latents of SiT and DiT.
    "rae": replace(flow("repa"), name="rae", base=4096),
    # 4 x 64 x 64: latents of one frame of 512 x 512 pixels.
    "open-sora": replace(flow("repa"), name="open-sora", scale=1000.0, backward=True, base=16384),
    "dit": ddpm("dit"),
    "uvit": replace(_LDM, name="uvit", first=1),
    "vp": VPSDE("vp", prediction="eps"),
    "edm": EDM("edm"),
}
# Of ports to JAX: kvfrans's jax-flow and jax-diffusion-transformer.
PORTS: dict[str, Objective] = {
    "jax-flow": replace(flow("sit"), name="jax-flow", scale=10_000.0),
    "jax-dit": ddpm("jax-dit", beta_start=2e-4, beta_end=4e-2, steps=500),
}
# To be named together with a prediction.
_STEPS = {
    **{name: o for name, o in (OBJECTIVES | PORTS).items() if isinstance(o, DDPM)},
    "ddpm:linear": ddpm("ddpm:linear"),
    "ddpm:scaled-linear": _LDM,
    "ddpm:cosine": ddpm("ddpm:cosine", schedule="cosine"),
}


def get(name: str) -> Objective:
    """Return the objective called ``name``.

    That is one of ``OBJECTIVES`` or ``PORTS``; "sit:PATH:PREDICTION" and "repa:PATH:PREDICTION",
    see ``Flow``; "meanflow:PATH:velocity"; "jit:NOISE_SCALE" and "jit:NOISE_SCALE:FLOOR", see
    ``DataFlow``; "ddpm:SCHEDULE:PREDICTION", with DiT's betas for linear and Stable Diffusion's for
    scaled-linear; or "dit:PREDICTION" and "uvit:PREDICTION".

    Raises:
        UsageError: there is none.
    """
    if name in OBJECTIVES or name in PORTS:
        return (OBJECTIVES | PORTS)[name]
    clock, *rest = name.split(":")
    if clock in CLOCKS and len(rest) == 2:
        return replace(flow(clock, *rest), name=name)
    if clock == "jit" and len(rest) <= 2:
        try:
            return replace(jit(*map(float, rest)), name=name)
        except ValueError:
            raise _unknown("objective", name) from None
    steps, _, prediction = name.rpartition(":")
    if steps not in _STEPS or prediction not in PREDICTIONS:
        raise _unknown("objective", name)
    return replace(_STEPS[steps], name=name, prediction=prediction)


def candidates(assumed: Objective) -> dict[str, Objective]:
    """Return the conventions, by name, that a model assumed to follow ``assumed`` may really have.

    EDM is among them unless a scheduler or the user named the noise schedule.
    Where that is a DDPM, its other predictions on the same steps are among them; where it is a flow
    with a clock in other units, the same with time running the other way; where it is a flow with a
    path and a prediction of its own, all predictions on that path in both directions of time.
    """
    found = {name: OBJECTIVES[name] for name in ("sit", "repa", "dit")}
    found[assumed.name] = assumed
    if assumed.name.partition(":")[0] in OBJECTIVES:
        found["edm"] = OBJECTIVES["edm"]
    if assumed.name in PORTS:  # their files look alike
        found |= PORTS
    elif isinstance(assumed, Flow) and assumed.scale != 1 and assumed.name not in OBJECTIVES:
        name = f"{assumed.name}:reversed"
        found[name] = replace(assumed, name=name, noise_time=1 - assumed.noise_time)
    if isinstance(assumed, Flow) and assumed.name.count(":") == 2:
        names = (f"{c}:{assumed.path}:{p}" for c in ("sit", "repa") for p in FLOW_PREDICTIONS)
        found |= {name: get(name) for name in names}
    if isinstance(assumed, DDPM):
        base = assumed.name.removesuffix(f":{assumed.prediction}")
        others = (p for p in PREDICTIONS if p != assumed.prediction)
        found |= {f"{base}:{p}": replace(assumed, name=f"{base}:{p}", prediction=p) for p in others}
    return found


def _unknown(what: str, name: str) -> UsageError:
    return UsageError(
        f"unknown {what} {name!r}",
        hint=f"known: {', '.join(OBJECTIVES | PORTS)}; ddpm:SCHEDULE:PREDICTION with a schedule of "
        f"{', '.join(SCHEDULES)} and a prediction of {', '.join(PREDICTIONS)}; "
        f"sit:PATH:PREDICTION and repa:PATH:PREDICTION with a path of {', '.join(PATHS)} and a "
        f"prediction of {', '.join(FLOW_PREDICTIONS)}; jit:NOISE_SCALE or jit:NOISE_SCALE:LEAST, "
        "such as jit:2",
    )
