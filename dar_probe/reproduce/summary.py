"""A study in a few sentences, and in plain data."""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from dar_probe.reproduce.claims import Claim, chunk_of, final_loss, judge, sooner, told
from dar_probe.reproduce.results import Line, Results, optimal_chunk
from dar_probe.train.quality import Interval


def sentences(results: Results) -> list[str]:
    """Return what the study found, one sentence each; nothing where the runs are missing."""
    found = []
    residual, main = results.get("residual"), results.main
    if residual is None:
        return []
    found.append(
        f"Lowest validation loss after {residual.steps:,} steps: "
        + _least(results, residual, lambda line: line.loss, 4)
    )
    if math.isfinite(residual.frechet.value):
        found.append(
            "Lowest Fréchet distance: " + _least(results, residual, lambda line: line.frechet, 3)
        )
    dars = [line for line in main if line.name.startswith("dar-") and line.pairs]
    if dars:
        found.append(
            "Residual's final loss: " + "; ".join(map(sooner, dars)) + " (the paper: 8.75x)."
        )
        found.append(
            "A step of "
            + ", ".join(f"{line.label} takes {line.ratio:.2f}x" for line in dars)
            + " of the residual step; at equal time the losses are "
            + ", ".join(f"{line.label} {told(line.at_equal_time, 4)}" for line in dars)
            + f" and residual {told(residual.loss, 4)}."
        )
    found += _moved(results)
    if sized := results.sized:
        least = min(sized, key=lambda line: line.loss.value)
        depth = int(residual.records[0].config["depth"])
        low, high = optimal_chunk(2 * depth, 0.6), optimal_chunk(2 * depth, 0.4)
        found.append(
            f"Best chunk size: S = {chunk_of(least)} of {sorted(map(chunk_of, sized))}; the "
            f"paper's cost model says {low:.1f} to {high:.1f}."
        )
    return found


def _least(results: Results, residual: Line, value: Callable[[Line], Interval], digits: int) -> str:
    """Name the least of the schemes, the least of those with several seeds, and residual."""
    named = []
    for lines in (results.of("schemes"), results.main):
        known = [line for line in lines if math.isfinite(value(line).value)]
        best = min(known, key=lambda line: value(line).value)
        if best not in named:
            named.append(best)
    if residual not in named:
        named.append(residual)
    return "; ".join(f"{line.label} {told(value(line), digits)}" for line in named) + "."


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
    return [f"What moves the loss of {base.label}: {'; '.join(parts)} (one seed)."] * bool(parts)


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


def _line(line: Line) -> dict[str, Any]:
    first = line.records[0]
    return {
        "name": line.name,
        "label": line.label,
        "group": line.group,
        "seeds": line.seeds,
        "steps": line.steps,
        "loss": _interval(line.loss),
        "frechet": _interval(line.frechet),
        "loss_at_equal_time": _interval(line.at_equal_time),
        "times_fewer_steps": [factor or None for factor in line.factors],
        "step_ratio": line.ratio,
        "memory_ratio": line.memory,
        "parameters": first.parameters,
        "flops": first.flops,
    }


def _interval(found: Interval) -> dict[str, float | None]:
    return {
        key: value if math.isfinite(value) else None
        for key, value in (("value", found.value), ("low", found.low), ("high", found.high))
    }
