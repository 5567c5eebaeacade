"""Whether two analyses are of the same samples, noise and depth, and in words why not.

Reasons continue "other cannot be compared with reference because", so the other's come first.
"""

from typing import Any

import numpy as np
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.results.bootstrap import Array
from dar_probe.results.schema import OWN_SAMPLES, VARIABLES, manifest


def obstacle(reference: xr.Dataset, other: xr.Dataset) -> str:
    """Say why two analyses are not of the same samples and noise; empty where they are."""
    level, against = (ds["noise_level"].values for ds in (other, reference))
    if not _same(level, against):
        return f"the noise levels differ: {_unlike(_span(level), _span(against), level, against)}"
    one, two = (np.sort(ds["sample"].values) for ds in (other, reference))
    if not _same(one, two):
        return f"the samples differ: {_unlike(_ids(one), _ids(two), one, two)}"
    (data, content, seed), (wanted, expected, noise) = map(_origin, (other, reference))
    known = content is not None and expected is not None
    if (content != expected) if known else (data != wanted):
        if data == OWN_SAMPLES == wanted:
            return "each model was measured on samples that it drew itself"
        if data == wanted:
            return f"the data of the name {data} differ in content"
        return f"the data differ: {data} against {wanted}"
    return f"the noise differs: seed {seed} against {noise}" if seed != noise else ""


def unlike_depth(reference: xr.Dataset, other: xr.Dataset, variable: str = "rms") -> str:
    """Say why two models have no depth in common for one variable; empty where they have.

    Raises:
        UsageError: an unknown variable.
    """
    if variable not in VARIABLES:
        raise UsageError(f"no variable {variable!r}", hint=f"one of {', '.join(VARIABLES)}")
    for dim in VARIABLES[variable].dims:
        sizes = other.sizes[dim], reference.sizes[dim]
        if dim == "block":
            if sizes[0] != sizes[1]:
                return f"the depths differ: {sizes[0] - 1} against {sizes[1] - 1} blocks"
            continue
        name = f"{'source' if dim == 'source' else 'reader'}_name"
        if not np.array_equal(other[name].values, reference[name].values):
            return f"the {dim}s differ"
    return ""


def unlike_losses(reference: xr.Dataset, other: xr.Dataset) -> str:
    """Say why two losses are different quantities; empty where nothing is known of that."""
    one, two = (manifest(ds).get("config") or {} for ds in (other, reference))
    objective, against = (config.get("objective") for config in (one, two))
    if objective != against:
        return f"the objectives differ: {objective} against {against}"
    same = one.get("stand_in_loss") == two.get("stand_in_loss")
    return "" if same else "the losses that stand in for missing ones differ"


def unknown_samples(reference: xr.Dataset, other: xr.Dataset) -> bool:
    """Tell whether nothing but ids says that the samples are the same."""
    return any(_origin(ds)[1] is None for ds in (reference, other))


def in_order_of(reference: xr.Dataset, other: xr.Dataset) -> xr.Dataset:
    """Return ``other`` with its samples in the reference's order; the ids are the same."""
    wanted, given = (ds["sample"].values for ds in (reference, other))
    if np.array_equal(wanted, given):
        return other
    order = np.empty(len(given), dtype=np.int64)
    order[np.argsort(wanted, kind="stable")] = np.argsort(given, kind="stable")
    return other.isel(sample=order)


def _origin(ds: xr.Dataset) -> tuple[str, Any, Any]:
    """Return the name of the data, the hash of their content, and the seed of the noise."""
    found = manifest(ds)
    content = (found.get("config") or {}).get("data_sha256")
    return str((found.get("data") or {}).get("name")), content, found.get("seed")


def _same(one: Array, two: Array) -> bool:
    return len(one) == len(two) and bool(np.allclose(one, two, rtol=0, atol=1e-9))


def _unlike(said: str, against: str, one: Array, two: Array) -> str:
    """Set two descriptions against each other; where they are equal, the first difference."""
    if said != against:
        return f"{said} against {against}"
    at = int(np.flatnonzero(~np.isclose(one, two, rtol=0, atol=1e-9))[0])
    return f"{said}, but number {at + 1} is {one[at]:.10g} against {two[at]:.10g}"


def _span(levels: Array) -> str:
    if len(levels) == 1:
        return f"1 of {levels[0]:.3g}"
    return f"{len(levels)} from {levels[0]:.3g} to {levels[-1]:.3g}"


def _ids(ids: Array) -> str:
    if len(ids) == 1:
        return f"1 with id {ids[0]}"
    return f"{len(ids)} with ids {ids[0]} to {ids[-1]}"
