"""An analysis as a tidy data frame: one row a cell, one column a variable."""

from typing import Literal, get_args

import pandas as pd
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.results import metrics, schema, streams, trajectory
from dar_probe.results.schema import ABLATION, VARIABLES, Variable

Per = Literal["sample", "level", "pooled"]

BLOCK_VARIABLES = tuple(name for name, spec in VARIABLES.items() if spec.dims == ("block",))
ABOUT = {  # the coordinates that tell what a position of a dim is
    "noise_level": ("timestep", "log_snr"),
    "sublayer": ("sublayer_name", "sublayer_kind", "sublayer_block"),
    "reader": ("reader_name", "reader_kind", "reader_block"),
    "source": ("source_name", "source_kind", "source_block"),
    "ablation": ("ablation_name", "ablation_kind"),
}


def to_dataframe(ds: xr.Dataset, *names: str, per: Per = "sample") -> pd.DataFrame:
    """Return variables as a tidy frame: one row for every cell of their dims.

    Columns, as far as the variables have the dim: ``step`` (of a trajectory), ``stream`` (of both
    streams of a joint model), ``noise_level`` with
    ``timestep`` and ``log_snr``, ``sample``, then every depth dim with the names, kinds and blocks
    of its positions, then one column for each variable. A sublayer has the name of the reader
    that writes it. Pairs of reader and source that are not offered have no row.

    Args:
        ds: an analysis, a trajectory, or both streams.
        names: variables of the same dims; left out, those over blocks.
        per: "sample" gives the numbers as measured; "level" pools them over samples as the
            schema says, and "pooled" over samples and noise levels. Pooled columns have columns
            ``<name>_low`` and ``<name>_high`` beside them, the 95 % bootstrap intervals.

    Raises:
        UsageError: a variable that is not there, variables of different dims, or a pooling that
            they do not have.
    """
    wanted = names or BLOCK_VARIABLES
    if per not in get_args(Per):
        raise UsageError(f"per={per!r} is unknown", hint=f"one of {', '.join(get_args(Per))}")
    spec = _common(ds, wanted, per)
    if "step" in ds.dims:
        parts = [(step, to_dataframe(one, *wanted, per=per)) for step, one in trajectory.split(ds)]
        return pd.concat([frame.assign(step=step) for step, frame in parts], ignore_index=True)[
            ["step", *parts[0][1].columns]
        ]
    if "stream" in ds.dims and not set(wanted) & set(ABLATION):
        both = streams.split(ds)
        frames = [to_dataframe(one, *wanted, per=per) for one in both.values()]
        order = ["stream", *frames[0].columns]
        frames = [f.assign(stream=name) for name, f in zip(both, frames, strict=True)]
        return pd.concat(frames, ignore_index=True)[order]
    ds = _with_sublayer_names(streams.single(ds))
    if per == "sample":
        rows = ds[list(wanted)]
    elif per == "pooled":
        rows = _pooled(ds, wanted)
    else:
        level = [_pooled(ds.isel(noise_level=[at]), wanted) for at in range(len(ds["noise_level"]))]
        about = [ds[name] for name in ("noise_level", *ABOUT["noise_level"])]
        rows = xr.concat(level, about[0], join="exact").assign_coords({c.name: c for c in about})
    dims = [dim for dim in dict.fromkeys((*schema.GRID, *spec.dims)) if dim in rows.dims]
    if not dims:  # one number for all: still one row
        return pd.DataFrame({str(key): [float(array)] for key, array in rows.data_vars.items()})
    index = [name for dim in dims for name in (dim, *ABOUT.get(dim, ())) if name in rows.coords]
    frame = rows.to_dataframe(dim_order=dims).reset_index()[[*index, *map(str, rows.data_vars)]]
    if {"reader", "source"} <= set(dims):
        frame = frame.dropna(how="all", subset=list(wanted)).reset_index(drop=True)
    return frame


def _common(ds: xr.Dataset, names: tuple[str, ...], per: Per) -> Variable:
    """Return the schema of variables that fit into one frame; refuse those that do not."""
    known = {**VARIABLES, **ABLATION} if "ablation" in ds.dims else VARIABLES
    for name in names:
        if name not in known:
            raise UsageError(
                f"there is no variable {name!r}", hint=f"choose from {', '.join(known)}"
            )
        if per != "sample" and name in ABLATION:
            raise UsageError(
                f"{name!r} is not pooled here", hint='per="sample", then groupby("ablation_name")'
            )
        if per == "level" and not known[name].grid:
            raise UsageError(f"{name!r} is one number for all noise levels", hint='per="pooled"')
    dims = {name: known[name].dims if per == "pooled" else known[name].all_dims for name in names}
    first = names[0]
    for name in names:
        if dims[name] != dims[first]:
            raise UsageError(
                f"{first!r} over ({', '.join(dims[first])}) and {name!r} over "
                f"({', '.join(dims[name])}) do not fit into one frame",
                hint="make a frame of each, and merge them",
            )
    return known[first]


def _with_sublayer_names(ds: xr.Dataset) -> xr.Dataset:
    count = ds.sizes["sublayer"]
    own = {
        f"sublayer_{part}": ("sublayer", ds[f"reader_{part}"].values[:count])
        for part in ("name", "kind", "block")
    }
    return ds.assign_coords(own)


def _pooled(ds: xr.Dataset, names: tuple[str, ...]) -> xr.Dataset:
    """Pool over samples and noise levels; the interval is left out with one sample."""
    columns = {}
    for name in names:
        found = metrics.profile(ds, name)
        columns[name] = found["value"]
        for bound in ("low", "high"):
            columns[f"{name}_{bound}"] = found[bound]
    return xr.Dataset(columns)
