"""The command line as a person and as a script use it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from dar_probe.analysis import open_analysis
from dar_probe.checkpoints.naming import folder_name
from dar_probe.training.config import TrainConfig
from dar_probe.training.loop import train
from tests.helpers.shell import interruptible, run, run_alone, without_progress
from tests.helpers.warm import begin

SMALL = TrainConfig(depth=3, width=16, batch_size=16, steps=30, lr=3e-3, warmup=5)
QUICK = ["--samples", "3", "--noise-levels", "2"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = replace(SMALL, routing="dar", query="static+t", chunk_size=2)
    return train(config, folder / "run")


@pytest.fixture(scope="module")
def analysed(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("analysed")
    done = run_alone("analyze", checkpoint, *QUICK, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "dar-probe-out" / folder_name(checkpoint), done


def test_analyze_writes_the_files_of_the_contract(analysed):
    folder, done = analysed
    assert {p.name for p in folder.iterdir()} == {
        "analysis.nc", "report.html", "summary.json", "figures",
    }  # fmt: skip
    figures = {p.name for p in (folder / "figures").iterdir()}
    assert {f"{name}.{suffix}" for name in ("dilution", "sources") for suffix in ("png", "pdf")} | {
        f"heatmap_{name}.png" for name in ("rms", "grad_rms", "cosine")
    } <= figures
    assert not [p for p in folder.parent.iterdir() if p != folder]
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) >= {"verdict", "findings", "metrics", "assumptions"}
    assert set(summary["metrics"]["inflation"]) == {"value", "low", "high"}
    analysis = open_analysis(folder)
    assert analysis.dataset.sizes["sample"] == 3
    assert analysis.dataset["sample"].values.tolist() == [3, 10, 17]  # held-out rows
    assert analysis.manifest["config"]["objective"] == "sit"


def test_summary_fits_80_columns_and_names_the_report(analysed):
    folder, done = analysed
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "report.html" in done.stdout and "redundancy" in done.stdout
    parts = [line.split("  ")[0] for line in done.stderr.splitlines()]
    assert parts == ["measuring", "writing", "drawing"]
    assert without_progress(done.stderr) == ""


def test_summary_without_colours(checkpoint, tmp_path):
    out = tmp_path / "out"
    done = run("analyze", checkpoint, *QUICK, "--out", out, NO_COLOR="1", light=True)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout


def test_json_on_stdout(checkpoint, tmp_path):
    done = run("analyze", checkpoint, *QUICK, "--json", "--out", tmp_path / "out", light=True)
    summary = json.loads(done.stdout)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())


def test_second_analysis_replaces_the_first(checkpoint, tmp_path):
    out = tmp_path / "out"
    assert run("analyze", checkpoint, *QUICK, "--out", out, light=True).returncode == 0
    other = ["--samples", 2, "--noise-levels", "0.5,"]
    done = run("analyze", checkpoint, *other, "--out", out, light=True)
    assert done.returncode == 0, done.stderr
    found = open_analysis(out).dataset
    assert found.sizes["sample"] == 2 and found["noise_level"].values.tolist() == [0.5]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_folder_with_anything_else_is_refused(checkpoint, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    done = run("analyze", checkpoint, *QUICK, "--out", tmp_path)
    assert done.returncode == 2 and "thesis.tex" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_report_renders_again_without_torch(analysed, tmp_path):
    folder, _ = analysed
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"sys.argv = ['dar-probe', 'report', {str(folder)!r}]\n"
        f"sys.argv += ['--out', {str(tmp_path / 'again')!r}]\n"
        "from dar_probe.cli import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("summary.json", "report.html", "figures/dilution.pdf", "figures/dilution.png"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


def test_inspect(checkpoint):
    done = run("inspect", checkpoint, "--json")
    facts = json.loads(done.stdout)
    assert (facts["family"], facts["depth"], facts["width"]) == ("dar-probe", 3, 16)
    assert (facts["routing"], facts["query"], facts["chunk_size"]) == ("dar", "static+t", 2)
    assert (
        facts["parts"]["stream"] == 7 * 2 * 16
        and sum(facts["parts"].values()) == (facts["parameters"])
    )
    assert facts["flops"] > 0 and facts["sites"][0] == "3 blocks, 7 readers, 7 sources"
    shown = run("inspect", checkpoint)
    assert shown.returncode == 0 and max(map(len, shown.stdout.splitlines())) <= 80
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert {"in channels 1", "learn sigma no", "null class yes", "projectors none"} <= set(lines)


def test_train_analyze_resume(tmp_path):
    (tmp_path / "run.toml").write_text("depth = 2\nwidth = 16\nbatch_size = 8\nwarmup = 1\n")
    arguments = ["train", "--config", "run.toml", "--steps", 4, "--out", "run", "--device", "cpu"]
    arguments += ["--probe-every", 2]
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0 and "Trajectory  run/trajectory.nc" in done.stderr
    again = run(*arguments, cwd=tmp_path)
    assert again.returncode == 2 and "--resume" in again.stderr
    assert run(*arguments, "--resume", cwd=tmp_path).returncode == 0
    state = torch.load(tmp_path / "run" / "checkpoints" / "step-0000004.pt", weights_only=True)
    assert state["args"]["train"]["width"] == 16 and state["step"] == 4
    drawn = run("figures", "run/trajectory.nc", "--only", "trajectory", "--out", ".", cwd=tmp_path)
    assert drawn.returncode == 0 and (tmp_path / "trajectory.png").is_file()
    shown = run("report", "run/trajectory.nc", cwd=tmp_path)
    assert shown.returncode == 2 and "no part of an analysis" in shown.stderr  # nothing is lost
    assert (tmp_path / "run" / "checkpoints").is_dir()


FACTORY = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.norm, self.mlp, self.gain = nn.LayerNorm(8), nn.Linear(8, 8), gain
    def forward(self, x):
        return x + self.gain * self.mlp(self.norm(x))

class Model(nn.Module):
    def __init__(self, gain):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(gain(k)) for k in range(12))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 8)
        nn.init.normal_(self.norm.weight, 1.0, 0.1)  # as training leaves it
    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

def diluted():
    return Model(lambda k: 0.01)

def lively():
    return Model(lambda k: 2.0)

def with_batch():
    def batch(ids, level):
        rows = [torch.randn(4, 8, generator=torch.Generator().manual_seed(int(i))) for i in ids]
        return (torch.stack(rows),), {}
    return lively(), batch, lambda out, ids, level: out.square().mean((1, 2))
"""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["mine:diluted", "--input", "4,8"], 1, "redundancy"),
        (["mine:lively", "--input", "4,8", "--fail-on", "redundancy > 0.999"], 0, "not meet"),
        (["mine:with_batch", "--fail-on", "inflation > 1e9", "--noise-levels", "0.1,0.9"], 0, ""),
    ],
)
def test_audit(tmp_path, arguments, code, words):
    (tmp_path / "mine.py").write_text(FACTORY)
    done = run("audit", *arguments, cwd=tmp_path, light=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "dar-probe-out").exists()


def test_fail_on(tmp_path, checkpoint):
    for limit, code in ((0, 1), (1, 0)):
        rule = ["--fail-on", f"redundancy > {limit}"]
        done = run("analyze", checkpoint, *QUICK, *rule, cwd=tmp_path, light=True)
        assert done.returncode == code, limit


def test_debug_shows_the_traceback(tmp_path):
    done = run("analyze", tmp_path / "nowhere.pt", "--debug")
    assert done.returncode == 3 and "Traceback" in done.stderr


def test_hostile_checkpoint_name(tmp_path, checkpoint):
    name = "a\n</script>$\\frac{" + "x" * 150 + ".pt"
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / name.replace("/", "_")
    path.write_bytes(checkpoint.read_bytes())
    done = run("analyze", path, *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in (tmp_path / "dar-probe-out").iterdir()] == [path.stem]


def test_latents_and_levels(tmp_path, checkpoint):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", latents=x, labels=np.arange(6))
    done = run(
        "analyze", checkpoint, "--data", "latents:mine.npz", "--samples", 4,
        "--noise-levels", "0,0.25,1", "--out", "out", cwd=tmp_path, light=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = open_analysis(tmp_path / "out").dataset
    assert found["noise_level"].values.tolist() == [0, 0.25, 1]
    assert found["timestep"].values.tolist() == [1, 0.75, 0]
    assert found["sample"].values.tolist() == [0, 1, 2, 3]


def test_killed_analysis_is_resumed(tmp_path, checkpoint):
    arguments = [
        "analyze", checkpoint, "--samples", "60", "--noise-levels", "6", "--batch-size", "8",
        "--out", "out",
    ]  # fmt: skip
    there = {"cwd": tmp_path, "light": True}
    whole = run(*arguments[:-1], "whole", **there)
    assert whole.returncode == 0, whole.stderr
    child = begin(*arguments, **there)
    partial = tmp_path / ".out.partial"
    while len(list(partial.glob("*.npz"))) < 10:
        time.sleep(0.005)
    os.kill(child.process, signal.SIGSTOP)  # it holds the folder, and cannot end meanwhile
    busy = run(*arguments, **there)
    os.kill(child.process, signal.SIGKILL)
    assert child.wait().returncode == -signal.SIGKILL
    assert busy.returncode == 2 and "another process" in busy.stderr
    assert not (tmp_path / "out").exists()
    other = run(*arguments, "--seed", 1, "--resume", **there)
    assert other.returncode == 2 and "other settings" in other.stderr
    stamps = {p: p.stat().st_mtime_ns for p in partial.glob("*.npz")}
    assert len(stamps) >= 10
    resumed = run(*arguments, "--resume", **there)
    assert resumed.returncode == 0, resumed.stderr
    a, b = (open_analysis(tmp_path / name).dataset for name in ("whole", "out"))
    for name in a.data_vars:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    began = time.monotonic()
    finished = run(*arguments, "--resume", **there)
    assert finished.returncode == 0 and time.monotonic() - began < 60
    assert not partial.exists()


def test_interrupt_leaves_nothing_half_written(tmp_path, checkpoint):
    child = subprocess.Popen(
        [sys.executable, "-m", "dar_probe.cli", "analyze", str(checkpoint), "--samples", "200",
         "--noise-levels", "20", "--batch-size", "4", "--out", "out"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible,
    )  # fmt: skip
    while len(list((tmp_path / ".out.partial").glob("*.npz"))) < 3:
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate()
    assert child.returncode == 130 and "--resume" in stderr and "Traceback" not in stderr
    assert [p.name for p in tmp_path.iterdir()] == [".out.partial"]


def test_version():
    from dar_probe import __version__

    assert run_alone("--version").stdout.strip() == f"dar-probe {__version__}"
