"""A folder of good and bad files in which hostile command lines are tried."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dar_probe.results import store
from dar_probe.study import plan
from dar_probe.study import run as study
from dar_probe.training.config import TrainConfig
from dar_probe.training.loop import train
from tests.helpers.studies import finished
from tests.helpers.synthetic import dataset

MODULE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), nn.Linear(8, 8)
    def forward(self, x):
        return x + self.mlp(self.norm(x))

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 8)
        nn.init.normal_(self.norm.weight, 1.0, 0.1)  # as training leaves it
    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

def batch(ids, level):
    rows = [torch.randn(4, 8, generator=torch.Generator().manual_seed(int(i))) for i in ids]
    return (torch.stack(rows),), {}

def model():
    return Model(), batch, lambda out, ids, level: out.square().mean((1, 2))

def bare():
    return Model()

def endless():
    return Model(), batch, lambda out, ids, level: out.square().mean((1, 2)) * torch.inf

def nothing():
    return nn.Linear(2, 2)

def broken():
    return 1 / 0

def loud():
    print("hello")
    return model()

def rude():
    raise ValueError("two\\nlines \\x1b[31m red \\u202e" + "x" * 5_000)

number = 7
"""
NOT_UTF8 = os.fsdecode(b"\xff\xfe.pt")


class Playground:
    """Builds the files once in ``root``/pristine, and puts the playground back into that state.

    Commands run two folders below ``played``, so that what climbs out of theirs is seen.
    """

    def __init__(self, root: Path) -> None:
        self._played, self._pristine = root / "played", root / "pristine"
        self.folder = self._played / "a" / "b"
        home = self._pristine / "a" / "b"
        home.mkdir(parents=True)
        fill(home)
        self._before = self._copy()

    def changes(self) -> list[str]:
        """Return what was made, changed or removed since the last call, and undo it."""
        after = self._state()
        changed = sorted(repr(path) for path, _ in self._before.items() ^ after.items())
        if changed:
            shutil.rmtree(self._played)
            self._before = self._copy()
        return changed

    def _copy(self) -> dict[str, tuple[int, int]]:
        shutil.copytree(self._pristine, self._played, symlinks=True)
        os.mkfifo(self.folder / "pipe")  # who opens it waits for ever
        return self._state()

    def _state(self) -> dict[str, tuple[int, int]]:
        """Map every path to its inode and, of files, the time of the last change."""
        found = {}
        for where, folders, files in os.walk(self._played):
            folders[:] = [name for name in folders if name != "__pycache__"]
            for name in (*folders, *files):
                path = os.path.join(where, name)
                stat = os.lstat(path)
                changed = 0 if name in folders else stat.st_mtime_ns
                found[os.path.relpath(path, self._played)] = (stat.st_ino, changed)
        return found


def fill(folder: Path) -> None:
    """Write a tiny checkpoint of each kind, analyses, data, a module to audit and bad files."""
    small = TrainConfig(depth=2, width=8, batch_size=4, steps=1, warmup=1)
    for name, changes in (("plain", {}), ("dar", {"routing": "dar", "chunk_size": 2})):
        last = train(replace(small, **changes), folder / "run")
        shutil.move(last, folder / f"{name}.pt")
        shutil.rmtree(folder / "run")
    state = torch.load(folder / "plain.pt", weights_only=True)
    state["ema"]["blocks.1.mlp.fc2.bias"][0] = torch.nan
    torch.save(state, folder / "poisoned.pt")
    for name in ("analysis", "other"):
        (folder / name).mkdir()
        store.write(dataset(blocks=4, samples=2, levels=2), folder / name / "analysis.nc")
    (folder / "study" / "runs").mkdir(parents=True)
    for run in plan.runs(plan.scale_of("smoke"), only=["residual"]):
        path = study.record_path(folder / "study", run)
        finished(seed=run.seed, config=run.config.to_dict()).write(path)
    (folder / "tampered" / "runs").mkdir(parents=True)
    (folder / "tampered" / "runs" / "residual-seed0.json").write_text("{}")
    (folder / "mine.py").write_text(MODULE, encoding="utf-8")
    np.savez(folder / "latents.npz", latents=np.zeros((2, 1, 8, 8), np.float32), labels=[0, 1])
    (folder / "run.toml").write_text("depth = 1\n")
    (folder / "bad.toml").write_text("depth = \n")
    (folder / "empty").touch()
    (folder / "text.pt").write_text("hello")
    (folder / "page.pt").write_text("<!DOCTYPE html><html>")
    (folder / "text.nc").write_text("hello")
    (folder / "folder").mkdir()
    (folder / "folder" / "thesis.tex").write_text("precious")
    (folder / "loop").symlink_to("loop")
    shutil.copy(folder / "plain.pt", folder / NOT_UTF8)
