"""A study in a few sentences, and in plain data."""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from dar_probe.results.intervals import numbers
from dar_probe.results.study.aggregate import Results, SchemeResult, optimal_chunk
from dar_probe.results.study.claims import (
    Claim,
    apart,
    chunk_of,
    final_frechet,
    final_loss,
    judge,
    sooner,
    time_gain,
    verdict_of,
)
from dar_probe.results.study.record import Record


def sentences(results: Results) -> list[str]:
    """Return what the study found, one sentence each; nothing where the runs are missing."""
    residual, main = results.get("residual"), results.main
    if residual is None:
        return []
    found = [
        f"Validation loss after {residual.steps:,} steps: residual {verdict_of(residual.loss, 4)}"
        + _against(results, final_loss)
    ]
    if math.isfinite(residual.frechet.value):
        found.append(
            f"Fréchet distance: residual {verdict_of(residual.frechet)}"
            + _against(results, final_frechet)
        )
    dars = [line for line in main if line.name.startswith("dar-") and line.pairs]
    if dars:
        found.append(
            "Residual's final loss: " + "; ".join(map(sooner, dars)) + " (the paper: 8.75x)."
        )
        found.append(
            "A step of "
            + ", ".join(f"{line.label} takes {line.ratio:.2f}x" for line in dars)
            + " of the residual step; at equal time the loss is "
            + ", ".join(f"{apart(time_gain(line))} with {line.label}" for line in dars)
            + "."
        )
    found += _moved(results)
    for group, where in (("repa", "With REPA"), ("deep", "At 28 blocks")):
        held = [line for line in results.of(group) if line.pairs and not line.is_reference]
        if held:
            parts = "; ".join(f"{line.label} {apart(line.gain(final_loss))}" for line in held)
            found.append(f"{where}, loss against residual's: {parts}.")
    if len(sized := results.varied("chunks")) > 1:
        least = min(sized, key=lambda line: line.loss.value)
        depth = int(residual.records[0].config["depth"])
        low, high = optimal_chunk(2 * depth, 0.6), optimal_chunk(2 * depth, 0.4)
        found.append(
            f"Best chunk size: S = {chunk_of(least)} of {sorted(map(chunk_of, sized))}; the "
            f"paper's cost model says {low:.1f} to {high:.1f}."
        )
    return found


def _against(results: Results, value: Callable[[Record], float]) -> str:
    """Say how the best scheme, the best of those with several seeds, and each DAR differ."""
    lines = [line for line in results.of("schemes") if line.pairs and not line.is_reference]
    gains = {line.name: line.gain(value) for line in lines}
    known = [line for line in lines if math.isfinite(gains[line.name].value)]
    main = [line for line in known if line in results.main]
    best = [max(pool, key=lambda line: gains[line.name].value) for pool in (known, main) if pool]
    named = [*best, *(line for line in main if line.name.startswith("dar-"))]
    parts = dict.fromkeys(f"; {line.label} {apart(gains[line.name])}" for line in named)
    return "".join(parts) + "."


def _moved(results: Results) -> list[str]:
    """Say what each setting alone changes in the loss of DAR static+t, in the first seed."""
    base = results.get("dar-static+t")
    if base is None:
        return []
    first = base.records[0]
    parts = [
        f"{line.label.removeprefix(f'{base.label}, ')} "
        f"{final_loss(line.records[0]) - final_loss(first):+.4f}"
        for line in (*results.of("chunks"), *results.of("ablations"))
        if line.name.startswith(f"{base.name}-") and line.records[0].seed == first.seed
    ]
    return [f"What moves the loss of {base.label}: {'; '.join(parts)} (one seed)."] if parts else []


def plain(results: Results) -> dict[str, Any]:
    """Return the study as plain data, None where a number is not known."""
    claims: list[Claim] = judge(results)
    return {
        "scale": results.scale,
        "runs": len(results.records),
        "sentences": sentences(results),
        "claims": [asdict(claim) for claim in claims],
        "lines": [_line(line) for line in results.lines.values()],
    }


def _line(line: SchemeResult) -> dict[str, Any]:
    first = line.records[0]
    return {
        "name": line.name,
        "label": line.label,
        "group": line.group,
        "seeds": line.seeds,
        "steps": line.steps,
        "loss": numbers(line.loss),
        "loss_difference": None if line.is_reference else numbers(-line.gain(final_loss)),
        "frechet": numbers(line.frechet),
        "loss_at_equal_time": numbers(line.at_equal_time),
        "times_fewer_steps": [factor or None for factor in line.factors],
        "step_ratio": line.ratio,
        "memory_ratio": line.memory,
        "parameters": first.parameters,
        "flops": first.flops,
    }
