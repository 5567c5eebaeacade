"""What the source figures show: which maps there are, and which two readers stand for all."""

from typing import NamedTuple

import numpy as np
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.reports.style import palette
from dar_probe.results import importance, metrics

NOTHING = "neither importances nor routes were measured, so there are no sources to draw"


class SourceMap(NamedTuple):
    """One quantity over (noise_level, reader, source or source_block), and how to show it.

    ``marked`` has the dims of ``values``: cells that get a dot, of importance alone, because the
    gate has a consistent sign over the samples.
    """

    quantity: str
    label: str
    colours: str
    values: xr.DataArray
    marked: xr.DataArray


class Location(NamedTuple):
    """One reader of the sources figure.

    Attributes:
        title: "shallow: block 7 attention".
        position: along the block maps' reader dim.
        name: the reader's, cleaned.
        block: the reader's, B+1 for the head.
        names: of the source blocks up to the last that it is offered: the one before its own, or
            its own where a fusion stands before it.
        sources: how many source blocks it is offered.
    """

    title: str
    position: int
    name: str
    block: int
    names: list[str]
    sources: int


def block_maps(ds: xr.Dataset) -> list[SourceMap]:
    """Return the maps of arXiv 2605.20708, figure 3: importance, and routes if there is a router.

    A map without one finite number is left out: an untrained model has no importances.
    """
    below = importance.block_below_null(ds)
    return _measured_maps(ds, importance.block_importance(ds), below, importance.block_routes(ds))


def sublayer_maps(ds: xr.Dataset, *, dots: bool = True) -> list[SourceMap]:
    """Return the same with every reader and every source, without ``dots`` in half the time."""
    route = metrics.over_noise(ds, "route").transpose("noise_level", "reader", "source")
    shares = importance.importance(ds)
    below = importance.below_null(ds) if dots else xr.ones_like(shares, bool)
    return _measured_maps(ds, shares, below, route)


def lacks(ds: xr.Dataset, shares: xr.DataArray) -> str:
    """Say why there is no map of sources at all; empty where there is one.

    Args:
        ds: an analysis.
        shares: its ``importance`` or ``block_importance``.
    """
    return "" if has_router(ds) or bool(_telling(shares).notnull().any()) else NOTHING


def _measured_maps(
    ds: xr.Dataset, shares: xr.DataArray, below: xr.DataArray, route: xr.DataArray
) -> list[SourceMap]:
    shares = _telling(shares)
    # Most gates of a trained model help some samples and hurt others, so the few others are marked.
    told = importance.signs_can_tell(ds.sizes["sample"])
    marked = ~below & (shares > 0) if told else xr.zeros_like(below, bool)
    maps = [SourceMap("importance", "share of importance", "mako_r", shares, marked)]
    if has_router(ds):
        maps.append(SourceMap("route", "route", "rocket_r", route, xr.zeros_like(route, bool)))
    return [found for found in maps if np.isfinite(found.values.values).any()]


def _telling(shares: xr.DataArray) -> xr.DataArray:
    # The only source of a reader has a gate of zero: its share of 1 is a ratio of roundings.
    return shares.where(shares.notnull().sum(str(shares.dims[-1])) >= 2)


def locations(
    shares: xr.DataArray, shallow: int | None = None, deep: int | None = None
) -> list[Location]:
    """Return the shallow and the deep reader of a block map (noise_level, reader, source_block).

    Left out, they are the readers nearest to B/4 and 3B/4 that are offered three or more source
    blocks: the gates of two sources cancel, so their shares are one half each in every model.
    One location alone where both fall on the same reader, as in a model of one block.

    Args:
        shares: the map; its ``reader_block`` runs 1..B and B+1 for the head.
        shallow: a block number, B+1 for the head.
        deep: a block number, B+1 for the head.

    Raises:
        UsageError: a block that has no reader.
    """
    blocks = [int(block) for block in shares["reader_block"].values]
    finite = np.isfinite(shares.values).any(axis=0)
    offered = finite.sum(axis=1)
    enough = min(3, int(offered.max()))
    telling = [block for block, count in zip(blocks, offered, strict=True) if count >= enough]
    last = blocks[-1] - 1
    if shallow is None:
        shallow = min(telling, key=lambda block: abs(block - last / 4))
    if deep is None:
        others = [block for block in telling if block > shallow] or telling
        deep = min(others, key=lambda block: abs(block - 3 * last / 4))
    result = []
    for depth, block in (("shallow", shallow), ("deep", deep)):
        if block not in blocks:
            raise UsageError(f"there is no block {block} to read", hint=f"blocks are {blocks}")
        position = blocks.index(block)
        name = palette.clean(str(shares["reader_name"].values[position]), 40)
        stop = int(np.flatnonzero(finite[position]).max(initial=block - 1)) + 1
        names = ["embedding", *(f"block {source}" for source in range(1, block))]
        names += ["fusion"] * (stop - block)
        count = int(offered[position])
        result.append(Location(f"{depth}: {name}", position, name, block, names, count))
    return result if shallow != deep else [result[0]._replace(title=result[0].name)]


def has_router(ds: xr.Dataset) -> bool:
    """Whether any measured route differs from the plain residual's 1."""
    route = ds["route"].values
    return bool(np.any(np.abs(route[np.isfinite(route)] - 1) > 1e-6))
