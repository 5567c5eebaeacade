"""Measured arrays and the names of their sites -> one labelled dataset."""

import json
import platform
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
import xarray as xr

from dar_probe import __version__, schema
from dar_probe.subjects.subject import Subject


def assemble(
    arrays: dict[str, np.ndarray],
    subject: Subject,
    *,
    levels: np.ndarray,
    ids: np.ndarray,
    timestep: np.ndarray,
    log_snr: np.ndarray,
    manifest: dict[str, Any],
) -> xr.Dataset:
    """Return the valid dataset of ``schema``.

    Args:
        arrays: every variable, (levels, samples, ...).
        subject: names, kinds and blocks of readers and sources.
        levels: noise levels, rising.
        timestep: the model's clock per noise level; NaN where it has none.
        log_snr: per noise level; NaN where unknown.
        ids: sample ids.
        manifest: provenance beyond versions and date, as the interface of reports needs it.
    """
    readers, sources = subject.readers, subject.sources
    coords: dict[str, Any] = {
        "noise_level": levels,
        "sample": ids,
        "block": np.arange(arrays["rms"].shape[-1]),
        "sublayer": np.arange(1, len(sources)),
        "reader": np.arange(1, len(readers) + 1),
        "source": np.arange(len(sources)),
        "timestep": ("noise_level", timestep),
        "log_snr": ("noise_level", log_snr),
        "reader_name": ("reader", [r.name for r in readers]),
        "reader_kind": ("reader", [r.kind for r in readers]),
        "reader_block": ("reader", [r.block for r in readers]),
        "source_name": ("source", [s.name for s in sources]),
        "source_kind": ("source", [s.kind for s in sources]),
        "source_block": ("source", [s.block for s in sources]),
    }
    variables = {
        name: ((*schema.GRID, *spec.dims), arrays[name]) for name, spec in schema.VARIABLES.items()
    }
    ds = xr.Dataset(variables, coords=coords)
    ds.attrs = {
        "schema_version": schema.SCHEMA_VERSION,
        "manifest": json.dumps({**_origin(), **manifest}),
    }
    return schema.validate(schema.describe(ds))


def _origin() -> dict[str, Any]:
    return {
        "versions": {
            "dar_probe": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "xarray": xr.__version__,
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
