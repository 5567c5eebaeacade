"""Cuts a grid into shards and does each once: over ranks, over runs that were cut off."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dar_probe.errors import ProbeError, out_of_memory
from dar_probe.runtime.ranks import ALONE, Ranks

Arrays = dict[str, np.ndarray]
Work = Callable[[slice], Arrays]
OnCells = Callable[[int, int], None]
SAME = ("rms", "loss", "grad_rms", "write_rms")  # what ranks in step are compared by
ROUNDING = 1e-2  # relative: how far they may differ


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
    is halved. Ranks in step do all shards together: they share one model.

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
    halving = _Halving(work, grid.batch_size, in_step=ranks.in_step and ranks.world > 1)

    def tell() -> None:
        if on_cells:
            done = sum(cells.stop - cells.start for index, cells in chunks if index in parts)
            on_cells(done, min(int(part["batch_size"][0]) for part in parts.values()))

    if parts:
        tell()
    width = 1 if ranks.in_step else ranks.world
    for start in range(0, len(missing), width):
        turn = missing[start : start + width]
        for (index, _), part in zip(turn, _shared(halving, turn, ranks), strict=False):
            parts[index] = part
            if shards is not None and ranks.leads:
                shards.save(first + index, part)
        tell()
    return _joined([parts[index] for index, _ in chunks])


def _shared(work: Work, turn: list[tuple[int, slice]], ranks: Ranks) -> list[Arrays]:
    """Return the arrays of the shards of one turn: each rank does one of them, or in step all one.

    Raises:
        ProbeError: ranks in step found different numbers.
    """
    if not ranks.in_step:
        return ranks.gather(work(turn[ranks.rank][1]) if ranks.rank < len(turn) else None)
    own = work(turn[0][1])
    said = ranks.gather({name: own[name] for name in SAME if name in own})
    if not all(_agrees(said[0][name], one[name]) for one in said for name in said[0]):
        raise different()
    return [ranks.from_leader(own)]


def _agrees(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=ROUNDING, equal_nan=True)


def different() -> ProbeError:
    """Return the error of processes that share a module, and see different states in it."""
    return ProbeError(
        "the processes that share this module see different states: each has a part of the stream "
        "of its own (sequence parallelism), or they were given different inputs",
        hint="let blocks take and return whole tensors, the same on every process, as without "
        "SequenceParallel; the batch function must not depend on the rank",
    )


class _Halving:
    """Does the work in batches that fit into memory, unless ranks are in step."""

    def __init__(self, work: Work, size: int, *, in_step: bool = False) -> None:
        self.work = work
        self.size = size
        self.in_step = in_step

    def __call__(self, cells: slice) -> Arrays:
        found: list[Arrays] = []
        start = cells.start
        while start < cells.stop:
            piece = slice(start, min(start + self.size, cells.stop))
            try:
                found.append(self.work(piece))
            except Exception as error:  # allocators have no common error
                length = piece.stop - piece.start
                if self.in_step and out_of_memory(error):
                    # The others are in the middle of this batch, and wait for this process.
                    raise ProbeError(
                        f"memory ran out in a batch of {length}, which processes that share one "
                        "module cannot halve each for itself",
                        hint="ask for a smaller --batch-size, or for --recompute",
                    ) from error
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
