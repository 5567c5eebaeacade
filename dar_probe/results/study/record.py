"""A finished run as one small JSON file: what was trained, at what price, and what came out."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dar_probe.errors import CheckpointError
from dar_probe.files.atomic import write_text
from dar_probe.results.symptoms import CHOICES, SYMPTOMS

FORMAT = "dar-probe-run-1"
LIMIT = 2**20  # bytes; a record has about 10,000
NUMBER: Any = (int, float)
INTERVAL = {"value": (NUMBER, None), "low": (NUMBER, None), "high": (NUMBER, None)}
BLOCKS = tuple(symptom.variable for symptom in SYMPTOMS.values())
NUMBERS = (*SYMPTOMS, *CHOICES)  # what is kept of the start and of the end of a run
MEASURES = ("frechet", "kernel", "precision", "recall")
NUMBERS_FORM = dict.fromkeys(NUMBERS, INTERVAL)
# A dict has just these keys, [form] is a list, (form, None) may be null, dict and list are free.
FORM: dict[str, Any] = {
    "format": str,
    "version": str,
    "scale": str,
    "name": str,
    "label": str,
    "group": str,
    "seed": int,
    "config": dict,
    "machine": dict,
    "parameters": int,
    "flops": (int, None),
    "cost": {
        "seconds": NUMBER,
        "reference_seconds": NUMBER,
        "ratio": NUMBER,
        "low": NUMBER,
        "high": NUMBER,
        "peak_bytes": int,
        "reference_peak_bytes": int,
    },
    "steps": [int],
    "losses": [NUMBER],
    "quality": [{"step": int, "samples": int, **dict.fromkeys(MEASURES, NUMBER)}],
    "start": NUMBERS_FORM,
    "end": NUMBERS_FORM,
    "routes": [[(NUMBER, None)]],
    "blocks": dict.fromkeys(BLOCKS, [(NUMBER, None)]),
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one run left.

    Attributes:
        version, scale, name, label, group, seed, config: what was asked for, and of which version.
        machine: as ``bench.machine`` tells it.
        parameters: trained ones, of the model without projectors.
        flops: of matrix products in the forward of one sample, None where they are not countable.
        cost: of one optimiser step beside the residual model's, in interleaved rounds: median
            seconds of both, the ratio with its quartiles, and the high water of tensor bytes.
        steps, losses: validation loss of the average along the run.
        quality: Fréchet distance and so on, along the run; empty where nothing judges samples.
        start, end: the symptoms before the first and after the last step, with 95 % intervals
            over samples; null where they cannot be measured.
        routes: per reader 1..L+1 the route of every earlier source at the end, mean over samples
            and noise levels, null where it is not on offer; empty where routes are no scalars.
        blocks: the variables of the symptoms over blocks 1..B at the end.
    """

    version: str
    scale: str
    name: str
    label: str
    group: str
    seed: int
    config: dict[str, Any]
    machine: dict[str, Any]
    parameters: int
    flops: int | None
    cost: dict[str, Any]
    steps: list[int]
    losses: list[float]
    quality: list[dict[str, Any]]
    start: dict[str, dict[str, float | None]]
    end: dict[str, dict[str, float | None]]
    routes: list[list[float | None]]
    blocks: dict[str, list[float | None]]

    def write(self, path: Path) -> None:
        """Write the record; a reader never meets half of it."""
        found = {"format": FORMAT, **asdict(self)}
        write_text(path, json.dumps(found, indent=1, allow_nan=False) + "\n")


def read(path: Path) -> Record:
    """Return the record in a file.

    Raises:
        CheckpointError: it cannot be read, or is no record of this version.
    """
    shown = repr(path.name)
    try:
        with path.open("rb") as file:
            raw = file.read(LIMIT + 1)
        if len(raw) > LIMIT:
            raise ValueError("it is too large")
        found = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
        wrong = misfit(found, FORM)
        if not wrong and found["format"] != FORMAT:
            wrong = f"its format is {found['format'][:40]!r}, not {FORMAT!r}"
        if not wrong and not _runs_along(found):
            wrong = "its lists have not one length"
    except (OSError, ValueError, RecursionError) as error:
        wrong = type(error).__name__ if isinstance(error, RecursionError) else str(error)
    if wrong:
        raise CheckpointError(
            f"{shown} is no finished run: {wrong}",
            hint="remove it, and the run is done again",
        )
    del found["format"]
    return Record(**found)


def misfit(value: Any, form: Any, where: str = "it") -> str:
    """Say what in ``value`` is not as ``form`` wants it; empty where all is."""
    if isinstance(form, tuple) and form[-1] is None:
        return "" if value is None else misfit(value, form[0], where)
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{where} is no list"
        return next(filter(None, (misfit(item, form[0], where) for item in value)), "")
    if isinstance(form, dict):
        if not isinstance(value, dict) or set(value) != set(form):
            return f"{where} has not the keys {', '.join(form)}"
        return next(filter(None, (misfit(value[key], form[key], key) for key in form)), "")
    if isinstance(value, bool) or not isinstance(value, form):
        return f"{where} has the wrong type"
    if form is NUMBER and not math.isfinite(value):  # 1e999 is infinite, a long integer is not
        return f"{where} is not finite"
    return ""


def _runs_along(found: dict[str, Any]) -> bool:
    """Tell whether steps rise from above 0, with a loss each, and blocks are equally many."""
    steps, blocks, routes = found["steps"], found["blocks"], found["routes"]
    rising = all(a < b for a, b in zip([0, *steps], steps, strict=False))
    return (
        bool(steps)
        and rising
        and len(steps) == len(found["losses"])
        and len({len(values) for values in blocks.values()}) == 1
        and [len(row) for row in routes] == [*range(1, len(routes) + 1)]
        and found["cost"]["ratio"] > 0
    )


def _no_number(text: str) -> float:
    raise ValueError(f"{text} stands in it")
