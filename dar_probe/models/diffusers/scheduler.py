"""Which objective a diffusers transformer was trained on: its clock and what it predicts.

Clocks and signs of flow models are those of diffusers' own pipelines (0.42.1); what a scheduler
was saved with comes before any table.
"""

import math
from typing import Any

import torch
from torch import Tensor

from dar_probe.diffusion import objectives
from dar_probe.diffusion.flow import Flow
from dar_probe.diffusion.objective import Objective
from dar_probe.diffusion.objectives import DIFFUSERS_PREDICTIONS, DIFFUSERS_SCHEDULES
from dar_probe.errors import CheckpointError
from dar_probe.files.text import quote

TRAINED_STEPS = 1000
_OTHERWISE = "dar-probe audit measures it in Python, with a batch and a loss of your own"

# Time is s where diffusers divides by 1,000 before the call.
UNIT_TIME = {
    "AceStepTransformer1DModel",
    "AuraFlowTransformer2DModel",
    "BriaFibo2Transformer2DModel",
    "ChromaTransformer2DModel",
    "Flux2Transformer2DModel",
    "Flux3Transformer2DModel",
    "FluxTransformer2DModel",
    "Krea2Transformer2DModel",
    "LongCatImageTransformer2DModel",
    "NucleusMoEImageTransformer2DModel",
    "OvisImageTransformer2DModel",
    "PRXTransformer2DModel",
    "QwenImage21Transformer2DModel",
    "QwenImageTransformer2DModel",
}
# Time is 1 - s, and the velocity points from noise to data.
REVERSED_UNIT_TIME = {
    "Ideogram4Transformer2DModel",
    "Lumina2Transformer2DModel",
    "LuminaNextDiT2DModel",
    "MiniMaxMusic3Transformer1DModel",
    "OmniGenTransformer2DModel",
    "ZImageTransformer2DModel",
}
REVERSED_TIME = {"MochiTransformer3DModel"}  # 1,000 (1 - s)
# Time is 1,000 s, and of every other class that is assumed. CogView 4 and GLM-Image are not among
# them: they are told the time before the scheduler has shifted it by the image's size.
TIME = {
    "BriaFiboTransformer2DModel",
    "BriaTransformer2DModel",
    "ChronoEditTransformer3DModel",
    "EasyAnimateTransformer3DModel",
    "ErnieImageTransformer2DModel",
    "HiDreamImageTransformer2DModel",
    "HunyuanImageTransformer2DModel",
    "HunyuanVideo15Transformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "JoyImageEditTransformer3DModel",
    "Kandinsky5Transformer3DModel",
    "LTXVideoTransformer3DModel",
    "MotifVideoTransformer3DModel",
    "SD3Transformer2DModel",
    "SanaTransformer2DModel",
    "SanaVideoTransformer3DModel",
    "SkyReelsV2Transformer3DModel",
    "WanTransformer3DModel",
    "WanVACETransformer3DModel",
}

# Noise schedules of the released models, for folders without a scheduler.
USUAL_DDPM: dict[str, dict[str, Any]] = {
    "DiTTransformer2DModel": {"beta_schedule": "linear"},
    "LatteTransformer3DModel": {"beta_schedule": "linear"},
    "PixArtTransformer2DModel": {"beta_schedule": "linear"},
    "HunyuanDiT2DModel": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.03,
        "prediction_type": "v_prediction",
    },
    "CogVideoXTransformer3DModel": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "snr_shift_scale": 3.0,
    },
    "CogView3PlusTransformer2DModel": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "snr_shift_scale": 4.0,
    },
}


def choose(
    class_name: str, config: dict[str, Any], scheduler: dict[str, Any] | None
) -> tuple[Objective, list[str]]:
    """Return the objective, and one sentence for each thing that was assumed about it.

    Args:
        class_name: of the transformer.
        config: its settings.
        scheduler: the settings of its scheduler, None where there is none.

    Raises:
        CheckpointError: the scheduler belongs to neither a flow nor discrete steps.
    """
    if scheduler is None:
        found, assumed = of_class(class_name, config)
        said = f"there is no scheduler: the objective is {found.name!r}"
        return found, [said, *assumed] if assumed else [f"{said}, usual for {class_name}"]
    name = str(scheduler.get("_class_name"))
    prediction = scheduler.get("prediction_type")
    if name.startswith("FlowMatch") or prediction == "flow_prediction":
        return _flow(class_name, config, scheduler), _unknown_clock(class_name)
    if "beta_schedule" in scheduler or scheduler.get("trained_betas"):
        return _ddpm(scheduler), []
    raise CheckpointError(
        f"the scheduler {quote(name)} belongs to neither a flow nor a model of discrete steps",
        hint=_OTHERWISE,
    )


def of_class(class_name: str, config: dict[str, Any]) -> tuple[Objective, list[str]]:
    """Return the objective of a class as it was released, and what is assumed about its clock."""
    usual = USUAL_DDPM.get(class_name)
    if usual is not None:
        return _ddpm(usual), []
    return _flow(class_name, config, {}), _unknown_clock(class_name)


def _unknown_clock(class_name: str) -> list[str]:
    if class_name in TIME | UNIT_TIME | REVERSED_TIME | REVERSED_UNIT_TIME:
        return []
    return [f"the clock of {class_name} is not known: 0 for data, 1,000 for noise is assumed"]


def reversed_flow(scheduler: dict[str, Any] | None) -> bool:
    """Tell whether a scheduler's own time runs from 0 at pure noise to the data."""
    return bool(scheduler and scheduler.get("invert_sigmas"))


def trained_steps(scheduler: dict[str, Any] | None) -> int:
    """Return the number of steps that a scheduler's time counts."""
    steps = (scheduler or {}).get("num_train_timesteps", TRAINED_STEPS)
    if not isinstance(steps, int) or not 1 <= steps <= 1_000_000:
        raise CheckpointError(f"a scheduler of {quote(steps)} steps cannot be right")
    return steps


def _flow(class_name: str, config: dict[str, Any], scheduler: dict[str, Any]) -> Objective:
    """Return the straight path from data to noise, with the clock of ``class_name``."""
    reverse = class_name in REVERSED_UNIT_TIME | REVERSED_TIME or reversed_flow(scheduler)
    scale = 1.0
    if class_name not in UNIT_TIME | REVERSED_UNIT_TIME:
        # Sana-Sprint and its kin count differently from other Sanas.
        own = config.get("timestep_scale") or 1
        scale = trained_steps(scheduler) * float(own)
        if not (math.isfinite(scale) and scale > 0):
            raise CheckpointError(f"a timestep_scale of {quote(own)} cannot be right")
    time = f"{scale:g}" if scale != 1 else ""
    time += "(1-s)" if reverse else "s"
    return Flow(f"flow:t={time}", noise_time=0.0 if reverse else 1.0, scale=scale)


def _ddpm(scheduler: dict[str, Any]) -> Objective:
    """Return the discrete steps that a scheduler's settings describe."""
    schedule = str(scheduler.get("beta_schedule", "linear"))
    prediction = str(scheduler.get("prediction_type", "epsilon"))
    if prediction not in DIFFUSERS_PREDICTIONS:
        raise CheckpointError(
            f"no objective is known for the prediction type {quote(prediction)}", hint=_OTHERWISE
        )
    betas = scheduler.get("trained_betas")
    if betas is None and schedule not in DIFFUSERS_SCHEDULES:
        raise CheckpointError(
            f"no objective is known for the noise schedule {quote(schedule)}", hint=_OTHERWISE
        )
    settings: dict[str, Any] = {
        "schedule": DIFFUSERS_SCHEDULES.get(schedule, "linear"),
        "prediction": DIFFUSERS_PREDICTIONS[prediction],
        "beta_start": float(scheduler.get("beta_start", 1e-4)),
        "beta_end": float(scheduler.get("beta_end", 2e-2)),
        "steps": trained_steps(scheduler),
        "trained_betas": betas,
    }
    label = "trained" if betas is not None else settings["schedule"]
    name = f"ddpm:{label}:{settings['prediction']}"
    shift = scheduler.get("snr_shift_scale")
    if shift not in (None, 1, 1.0):
        settings["trained_betas"] = _shifted(objectives.ddpm(name, **settings), float(shift))
    return objectives.ddpm(
        name, **settings, zero_snr=bool(scheduler.get("rescale_betas_zero_snr", False))
    )


def _shifted(unshifted: Objective, shift: float) -> list[float]:
    """Return the betas of a schedule whose signal-to-noise ratio is divided by ``shift``.

    CogVideoX and CogView3+ do that before the ratio is made to end at zero.
    """
    sigmas: Tensor = unshifted.sigmas  # type: ignore[attr-defined]
    kept = 1 - sigmas**2
    kept = kept / (shift + (1 - shift) * kept)
    previous = torch.cat([torch.ones(1, dtype=kept.dtype), kept[:-1]])
    return [float(beta) for beta in 1 - kept / previous]
