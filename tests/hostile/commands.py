"""The commands that write, on tiny inputs, each run in a fork of this process or within one.

Pages and drawings are plain and quick here: where bytes go is the point, not what they show. What
writes them, and everything before and after it, is the real thing.
"""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.lines import Line2D

from dar_probe import cli
from dar_probe.reports import printing
from dar_probe.reports.draw import matplotlib
from dar_probe.reports.figures import differences, registry
from dar_probe.reports.pages import analysis, comparison
from dar_probe.results import assemble, store
from tests.helpers import tiny
from tests.helpers.shell import without_progress

FOLLOWS = " follow ...\n"
GRID = ["--samples", "4", "--noise-levels", "2", "--batch-size", "4"]
HTML = "<!DOCTYPE html><html>" + "x" * 200_000 + "</html>\n"
MODULE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.linear(self.norm(x))

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
"""


@dataclass(frozen=True)
class Command:
    """A command line up to ``--out``, of inputs in one folder.

    Attributes:
        name: of the case.
        words: with {home} for the folder of the inputs.
        resumes: it takes ``--resume``.
        kind: what its folder is, see ``OutputFolder``; "" where other files may lie in it.
    """

    name: str
    words: str
    resumes: bool = False
    kind: str = "analysis"

    def line(self, home: Path, out: str | Path, *more: str) -> list[str]:
        words = self.words.format(home=home).split()
        return [*words, "--out", str(out), *more, *["--resume"] * self.resumes]


GRIDDED = f"--data latents:{{home}}/rows.npz {' '.join(GRID)}"
COMMANDS = {
    command.name: command
    for command in (
        Command("analyze", f"analyze {{home}}/model-1.pt {GRIDDED}", resumes=True),
        Command(
            "steps", f"analyze {{home}}/model-1.pt {{home}}/model-2.pt {GRIDDED}", resumes=True
        ),
        Command("ablate", f"ablate {{home}}/model-1.pt {GRIDDED} --kinds block", resumes=True),
        Command("audit", "audit audited_module:Small --samples 2 --input 4,8"),
        Command("report", "report {home}/analyze"),
        Command("compare", "compare {home}/analyze {home}/ablate", kind="comparison"),
        Command("figures", "figures {home}/analyze --format png,pdf", kind=""),
    )
}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def named(self) -> list[str]:
        """The lines of stdout that tell of files; a verdict is told before they are written."""
        return self.stdout.rpartition(FOLLOWS)[2].splitlines()

    def refused(self, code: int = 2) -> str:
        """Check that it ended with one sentence and a hint, and return them."""
        assert self.code == code, (self.code, self.stderr)
        lines = without_progress(self.stderr).splitlines()
        assert len(lines) == 2 + lines[-1].startswith("More: "), self.stderr
        assert lines[0].startswith("Error: ") and lines[1].startswith("Hint: "), self.stderr
        assert all(Path(line).is_file() for line in self.named), self.stdout
        return self.stderr


def call(line: list[str]) -> Done:
    """Run a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["dar-probe", *line]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            cli.main()
    except SystemExit as leaving:
        assert isinstance(leaving.code, int), leaving.code
        return Done(leaving.code, out.getvalue(), err.getvalue())
    finally:
        sys.argv = before
    raise AssertionError("main returned")


def forked(body: Callable[[], object]) -> int:
    """Run ``body`` in a fork, raise here what it asserts, and return the signal it died of or 0."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            body()
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    if told:
        raise AssertionError(told)
    return os.WTERMSIG(status)


def files(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files below ``folder``."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def hidden(folder: Path) -> set[str]:
    """Return what is left of the commands' own work beside their output and in it."""
    found = (path.relative_to(folder).parts for path in folder.rglob(".*"))
    return {parts[-1] for parts in found if not any(part[0] == "." for part in parts[:-1])}


def state(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Return what changes where anything below ``folder`` is written."""
    found = ((path, path.lstat()) for path in folder.rglob("*"))
    return {path: (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns) for path, s in found}


@contextmanager
def inputs(home: Path) -> Iterator[dict[str, "Output"]]:
    """Fill ``home``, quicken pages and drawings, and yield what every command writes, by name.

    ``home`` then holds a folder of each command's name with its output.
    """
    synced: list[int] = []
    fsync = os.fsync
    for step in (1, 2):
        model = tiny.model(size=8, dtype=torch.float32, seed=step)
        torch.save(
            {"ema": model.state_dict(), "args": argparse.Namespace(num_heads=2)},
            home / f"model-{step}.pt",
        )
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4, 1, 8, 8), dtype=np.float32)
    np.savez(home / "rows.npz", latents=rows, labels=np.arange(4))
    (home / "audited_module.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.syspath_prepend(home)
        patch.setattr(analysis, "render", lambda *_, **__: HTML)
        patch.setattr(comparison, "render", lambda *_, **__: HTML)
        patch.setattr(registry, "FIGURES", {"dilution": registry.FIGURES["dilution"]})
        patch.setattr(registry, "MAIN", ("dilution",))
        patch.setattr(printing, "draw", _drawn)
        patch.setattr(matplotlib, "draw", _drawn)
        patch.setattr(differences, "drawable", lambda _: False)
        patch.setattr(assemble, "datetime", _Stopped)
        patch.setattr(store, "read", _remembered(store.read))
        found = {}
        with pytest.MonkeyPatch.context() as counted:
            counted.setattr(os, "fsync", lambda file: (synced.append(file), fsync(file))[1])
            for command in COMMANDS.values():
                synced.clear()
                done = call(command.line(home, home / command.name))
                assert done.code == 0, done.stderr
                found[command.name] = Output(files(home / command.name), len(synced))
        assert hidden(home) == set()
        yield found


@dataclass(frozen=True)
class Output:
    """What a command writes when nothing disturbs it: its files, and how often it syncs."""

    files: dict[str, bytes]
    syncs: int


def _drawn(*_: object, **__: object) -> matplotlib.Figure:
    drawn = matplotlib.figure(1, 1)
    drawn.set_layout_engine("none")
    drawn.add_artist(Line2D([0, 1], [0, 1]))  # no text: fonts would take most of the time
    return drawn


def _remembered(read: Callable[[Path], xr.Dataset]) -> Callable[[Path], xr.Dataset]:
    known: dict[tuple[object, ...], xr.Dataset] = {}

    def again(path: Path) -> xr.Dataset:
        if not path.exists():
            return read(path)
        found = path.stat()
        key = (path, found.st_ino, found.st_size, found.st_mtime_ns)
        if key not in known:
            known[key] = read(path)
        return known[key].copy(deep=True)

    return again


class _Stopped(datetime):
    """A clock that gives equal runs equal bytes."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "_Stopped":
        return cls(2026, 1, 1, tzinfo=tz)
