"""Cuts a grid into shards and does each once: over ranks, over runs that were cut off."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dar_probe.errors import out_of_memory
from dar_probe.runtime.ranks import ALONE, Ranks

Arrays = dict[str, np.ndarray]
Work = Callable[[slice], Arrays]
OnCells = Callable[[int, int], None]


class Shards(Protocol):
    """Keeps the finished part of a walk; see ``dar_probe.files.analysis_folder``."""

    def load(self, index: int) -> Arrays | None:
        """Return shard ``index`` if it is there and whole."""

    def save(self, index: int, arrays: Arrays) -> None:
        """Keep shard ``index``."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is walked: every sample at every noise level.

    Attributes:
        levels: noise levels, rising.
        ids: sample ids.
        batch_size: cells of the grid in one forward.
        recompute: inner tensors are not kept, but made again, see ``probe.recompute``. None: once
            memory runs out; False: never.
    """

    levels: tuple[float, ...]
    ids: tuple[int, ...]
    batch_size: int
    recompute: bool | None = None

    @property
    def cells(self) -> int:
        """Number of (level, sample) pairs."""
        return len(self.levels) * len(self.ids)

    def cell_ids(self) -> Tensor:
        """Sample id of every cell (cells,); cell c is level c // samples, sample c % samples."""
        return torch.tensor(self.ids).repeat(len(self.levels))

    def cell_levels(self) -> Tensor:
        """Noise level of every cell (cells,) float64."""
        return torch.tensor(self.levels, dtype=torch.float64).repeat_interleave(len(self.ids))

    def chunks(self) -> Iterator[tuple[int, slice]]:
        """Number and cells of every batch."""
        for index, start in enumerate(range(0, self.cells, self.batch_size)):
            yield index, slice(start, min(start + self.batch_size, self.cells))


def measure_shards(
    grid: Grid,
    work: Work,
    *,
    shards: Shards | None = None,
    first: int = 0,
    ranks: Ranks = ALONE,
    on_cells: OnCells | None = None,
) -> Arrays:
    """Return what ``work`` says of all cells of the grid, joined in their order.

    The grid is cut by its own batch size alone, before ranks share the shards in turns: any
    number of ranks does the same work on the same shards. A batch that does not fit into memory
    is halved.

    Args:
        grid: what is walked.
        work: cells -> arrays with one row a cell, or fewer.
        shards: where finished shards are kept; only the leader touches it.
        first: number of the first shard there.
        ranks: this process among others.
        on_cells: called with (finished cells, smallest batch so far) after each batch.
    """
    chunks = list(grid.chunks())
    known: dict[int, Arrays] = {}
    if shards is not None and ranks.leads:
        loaded = {index: shards.load(first + index) for index, _ in chunks}
        known = {index: part for index, part in loaded.items() if part is not None}
    parts: dict[int, Arrays] = ranks.from_leader(known)
    missing = [(index, cells) for index, cells in chunks if index not in parts]
    halving = _Halving(work, grid.batch_size)

    def tell() -> None:
        if on_cells:
            done = sum(cells.stop - cells.start for index, cells in chunks if index in parts)
            on_cells(done, min(int(part["batch_size"][0]) for part in parts.values()))

    if parts:
        tell()
    for start in range(0, len(missing), ranks.world):
        turn = missing[start : start + ranks.world]
        own = halving(turn[ranks.rank][1]) if ranks.rank < len(turn) else None
        for (index, _), part in zip(turn, ranks.gather(own), strict=False):
            parts[index] = part
            if shards is not None and ranks.leads:
                shards.save(first + index, part)
        tell()
    return _joined([parts[index] for index, _ in chunks])


class _Halving:
    """Does the work in batches that fit into memory."""

    def __init__(self, work: Work, size: int) -> None:
        self.work = work
        self.size = size

    def __call__(self, cells: slice) -> Arrays:
        found: list[Arrays] = []
        start = cells.start
        while start < cells.stop:
            piece = slice(start, min(start + self.size, cells.stop))
            try:
                found.append(self.work(piece))
            except Exception as error:  # allocators have no common error
                length = piece.stop - piece.start
                if length == 1 or not out_of_memory(error):
                    raise
                self.size = math.ceil(length / 2)
            else:
                start = piece.stop
                continue
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return {**_joined(found), "batch_size": np.array([self.size])}


def _joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
