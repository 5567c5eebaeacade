"""Shards: the same work whatever the ranks, the memory and the interruptions."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

import dar_probe as dp
from dar_probe.models import sit_family
from dar_probe.probe.grid import walk
from dar_probe.probe.sharding import Grid, measure_shards
from dar_probe.runtime.ranks import Ranks, leads
from tests.helpers import tiny, warm
from tests.helpers.shell import torchrun

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
GRID = Grid(levels=(0.2, 0.7), ids=(4, 5, 9), batch_size=4)


class Kept(dict):
    """Shards in memory."""

    def load(self, index):
        return self.get(index)

    def save(self, index, arrays):
        self[index] = arrays


def work(cells):
    return {
        "cell": np.arange(cells.start, cells.stop),
        "odd": np.arange(cells.start, cells.stop, 2),
    }


def test_cells_are_levels_times_samples():
    assert GRID.cell_ids().tolist() == [4, 5, 9, 4, 5, 9]
    assert GRID.cell_levels().tolist() == [0.2] * 3 + [0.7] * 3
    joined = measure_shards(GRID, work)
    assert joined["cell"].tolist() == list(range(6)) and joined["odd"].tolist() == [0, 2, 4]


def test_only_missing_shards_are_worked_on_and_all_are_kept():
    shards, done = Kept(), []
    measure_shards(GRID, work, shards=shards, first=10)
    assert sorted(shards) == [10, 11]
    del shards[10]

    def once(cells):
        done.append(cells)
        return work(cells)

    told = []
    joined = measure_shards(
        GRID, once, shards=shards, first=10, on_cells=lambda *progress: told.append(progress)
    )
    assert done == [slice(0, 4)] and joined["cell"].tolist() == list(range(6))
    assert told == [(2, 4), (6, 4)]


def test_a_rank_variable_without_a_job_silences_nobody(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert leads()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not leads()


class Two(Ranks):
    """Rank 0 of two, whose partner does its own shards in the same process."""

    def gather(self, value):
        if isinstance(value, dict) and "cell" not in value:
            return [value, value]
        partner = {**work(slice(4, 6)), "batch_size": np.array([4])}
        return [value, partner]


def test_ranks_share_whole_shards_in_turns():
    seen = []

    def own(cells):
        seen.append(cells)
        return work(cells)

    joined = measure_shards(GRID, own, ranks=Two(0, 2))
    assert seen == [slice(0, 4)] and joined["cell"].tolist() == list(range(6))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError()])
def test_a_batch_that_does_not_fit_is_halved(error):
    sizes, told = [], []

    def small(cells):
        sizes.append(cells.stop - cells.start)
        if sizes[-1] > 2:
            raise error
        return work(cells)

    grid = Grid(levels=(0.5,), ids=tuple(range(12)), batch_size=9)
    joined = measure_shards(grid, small, on_cells=lambda *progress: told.append(progress))
    assert sizes == [9, 5, 3, 2, 2, 2, 2, 1, 2, 1] and told[-1] == (12, 2)
    assert joined["cell"].tolist() == list(range(12))


def test_what_is_no_lack_of_memory_or_cannot_be_halved_is_raised():
    def fails(cells):
        raise RuntimeError("shape")

    def full(cells):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(RuntimeError, match="shape"):
        measure_shards(GRID, fails)
    with pytest.raises(torch.OutOfMemoryError):
        measure_shards(GRID, full)


def test_a_halved_walk_measures_the_same_and_the_dataset_says_so():
    model = tiny.model(depth=2, routing="dar", query="dynamic", chunk_size=2)
    data, problem = tiny.problem(model, samples=6)
    grid = Grid(levels=(0.3,), ids=tuple(data.ids.tolist()), batch_size=6)

    def narrow(output, ids, level):
        if len(ids) > 2:
            raise torch.OutOfMemoryError("full")
        return problem.loss(output, ids, level)

    told = []
    one = walk(sit_family.subject(model), grid, problem.batch, problem.loss)
    other = walk(
        sit_family.subject(model), grid, problem.batch, narrow, on_cells=lambda *p: told.append(p)
    )
    assert told == [(6, 2)]
    # What a reader's gates leave over is a share of its largest gate, which may be small itself.
    largest = np.nanmax(np.abs(one["gate"]), -1)
    for walked in (one, other):
        walked["gate_conservation"] = walked["gate_conservation"] * largest / largest.max()
    for name, value in one.items():
        scale = np.nanmax(np.abs(value)) if np.isfinite(value).any() else 1
        if name in ("gate_conservation", "read_residual"):
            scale = 1  # shares of one
        # Measured: 2e-14.
        np.testing.assert_allclose(other[name], value, rtol=0, atol=2e-13 * scale, err_msg=name)


JOB = """
import sys
import dar_probe as dp
from dar_probe.runtime.ranks import leads
analysis = dp.analyze(sys.argv[1], noise_levels=2, samples=5, batch_size=3, out=sys.argv[2])
assert analysis.dataset.sizes["sample"] == 5
if leads():
    print("led")
"""


@pytest.fixture(scope="module")
def alone():
    path = FIXTURES / "digits-dar-dynamic.pt"
    return dp.analyze(path, noise_levels=2, samples=5, batch_size=3).dataset


@pytest.mark.parametrize("processes", [2, 3])
def test_datasets_of_many_ranks_equal_that_of_one(alone, processes, tmp_path):
    script = tmp_path / "job.py"
    script.write_text(JOB)
    path = FIXTURES / "digits-dar-dynamic.pt"
    done = warm.ranks(processes, script, path, tmp_path / "out", light=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("led") == 1
    found = dp.open_analysis(tmp_path / "out").dataset
    for name in alone.data_vars:
        assert found[name].equals(alone[name]), name


def test_the_command_line_speaks_once(tmp_path):
    path = tmp_path / "model.pt"
    state = tiny.model(size=8, dtype=torch.float32).state_dict()
    torch.save({"ema": state, "args": argparse.Namespace(num_heads=2)}, path)
    done = torchrun(
        2, "-m", "dar_probe.cli", "analyze", path, "--data", "digits", "--samples", 2,
        "--noise-levels", 2, "--json", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"verdict"') == 1
    assert (tmp_path / "out" / "report.html").is_file()


KILLED = """
import os, sys
import dar_probe as dp
def die(done, cells):
    if done > 5 and os.environ["RANK"] == "1":
        os._exit(9)
dp.analyze(sys.argv[1], noise_levels=2, samples=5, batch_size=3, out=sys.argv[2], on_cells=die)
"""


@pytest.mark.usefixtures("undrawn")
def test_a_job_whose_rank_was_killed_is_continued_by_any_number_of_ranks(alone, tmp_path):
    """Four shards of two ranks: one dies after the first turn, whose shards are kept."""
    script, out = tmp_path / "job.py", tmp_path / "out"
    script.write_text(KILLED)
    done = warm.ranks(2, script, FIXTURES / "digits-dar-dynamic.pt", out)
    assert done.returncode != 0 and not out.exists()
    kept = sorted(path.name for path in (tmp_path / ".out.partial").glob("*.npz"))
    assert kept[:2] == ["000000.npz", "000001.npz"] and len(kept) < 4
    done_cells = []
    path = FIXTURES / "digits-dar-dynamic.pt"
    found = dp.analyze(
        path, noise_levels=2, samples=5, batch_size=3, out=out, resume=True,
        on_cells=lambda done, cells: done_cells.append(done),
    ).dataset  # fmt: skip
    assert done_cells[0] >= 6
    for name in alone.data_vars:
        assert found[name].equals(alone[name]), name


FAILING = """
import os, sys
import dar_probe as dp
from dar_probe.runtime.ranks import joined
with joined() as ranks:
    if ranks.rank == 1:
        os._exit(7)
    ranks.gather(1)
"""


def test_a_rank_that_dies_ends_the_job(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(FAILING)
    done = torchrun(2, script)
    assert done.returncode != 0
