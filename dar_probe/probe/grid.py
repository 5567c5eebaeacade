"""Walks noise levels x samples in mixed batches: one forward and one backward measure all."""

import math

import numpy as np
import torch
from torch import Tensor

from dar_probe.errors import ProbeError
from dar_probe.probe import decoding
from dar_probe.probe.measure import Batch, Loss, hooks, measure
from dar_probe.probe.recompute import Careful
from dar_probe.probe.recorder import untouched
from dar_probe.probe.sharding import Arrays, Grid, OnCells, Shards, measure_shards
from dar_probe.runtime.ranks import ALONE, Ranks
from dar_probe.sites.subject import Subject

POOLED_BYTES = 2**28  # of token means in one walk: enough to decode the noise level from them
POOLED_SAMPLES = 8  # are kept in any case


def walk(
    subject: Subject,
    grid: Grid,
    batch: Batch,
    loss: Loss,
    *,
    shards: Shards | None = None,
    ranks: Ranks = ALONE,
    on_cells: OnCells | None = None,
    careful: Careful | None = None,
) -> Arrays:
    """Measure every variable of the schema, of both streams; arrays are (levels, samples, ...).

    Args:
        subject: the model and its sites; the model is left bit for bit as it was.
        grid: noise levels, samples and the batch size, which changes no number beyond rounding.
        batch: inputs for a mixed batch.
        loss: loss per sample.
        shards: where finished batches are kept, to continue a run that was cut off.
        ranks: this process among those that share the work; each returns the whole.
        on_cells: called with (finished cells, smallest batch so far) after each batch.
        careful: the engine that runs one forward. None: hooks, recomputing as the grid says.

    Raises:
        ProbeError: loss or states are not finite, samples depend on each other, or a site did
            not fire as expected.
    """
    all_ids, all_levels = grid.cell_ids(), grid.cell_levels()
    careful = careful or Careful(hooks, subject, grid.recompute)

    def work(cells: slice) -> Arrays:
        cell_ids, cell_levels = all_ids[cells], all_levels[cells]
        tensors = careful(
            lambda engine: measure(subject, batch, loss, cell_ids, cell_levels, engine=engine)
        )
        part = {name: value.cpu().numpy() for name, value in tensors.items()}
        for name in filter(_pooled, part):
            part[name] = part[name][_decoded(grid, part[name], cells)]
        if cells.start == 0:
            _check_independence(subject, batch, loss, cell_ids, cell_levels, part["loss"])
        return part

    with untouched(subject.model):
        joined = measure_shards(grid, work, shards=shards, ranks=ranks, on_cells=on_cells)
    shape = (len(grid.levels), len(grid.ids))
    del joined["batch_size"]
    arrays = {}
    for name, value in joined.items():
        if not _pooled(name):
            arrays[name] = value.reshape(*shape, *value.shape[1:])
            continue
        means = value.reshape(len(grid.levels), -1, *value.shape[1:])
        decoded = np.full((*shape, means.shape[2]), np.nan)
        decoded[:, : means.shape[1]] = decoding.decode(means, np.array(grid.levels))
        arrays[name.replace("pooled", "decoded_level")] = decoded
    return arrays


def _pooled(name: str) -> bool:
    return name.endswith("pooled")


def _decoded(grid: Grid, pooled: np.ndarray, cells: slice) -> np.ndarray:
    """Say of which cells the token means (N, R, D) are kept: (N,) bool; of the first samples."""
    fit = POOLED_BYTES // (len(grid.levels) * pooled[0].nbytes)
    samples = len(grid.ids)
    return np.asarray(np.arange(cells.start, cells.stop) % samples < max(fit, POOLED_SAMPLES))


def _check_independence(
    subject: Subject, batch: Batch, loss: Loss, ids: Tensor, levels: Tensor, losses: np.ndarray
) -> None:
    """The first and the last sample alone must give the losses that they have in a batch."""
    if len(ids) < 2:
        return
    exact = next(subject.model.parameters()).dtype in (torch.float32, torch.float64)
    for row in (0, len(ids) - 1):
        one = slice(row, row + 1)
        with torch.no_grad():
            args, kwargs = batch(ids[one], levels[one])
            alone = float(loss(subject.model(*args, **kwargs), ids[one], levels[one])[0])
        tolerance = 1e-3 if exact else 0.05
        if not math.isclose(alone, float(losses[row]), rel_tol=tolerance, abs_tol=1e-6):
            raise ProbeError(
                f"sample {int(ids[row])} has the loss {float(losses[row]):.6g} in a batch and "
                f"{alone:.6g} alone: the model couples samples, or draws random numbers in its "
                "forward",
                hint="batch statistics and random masks cannot be probed sample by sample; try "
                "--batch-size 1",
            )
