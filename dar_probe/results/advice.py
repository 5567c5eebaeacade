"""What a warning or a failure means for this model, how sure it is, and how to find out more.

Nothing is promised: a number that was measured says what it says, and whether a block can go, or
another routing helps, only an intervention or a training run tells. No torch.
"""

import math
import shlex
from dataclasses import dataclass

import numpy as np
import xarray as xr

from dar_probe.results.intervals import Estimate
from dar_probe.results.metrics import early_blocks, over_noise, profile
from dar_probe.results.schema import manifest

FEW = 16  # samples, below which a bootstrap interval is often too narrow


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to make of one finding.

    Attributes:
        meaning: two sentences, with this model's own numbers.
        certainty: how sure the finding is, in one sentence.
        commands: one or two that find out more.
    """

    meaning: str
    certainty: str
    commands: tuple[str, ...]


def advise(ds: xr.Dataset, name: str, metric: Estimate | None, limit: float) -> Advice | None:
    """Return what to make of a finding that is a warning or a failure.

    Args:
        ds: the analysis.
        name: of the finding.
        metric: its number; None where it has none.
        limit: the failure limit of a symptom.
    """
    makers = {
        "inflation": _inflation,
        "gradient_decay": _gradient_decay,
        "redundancy": _redundancy,
        "measurement": _measurement,
        "dead_blocks": _blocks,
        "idle_blocks": _blocks,
    }
    if name not in makers:
        return None
    meaning, commands = makers[name](ds)
    return Advice(meaning=meaning, certainty=_certainty(ds, metric, limit), commands=commands)


def _inflation(ds: xr.Dataset) -> tuple[str, tuple[str, ...]]:
    rms = over_noise(ds, "rms").values
    with np.errstate(divide="ignore", invalid="ignore"):
        level = _worst(ds, rms[-1] / rms[1])
    block, share = _least_written(ds)
    meaning = (
        "The stream grows over depth, so that what a deep block adds is a smaller part of it. "
        f"Block {block} adds least of the deep half, {100 * share:.2g} % of what it reads; the "
        f"growth is largest at noise level {level:.2g}."
    )
    return meaning, (_skip(ds, level), _look("write_ratio"))


def _gradient_decay(ds: xr.Dataset) -> tuple[str, tuple[str, ...]]:
    grad, block = over_noise(ds, "grad_rms").values, ds["block"].values
    early = grad[early_blocks(block)].mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        level = _worst(ds, early / np.median(grad[block > block.max() / 2], axis=0))
    deep = np.where(block > block.max() / 2, profile(ds, "grad_rms")["value"].values, np.nan)
    weakest = int(block[np.nanargmin(deep)])
    meaning = (
        "The loss reacts to early states more than to deep ones, so that early blocks get larger "
        f"gradients in training. Block {weakest} gets the smallest of the deep half; the decay is "
        f"largest at noise level {level:.2g}."
    )
    return meaning, (_look("grad_rms"), _skip(ds, level))


def _redundancy(ds: xr.Dataset) -> tuple[str, tuple[str, ...]]:
    cosine, block = over_noise(ds, "cosine").values, ds["block"].values
    deep = block > block.max() / 2
    level = _worst(ds, cosine[deep].mean(axis=0))
    pooled = np.where(deep, profile(ds, "cosine")["value"].values, np.nan)
    at = int(np.nanargmax(pooled))
    meaning = (
        f"Deep blocks turn the state little: block {block[at]} least, cosine {pooled[at]:.4f}, and "
        f"all of them least at noise level {level:.2g}. That does not say that a block can go: "
        "small turns may matter to the loss, which only skipping a block tells."
    )
    return meaning, (_skip(ds, level), _look("cosine"))


def _measurement(ds: xr.Dataset) -> tuple[str, tuple[str, ...]]:
    meaning = (
        "Gates or routes do not add up as theory has it, so that importances and routes on this "
        "page may be wrong. Rounding in 16 bits does that, and so does a stream that is changed "
        "where no site is."
    )
    model = _model(ds)
    return meaning, (f"dar-probe analyze {model} --dtype float64", f"dar-probe inspect {model}")


def _blocks(ds: xr.Dataset) -> tuple[str, tuple[str, ...]]:
    block, share = _least_written(ds)
    meaning = (
        "These blocks leave the state nearly as they read it, on the samples that were measured. "
        f"Block {block} adds least, {100 * share:.2g} % of what it reads; whether the loss needs "
        "it only skipping it tells."
    )
    return meaning, (_skip(ds, float(ds["noise_level"].values[-1])),)


def _certainty(ds: xr.Dataset, metric: Estimate | None, limit: float) -> str:
    count = ds.sizes["sample"]
    many = f"{count} sample{'s' * (count != 1)}"
    if metric is None or not math.isfinite(limit):
        return f"As sure as {many} can tell."
    if math.isnan(metric.low):
        return "One sample gives no interval: how sure this is cannot be told."
    if count < FEW:
        return f"Not sure: the 95 % interval of {many} is rough; analyse {FEW} or more."
    if metric.low > limit:
        return f"Sure for these data: the whole 95 % interval of {many} lies beyond the limit."
    if metric.high > limit:
        return f"Not sure: the 95 % interval of {many} reaches over the failure limit."
    return f"Sure for these data: the 95 % interval of {many} stays below the failure limit."


def _worst(ds: xr.Dataset, values: np.ndarray) -> float:
    """Return the noise level at which the values are largest."""
    known = np.where(np.isfinite(values), values, -np.inf)
    return float(ds["noise_level"].values[int(np.argmax(known))])


def _least_written(ds: xr.Dataset) -> tuple[int, float]:
    """Return the block of the deep half whose sublayers write least, and its largest share."""
    write = profile(ds, "write_ratio", resamples=1)["value"].values
    home = ds["reader_block"].values[:-1]
    last = int(ds["block"].values[-1])
    found = {}
    for block in range(last // 2 + 1, last + 1):
        own = write[home == block]
        if np.isfinite(own).any():
            found[block] = float(np.nanmax(own))
    if not found:
        return last, math.nan
    block = min(found, key=lambda one: found[one])
    return block, found[block]


def _model(ds: xr.Dataset) -> str:
    """Return what a command calls the model: its file, or a stand-in for a module's callable."""
    checkpoint = manifest(ds).get("checkpoint") or {}
    file, adapter = checkpoint.get("name"), checkpoint.get("adapter")
    if not file:
        return "CHECKPOINT"
    words = [str(file), *(("--adapter", str(adapter)) if adapter else ())]
    return shlex.join(words)


def _skip(ds: xr.Dataset, level: float) -> str:
    if not manifest(ds).get("checkpoint"):
        own = "" if manifest(ds).get("config", {}).get("stand_in_loss") else "loss=loss, "
        return f'dp.ablate(module, batch=batch, {own}kinds=["block"], noise_levels=[{level:.2g}])'
    shown = f"{level:.2g}"
    if "." not in shown:
        shown += ","  # makes a list of it, where 1 would be a count
    return f"dar-probe ablate {_model(ds)} --kinds block --noise-levels {shown}"


def _look(variable: str) -> str:
    return f"dar-probe figures DIR --only heatmap --variable {variable}"
