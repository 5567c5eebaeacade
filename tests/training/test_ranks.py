"""Many processes train what one trains, and a job that lost one is completed by another job."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dar_probe.errors import ProbeError, UsageError
from dar_probe.results import store
from dar_probe.runtime.ranks import Ranks, alive
from dar_probe.training.config import TrainConfig
from dar_probe.training.loop import Run, train
from tests.helpers.shell import torchrun
from tests.helpers.warm import ranks

SMALL = TrainConfig(
    depth=2, width=16, batch_size=7, steps=4, warmup=2, validate_every=2, checkpoint_every=2,
    validation_samples=8, routing="dar", query="dynamic", chunk_size=2,
    probe_every=2, probe_samples=2, probe_levels=2,
)  # fmt: skip

JOB = """
import os, sys
from dataclasses import replace
from pathlib import Path
import torch
from dar_probe.training import loop
from tests.training.test_ranks import SMALL
out, (accumulate, dies, repa) = Path(sys.argv[1]), map(int, sys.argv[2:])
rank = os.environ["RANK"]
runs = []
first = loop.Run.step
def step(self, step):
    runs.append(self)
    if step == dies and rank == "1":
        os.kill(os.getpid(), 9)
    return first(self, step)
loop.Run.step = step
loop.train(replace(SMALL, accumulate=accumulate, repa_depth=repa), out, resume=True)
torch.save(runs[-1].model.state_dict(), out.with_name(f"weights-{rank}.pt"))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return train(SMALL, tmp_path_factory.mktemp("one") / "run")


def start(folder: Path, processes: int, *, accumulate: int = 1, dies: int = 0, repa: int = 0):
    script = folder / "job.py"
    script.write_text(JOB)
    run = torchrun if dies else ranks  # whoever watches over a job has a part in its end
    return run(processes, script, folder / "run", accumulate, dies, repa)


def assert_near(found: Path, wanted: Path) -> None:
    """Weights, losses and analyses agree to rounding; AdamW makes steps of the noise of zeros."""
    one, two = (torch.load(path, weights_only=True) for path in (found, wanted))
    for part in ("model", "ema"):
        for name, value in two[part].items():
            torch.testing.assert_close(one[part][name], value, rtol=1e-5, atol=2e-6, msg=name)
    analyses = [store.read(path.parents[1] / "trajectory.nc") for path in (found, wanted)]
    assert [ds["step"].values.tolist() for ds in analyses] == [[0, 2, 4]] * 2
    for name in ("rms", "loss", "route"):
        mine, theirs = (torch.from_numpy(ds[name].values) for ds in analyses)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)
    tables = [
        list(csv.reader((path.parents[1] / "metrics.csv").read_text().splitlines()))
        for path in (found, wanted)
    ]
    assert tables[0][0] == tables[1][0] and len(tables[0]) == len(tables[1])
    for mine, theirs in zip(tables[0][1:], tables[1][1:], strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a == b or float(a) == pytest.approx(float(b), rel=1e-5)


def test_three_processes_train_the_weights_of_one(whole, tmp_path):
    """In two parts each, some of one row and one of two."""
    done = start(tmp_path, 3, accumulate=2)
    assert done.returncode == 0, done.stderr
    assert_near(tmp_path / "run" / "checkpoints" / whole.name, whole)
    first, *others = (
        torch.load(tmp_path / f"weights-{rank}.pt", weights_only=True) for rank in range(3)
    )
    for other in others:
        assert all(torch.equal(value, first[name]) for name, value in other.items())


def test_two_processes_align_as_one_does(tmp_path):
    whole = train(replace(SMALL, repa_depth=1), tmp_path / "one")
    done = start(tmp_path, 2, repa=1)
    assert done.returncode == 0, done.stderr
    assert_near(tmp_path / "run" / "checkpoints" / whole.name, whole)


def test_a_killed_rank_ends_the_job_with_a_sentence_and_another_job_completes_it(whole, tmp_path):
    """Rank 1 dies in step 4, so the leader has at least saved step 2."""
    done = start(tmp_path, 2, dies=4)
    assert done.returncode != 0
    # Whichever comes first, the broken connection or torchrun's own signal.
    assert re.search("another (of its processes|process of this job) has ended", done.stderr)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000002.pt"]
    again = start(tmp_path, 2)
    assert again.returncode == 0, again.stderr
    assert_near(tmp_path / "run" / "checkpoints" / whole.name, whole)


def test_parts_of_a_batch_are_its_rows_each_once():
    whole = Run(SMALL, Path("unused"), device="cpu").batch(3)
    found = []
    for rank in range(3):
        run = Run(SMALL, Path("unused"), device="cpu")
        run.ranks = Ranks(rank, 3)
        found += run.parts(3)
    for at, wanted in enumerate(whole):
        rows = torch.cat([part[at].reshape(len(part[at]), -1) for part in found])
        wanted = wanted.reshape(len(wanted), -1)
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, wanted.tolist()))


def test_accumulation_is_the_same_step(whole, tmp_path):
    assert_near(train(replace(SMALL, accumulate=3), tmp_path / "run"), whole)


def test_a_batch_has_a_row_for_every_part(tmp_path):
    with pytest.raises(UsageError, match="a batch of 7 cannot be shared by 1 processes"):
        train(replace(SMALL, accumulate=8), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_only_a_lost_connection_is_another_process_s_end():
    with pytest.raises(ProbeError, match="another process"), alive():
        raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:1] Connection closed")
    with pytest.raises(RuntimeError, match="shape"), alive():
        raise RuntimeError("shape")
