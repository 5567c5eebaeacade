"""Records of finished runs, of numbers that are chosen here."""

import copy

from dar_probe.results.study import record
from dar_probe.results.study.record import Record
from dar_probe.training.config import TrainConfig

NUMBER = {"value": 1.5, "low": 1.0, "high": 2.0}
STEPS = [100, 200, 300, 400]


def finished(
    name="residual", seed=0, losses=(0.8, 0.6, 0.5, 0.45), ratio=1.0, frechet=2.0, **other
):
    """Return a record as a run leaves it, of numbers that are chosen here."""
    routing, _, query = name.partition("-")
    symptoms = {key: dict(NUMBER) for key in record.NUMBERS}
    fields = {
        "version": "0", "scale": "digits", "name": name, "label": name.upper(),
        "group": "schemes", "seed": seed,
        "config": TrainConfig(routing=routing, query=query or "static", steps=400).to_dict(),
        "machine": {"name": "a CPU", "device": "cpu", "threads": 1, "torch": "2"},
        "parameters": 1000, "flops": 5_000_000,
        "cost": {
            "seconds": 0.2 * ratio, "reference_seconds": 0.2, "ratio": ratio, "low": ratio,
            "high": ratio, "peak_bytes": 300, "reference_peak_bytes": 200,
        },
        "steps": list(STEPS), "losses": list(losses),
        "quality": [
            {"step": step, "samples": 8, "frechet": frechet, "kernel": 0.1, "precision": 1.0,
             "recall": 0.5}
            for step in (200, 400)
        ],
        "start": symptoms, "end": copy.deepcopy(symptoms),
        "routes": [[1.0], [0.5, 0.5], [0.25, None, 0.75]],
        "blocks": {"rms": [1.0, 2.0], "grad_rms": [1.0, 0.5], "cosine": [None, 0.9]},
    }  # fmt: skip
    return Record(**(fields | other))


def everything():
    """Return records enough for every figure and table; one of them has a hostile name."""
    evil = "</script><img src=x onerror=alert(1)>"
    dar = [finished("dar-dynamic", seed, losses=(0.9, 0.7, 0.5, 0.4)) for seed in range(3)]
    four = finished("dar-static+t", losses=(0.9, 0.7, 0.5, 0.43), label=evil)
    chunks = [
        finished(f"dar-static+t-S{size}", group="chunks",
             config={**TrainConfig(routing="dar", chunk_size=size).to_dict()})
        for size in (1, 2)
    ]  # fmt: skip
    deep = [finished(name, group="deep") for name in ("residual-28", "dar-dynamic-28")]
    plain = [finished(seed=seed) for seed in range(3)]
    bare = finished("rezero", quality=[], flops=None, end={
        key: {"value": None, "low": None, "high": None} for key in record.NUMBERS
    })  # fmt: skip
    return [*plain, *dar, four, *chunks, *deep, bare]
