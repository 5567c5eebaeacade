"""What one optimiser step costs beside the residual model's, with nothing else going on."""

from pathlib import Path
from typing import Any

import torch

from dar_probe.models import inspection
from dar_probe.probe import bench
from dar_probe.study.plan import PlannedRun
from dar_probe.training import loop


def measure(run: PlannedRun, device: str) -> dict[str, Any]:
    """Return ``parameters``, ``flops`` and ``cost`` of a record, and ``machine``.

    The trainer's own steps are timed (batch, forward, backward, AdamW, average), those of the run
    and of its reference in turn, on models that are thrown away.
    """
    own, twin = (
        loop.Run(config, Path("never written"), device=device)
        for config in (run.config, run.reference)
    )
    timings = bench.compare(
        {"reference": lambda: _step(twin), "own": lambda: _step(own)},
        repeats=run.scale.rounds,
        device=torch.device(device),
    )
    mine, theirs = timings["own"], timings["reference"]
    model, sizes = own.model, own.model_config
    counted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    inputs = (
        torch.zeros(1, sizes.in_channels, sizes.input_size, sizes.input_size, device="meta"),
        torch.zeros(1, device="meta"),
        torch.zeros(1, dtype=torch.long, device="meta"),
    )
    parameters = sum(p.numel() for name, p in counted.items() if "projectors" not in name)
    flops, _ = inspection.count_flops(
        model, inputs, {}
    )  # which leaves the model without its weights
    return {
        "machine": bench.machine(torch.device(device)),
        "parameters": parameters,
        "flops": flops,
        "cost": {
            "seconds": mine.seconds,
            "reference_seconds": theirs.seconds,
            "ratio": mine.ratio,
            "low": mine.low,
            "high": mine.high,
            "peak_bytes": mine.peak_bytes,
            "reference_peak_bytes": theirs.peak_bytes,
        },
    }


def _step(trained: loop.Run) -> None:
    trained.step(1)
    # The profiler complains about memory that is freed within and was there before.
    trained.optimiser.zero_grad(set_to_none=True)
