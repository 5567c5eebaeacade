"""The two streams of a joint model, joined along a dim ``stream``: the image's, and the text's.

The streams may have other sites: arrays are as long as the longer one has them, with NaN and empty
names behind the end of the shorter one.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np
import xarray as xr

from dar_probe.errors import CheckpointError
from dar_probe.results import schema, trajectory

IMAGE, TEXT, ALL = "image", "text", "all"
CHOICES = (IMAGE, TEXT, ALL)  # of what is measured
NAMES = (IMAGE, TEXT)  # of the streams in a dataset of both
SITES = ("block", "sublayer", "reader", "source")
COMMON = ("loss",)  # of the whole forward, and the same for both
OF_SITES = {
    name for name, dim in {**schema.STRING_COORDS, **schema.NUMBER_COORDS}.items() if dim in SITES
}


def join(found: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Return one dataset of the analyses of both streams in the same forwards.

    Its manifest is that of the first stream; ``streams`` in it keeps what each has of its own.

    Args:
        found: the analyses by the names of the streams, the image's first.
    """
    datasets = list(found.values())
    first = datasets[0]
    sizes = {dim: max(ds.sizes[dim] for ds in datasets) for dim in SITES}
    coords: dict[str, Any] = {"stream": list(found)}
    for name, coord in first.coords.items():
        if name in OF_SITES:
            coords[str(name)] = _stacked([ds[name] for ds in datasets], sizes)
        elif name in SITES:
            start = int(coord.values[0])
            coords[str(name)] = np.arange(start, start + sizes[str(name)])
        else:
            coords[str(name)] = coord
    variables = {
        name: first[name] if name in COMMON else _stacked([ds[name] for ds in datasets], sizes)
        for name in schema.VARIABLES
    }
    joined = xr.Dataset(variables, coords=coords)
    manifests = [schema.manifest(ds) for ds in datasets]
    own = {
        name: {
            "sizes": {dim: ds.sizes[dim] for dim in SITES},
            **{key: m[key] for key in m if m[key] != manifests[0].get(key)},
        }
        for (name, ds), m in zip(found.items(), manifests, strict=True)
    }
    joined.attrs = {**first.attrs, "manifest": json.dumps({**manifests[0], "streams": own})}
    return schema.describe(joined)


def split(ds: xr.Dataset) -> dict[str, xr.Dataset]:
    """Return the analysis of each stream by its name; ``join`` undone.

    Interventions, which change both streams, stay with the first one.

    Raises:
        CheckpointError: the manifest does not tell the streams apart.
    """
    own = schema.manifest(ds).get("streams")
    names = [str(name) for name in ds["stream"].values]
    if not isinstance(own, dict) or list(own) != names or not all(map(_sound, own.values())):
        raise CheckpointError("the dataset's manifest does not tell its streams apart")
    found = {name: selected(ds.isel(stream=at)) for at, name in enumerate(names)}
    for name in names[1:]:
        dims = [dim for dim in ("ablation", "intervention") if dim in found[name].dims]
        found[name] = found[name].drop_dims(dims)
    return found


def selected(ds: xr.Dataset) -> xr.Dataset:
    """Return the analysis of one stream, given ``ds.sel(stream=NAME)``; any other as it is.

    Raises:
        CheckpointError: the manifest does not tell of that stream.
    """
    if "stream" not in ds.coords or "stream" in ds.dims:
        return ds
    whole = schema.manifest(ds)
    every = whole.pop("streams", None)
    own = every.get(str(ds["stream"].item())) if isinstance(every, dict) else None
    if not _sound(own):
        raise CheckpointError("the dataset's manifest does not tell its streams apart")
    sizes = own.pop("sizes")
    one = ds.isel({dim: slice(sizes[dim]) for dim in SITES}).drop_vars("stream")
    one.attrs = {**ds.attrs, "manifest": json.dumps({**whole, **own})}
    return one


def validate(ds: xr.Dataset) -> xr.Dataset:
    """Return ``ds`` unchanged if it is a whole analysis, of one stream or of both.

    Raises:
        CheckpointError: naming the first thing that is wrong.
    """
    if "stream" not in ds.dims:
        return schema.validate(ds)
    if "stream" not in ds.coords or not set(ds["stream"].values.tolist()) <= set(NAMES):
        raise CheckpointError("the dataset's streams are not those of image and text")
    missing = [dim for dim in SITES if dim not in ds.dims]
    if missing or "step" in ds.dims:
        raise CheckpointError("the dataset of two streams lacks sites, or has steps as well")
    for one in split(ds).values():
        schema.validate(one)
    return ds


def single(ds: xr.Dataset) -> xr.Dataset:
    """Return what stands for a whole: a trajectory's last step, of both streams the image's."""
    if "stream" in ds.dims:
        return next(iter(split(ds).values()))
    return trajectory.split(ds)[-1][1] if "step" in ds.dims else ds


def _sound(part: Any) -> TypeGuard[dict[str, Any]]:
    sizes = part.get("sizes") if isinstance(part, dict) else None
    return isinstance(sizes, dict) and all(type(sizes.get(dim)) is int for dim in SITES)


def _stacked(arrays: list[xr.DataArray], sizes: Mapping[str, int]) -> xr.Variable:
    """Return arrays along a first dim ``stream``, each padded to the sizes of its sites."""
    dims = arrays[0].dims
    fill: Any = {"U": "", "i": -1}.get(arrays[0].dtype.kind, np.nan)
    padded = []
    for array in arrays:
        by = [(0, sizes[str(dim)] - array.sizes[dim] if dim in SITES else 0) for dim in dims]
        values = array.values.astype(object) if fill == "" else array.values
        padded.append(np.pad(values, by, constant_values=fill))
    whole = np.stack(padded)
    return xr.Variable(("stream", *dims), whole.astype(str) if fill == "" else whole)
