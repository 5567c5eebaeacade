"""The walk over noise levels and samples: what it refuses, and in which order it measures."""

import numpy as np
import pytest
import torch

from dar_probe.errors import ProbeError
from dar_probe.models import sit_family
from dar_probe.probe import grid
from dar_probe.probe.grid import Grid, walk
from tests.helpers import tiny

IDS = (7, 3, 5)


def setting():
    model = tiny.model()
    _, problem = tiny.problem(model, samples=8)
    return sit_family.subject(model), problem


def walked(batch=None, loss=None, *, batch_size=16, levels=(0.1, 0.5, 0.9), ids=IDS):
    subject, problem = setting()
    return walk(
        subject,
        Grid(levels=levels, ids=ids, batch_size=batch_size),
        batch or problem.batch,
        loss or problem.loss,
    )


def coupled(row):
    """Return inputs in which one row of a batch, and of a batch alone, is moved by the others."""
    _, problem = setting()

    def batch(ids, levels):
        (x, t, y), more = problem.batch(ids, levels)
        if len(ids) > 1:
            x[row] += 1.0
        return (x, t, y), more

    return batch


@pytest.mark.parametrize(("row", "culprit"), [(0, 7), (-1, 5)])
def test_the_first_and_the_last_sample_of_a_batch_must_not_see_the_others(row, culprit):
    with pytest.raises(ProbeError, match=f"sample {culprit} has the loss .* couples samples"):
        walked(coupled(row))


def test_independence_is_tried_once_and_with_two_samples_or_more():
    """In batches of one, nothing is coupled; later batches would cost a forward each."""
    walked(coupled(0), batch_size=1)
    seen = []
    _, problem = setting()

    def batch(ids, levels):
        seen.append(len(ids))
        return problem.batch(ids, levels)

    walked(batch, batch_size=4)
    assert seen == [4, 1, 1, 4, 1]
    seen.clear()
    walked(batch, batch_size=1)
    assert seen == [1] * 9


def test_a_small_difference_is_rounding_and_a_large_one_is_not():
    _, problem = setting()

    def loss(factor):
        def of(output, ids, levels):
            found = problem.loss(output, ids, levels)
            return found * (factor if len(ids) > 1 else 1.0)

        return of

    walked(loss=loss(1 + 0.9e-3))
    with pytest.raises(ProbeError, match="couples samples"):
        walked(loss=loss(1 + 1.2e-3))
    walked(loss=lambda *given: 1e-9 * loss(2.0)(*given))  # nothing beside 1e-6


def test_every_cell_is_that_of_its_own_level_and_sample():
    found = walked()
    assert found["loss"].shape == (3, 3) and found["rms"].shape == (3, 3, 3)
    assert "pooled" not in found and "batch_size" not in found
    for at, level in enumerate((0.1, 0.5, 0.9)):
        for n, sample in enumerate(IDS):
            one = walked(levels=(level,), ids=(sample,), batch_size=1)
            for name in ("loss", "rms", "gate"):
                np.testing.assert_allclose(found[name][at, n], one[name][0, 0], rtol=1e-9)
    assert found["decoded_level"].shape == (3, 3, 5)


@pytest.mark.parametrize(("kept", "room"), [(4, 4), (8, 9)])
def test_token_means_are_kept_as_far_as_there_is_room(kept, room, monkeypatch):
    """At least those of eight samples are; ``room`` counts samples."""
    ids = tuple(range(12))
    whole = Grid(levels=(0.1, 0.9), ids=ids, batch_size=24)
    pooled = np.zeros((24, 3, 5))
    monkeypatch.setattr(grid, "POOLED_SAMPLES", kept)
    monkeypatch.setattr(grid, "POOLED_BYTES", 2 * room * pooled[0].nbytes + 1)
    found = grid._decoded(whole, pooled, slice(0, 24)).reshape(2, 12)
    assert (found == (np.arange(12) < max(room, kept))).all()
    part = grid._decoded(whole, pooled[:5], slice(10, 15))
    np.testing.assert_array_equal(part, found.ravel()[10:15])


def test_the_first_bad_sample_is_named():
    def batch(ids, levels):
        (x, t, y), more = setting()[1].batch(ids, levels)
        x[[1, 2]] = torch.nan
        return (x, t, y), more

    with pytest.raises(ProbeError, match=r"sample 3 at noise level 0\.1 .* what 'block 1 att"):
        walked(batch)
