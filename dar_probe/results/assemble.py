"""Measured arrays and the names of their sites -> one labelled dataset."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import xarray as xr

from dar_probe.results import interventions, metrics, schema
from dar_probe.runtime.version import __version__


class Site(Protocol):
    """A reader or a source, as far as its labels go."""

    @property
    def name(self) -> str:
        """As reports show it, e.g. "block 3 mlp"."""

    @property
    def kind(self) -> str:
        """E.g. "attention", "mlp" or "head"."""

    @property
    def block(self) -> int:
        """The block that it is in."""


# What cannot be measured where autograd does not see all of the blocks.
BLIND = ("grad_rms", "gate", "gate_conservation", "query_share")


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What the axes of measured arrays stand for.

    Attributes:
        readers: in firing order, the head last.
        sources: in firing order, the embedding first.
        levels: (levels,) noise levels, rising.
        timestep: (levels,) the model's clock; NaN where it has none.
        log_snr: (levels,) NaN where unknown.
        ids: (samples,) sample ids.
    """

    readers: Sequence[Site]
    sources: Sequence[Site]
    levels: np.ndarray
    timestep: np.ndarray
    log_snr: np.ndarray
    ids: np.ndarray


def assemble(
    arrays: dict[str, np.ndarray], axes: Axes, *, manifest: dict[str, Any], torch: str
) -> xr.Dataset:
    """Return the dataset of ``schema``; whoever analyses or writes it validates it.

    Args:
        arrays: every variable but decodability, (levels, samples, ...).
        axes: what their axes stand for.
        manifest: provenance beyond versions and date, as reports show it.
        torch: version of what measured.
    """
    readers, sources, levels = axes.readers, axes.sources, axes.levels
    coords: dict[str, Any] = {
        "noise_level": levels,
        "sample": axes.ids,
        "block": np.arange(arrays["rms"].shape[-1]),
        "sublayer": np.arange(1, len(readers)),
        "reader": np.arange(1, len(readers) + 1),
        "source": np.arange(len(sources)),
        "timestep": ("noise_level", axes.timestep),
        "log_snr": ("noise_level", axes.log_snr),
        "reader_name": ("reader", [r.name for r in readers]),
        "reader_kind": ("reader", [r.kind for r in readers]),
        "reader_block": ("reader", [r.block for r in readers]),
        "source_name": ("source", [s.name for s in sources]),
        "source_kind": ("source", [s.kind for s in sources]),
        "source_block": ("source", [s.block for s in sources]),
    }
    arrays = {**arrays, "decodability": metrics.decodability(arrays["decoded_level"], levels)[0]}
    variables = {name: (spec.all_dims, arrays[name]) for name, spec in schema.VARIABLES.items()}
    ds = xr.Dataset(variables, coords=coords)
    ds.attrs = {
        "schema_version": schema.SCHEMA_VERSION,
        "manifest": json.dumps({**_origin(torch), **manifest}),
    }
    return schema.with_facts(schema.describe(ds))


def without_gradients(ds: xr.Dataset) -> xr.Dataset:
    """Return the dataset with NaN for all that rests on gradients of the loss."""
    return ds.assign({name: ds[name].copy(data=np.full_like(ds[name], np.nan)) for name in BLIND})


def with_ablation(
    ds: xr.Dataset,
    *,
    names: Sequence[str],
    kinds: Sequence[str],
    true: np.ndarray,
    linear: np.ndarray,
    wanted: dict[str, Any],
    batch_size: int,
) -> xr.Dataset:
    """Return the dataset with the effects of interventions.

    Args:
        ds: a valid dataset.
        names: what was done.
        kinds: of which kind each was, see ``effects.KIND_TEXT``.
        true: loss changes (levels, samples, changes).
        linear: predicted ones, in the same shape.
        wanted: how the changes were chosen, for the manifest.
        batch_size: the smallest batch that was used.
    """
    kind_of = np.array(kinds)
    present = [kind for kind in interventions.KIND_TEXT if kind in kinds]
    means = true.mean(1), linear.mean(1)
    ranks = [
        [interventions.spearman(t[kind_of == kind], p[kind_of == kind]) for kind in present]
        for t, p in zip(*means, strict=True)
    ]
    arrays = {
        "gate_ablated": true,
        "gate_linear": linear,
        "linearisation_error": interventions.linearisation_error(true, linear, 1),
        "rank_correlation": np.array(ranks),
    }
    manifest = schema.manifest(ds)
    smallest = min(manifest.get("batch_size", batch_size), batch_size)
    manifest = {**manifest, "batch_size": smallest, "ablation": wanted}
    ds = ds.assign({name: (spec.all_dims, arrays[name]) for name, spec in schema.ABLATION.items()})
    ds = ds.assign_coords(
        ablation_name=("ablation", list(names)),
        ablation_kind=("ablation", kind_of),
        intervention=present,
    )
    ds.attrs["manifest"] = json.dumps(manifest)
    return schema.with_facts(schema.describe(ds))


def _origin(torch: str) -> dict[str, Any]:
    return {
        "versions": {
            "dar_probe": __version__,
            "python": platform.python_version(),
            "torch": torch,
            "numpy": np.__version__,
            "xarray": xr.__version__,
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
