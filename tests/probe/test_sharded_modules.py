"""Modules that processes share are measured as one process measures them alone."""

import json
import re

import numpy as np
import pytest
import torch

import dar_probe as dp
from dar_probe.errors import UsageError
from dar_probe.training.config import TrainConfig
from dar_probe.training.loop import checkpoint_args
from tests.helpers import sharded, tiny, warm
from tests.helpers.shell import FIXTURES, torchrun

# Played with the others in the slow lane.
SLOW = (
    "every module", "recomputed", "norms as functions, every module", "blocks alone",
    "all at once", "kept after the forward", "post-norm", "norms as functions",
    "copies of pieces", "ablated residual", "ablated dar-static-2", "flux", "sd3", "bfloat16",
    "trained after a failure",
)  # fmt: skip
QUICK = tuple(name for name in sharded.SCENES if name not in SLOW)


def play(folder, names):
    script = folder / "job.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom tests.helpers.sharded import play\n"
        "play(Path(sys.argv[1]), sys.argv[2:])\n"
    )
    done = warm.ranks(2, script, folder, *names)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return play(tmp_path_factory.mktemp("quick"), QUICK)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    return play(tmp_path_factory.mktemp("slow"), SLOW)


# Left over where gates cancel: as large as the rounding that differs.
ROUNDING = ("gate_conservation", "read_residual", "write_lost")


def assert_same(found, *, within=0.0):
    """Every process has the numbers of the module alone, its names, its facts and its sites."""
    for one in found:
        assert not one["said"] and one["axes"], one
        wrong = {name: error for name, error in one["error"].items() if error > within}
        assert not wrong.keys() - (ROUNDING if within else ()), wrong


EQUAL = [
    name
    for name in sharded.SCENES
    if name.startswith(("blocks", "all", "every", "kept", "post", "norms", "recomp", "copies",
                        "ablated", "flux", "sd3"))
]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in EQUAL if name in QUICK])
def test_what_fsdp_shards_is_measured_bit_for_bit(quick, name):
    assert_same([one[name] for one in quick])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EQUAL if name in SLOW])
def test_what_fsdp_shards_in_other_ways_is_measured_bit_for_bit(slow, name):
    assert_same([one[name] for one in slow])


@pytest.mark.parametrize("name", ["tensor parallel", "two dimensions", "a long skip"])
def test_what_is_summed_in_another_order_is_measured_to_rounding(quick, name):
    """A state that is used outside of its block as well has the gradient of both, from there."""
    # Measured: 6e-7.
    assert_same([one[name] for one in quick], within=6e-6)


@pytest.mark.slow
def test_weights_that_fsdp_casts_to_16_bits_give_numbers_near(slow):
    for one in slow:
        error = one["bfloat16"]["error"]
        # Measured: 0.0014, 0.0035 and 0.022.
        assert error["rms"] < 0.01 and error["grad_rms"] < 0.02 and error["gate"] < 0.1


@pytest.mark.parametrize("name", ["trained", "trained from the start"])
def test_training_goes_on_as_if_nobody_had_looked(quick, name):
    for one in quick:
        mine, theirs = one[name]["losses"]
        assert one[name]["kept"] and mine == theirs


@pytest.mark.slow
def test_training_goes_on_after_an_audit_that_failed_half_way(slow):
    for one in slow:
        mine, theirs = one["trained after a failure"]["losses"]
        assert one["trained after a failure"]["kept"] and mine == theirs


@pytest.mark.parametrize(("name", "why"), [
    ("sequence of DTensors", "ProbeError: what 'blocks.0' takes or returns is spread over"),
    ("sequence of parts", "ProbeError: the processes that share this module see different states"),
    ("inputs of the rank", "UsageError: the batch function gives the processes of a sharded"),
    ("another question", "UsageError: the processes of a sharded module ask for different"),
    ("copy", "UsageError: a module that is sharded over processes cannot be copied"),
    ("watch", "UsageError: the parameters of this module are sharded over processes, and one"),
    ("probe", "UsageError: the parameters of this module are sharded over processes, and one"),
    ("moved", "UsageError: a module that is sharded over processes is measured where it is"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_by_every_process(quick, name, why):
    for one in quick:
        assert one[name].startswith(why), one[name]


def test_the_leader_writes_and_a_finished_analysis_is_found(quick, tmp_path):
    for one in quick:
        assert one["written"] == {"once": 2, "twice": 2}


JOB = """
import sys
import torch
import dar_probe as dp
torch.set_num_threads(1)
dp.analyze(sys.argv[1], data=sys.argv[3], noise_levels=2, samples=3, batch_size=2, shard=True,
           out=sys.argv[2], figures=False, report=False)
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint with a router."""
    path = tmp_path_factory.mktemp("small") / "model.pt"
    model = tiny.model(size=8, dtype=torch.float32, **tiny.ROUTINGS[3])
    settings = checkpoint_args(TrainConfig(), model.config.to_dict())
    torch.save({"ema": model.state_dict(), "args": settings}, path)
    return path


@pytest.mark.parametrize(("kind", "processes"), [
    ("ours", 2), pytest.param("ours", 3, marks=pytest.mark.slow),
    pytest.param("diffusers", 2, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_checkpoint_is_shared_out_over_the_ranks(tmp_path, small, kind, processes):
    """One of ours bit for bit; of diffusers to rounding: weights of a file lie otherwise."""
    path, out, data = small, tmp_path / "out", "digits"
    if kind == "diffusers":
        pytest.importorskip("diffusers")
        from tests.models.diffusers import tiny as models

        path, data = models.save("dit", tmp_path / "dit"), f"latents:{tmp_path / 'x.npz'}"
        x = np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32)
        np.savez(tmp_path / "x.npz", latents=x, labels=np.arange(3))
    script = tmp_path / "job.py"
    script.write_text(JOB)
    done = warm.ranks(processes, script, path, out, data, light=True)
    assert done.returncode == 0, done.stderr
    alone = dp.analyze(path, data=data, noise_levels=2, samples=3, batch_size=2)
    found = sharded.compared(dp.open_analysis(out), alone)
    # Measured of diffusers: 3e-7.
    assert_same([found], within=2e-6 if kind == "diffusers" else 0.0)


def test_without_torchrun_no_model_is_shared_out(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    path = FIXTURES / "digits-residual.pt"
    done = warm.run("analyze", path, "--shard")
    assert done.returncode == 2 and "over the processes of torchrun" in done.stderr
    with pytest.raises(UsageError, match="over the processes of torchrun"):
        dp.ablate(path, shard=True)
    with pytest.raises(UsageError, match="shard is for analyze and ablate"):
        dp.Probe(path, shard=True)
    with pytest.raises(TypeError, match="shard"):
        dp.inspect(path, shard=True)


KILLED = """
import os, sys, threading, time
import torch
import dar_probe as dp
torch.set_num_threads(1)
after = float(sys.argv[3])
begun = threading.Event()
def watch():
    begun.wait()
    time.sleep(after)
    os._exit(9)
if os.environ["RANK"] == "1":
    threading.Thread(target=watch, daemon=True).start()
dp.analyze(sys.argv[1], noise_levels=8, samples=8, batch_size=2, shard=True, out=sys.argv[2],
           figures=False, report=False, on_cells=lambda done, cells: begun.set())
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_killed_rank_ends_the_job_and_the_folder_is_continued(tmp_path, small, seed):
    script, out = tmp_path / "job.py", tmp_path / "out"
    script.write_text(KILLED)
    path = small
    after = float(np.random.default_rng(seed).uniform(0, 0.5))
    done = torchrun(2, script, path, out, after)
    assert done.returncode != 0 and not out.exists()
    # Whichever comes first, the broken connection or torchrun's own signal.
    assert re.search("another (of its processes|process of this job) has ended", done.stderr)
    kept = len(list((tmp_path / ".out.partial").glob("*.npz")))
    assert 0 < kept < 32
    cells = []
    settings = {"noise_levels": 8, "samples": 8, "batch_size": 2}
    found = dp.analyze(
        path, **settings, out=out, resume=True, figures=False, report=False,
        on_cells=lambda done, cells_: cells.append(done),
    )  # fmt: skip
    assert cells[0] >= 2 * kept
    assert_same([sharded.compared(found, dp.analyze(path, **settings))])
