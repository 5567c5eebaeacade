"""Kills analyze, train and report at random moments, looks at what lies there, and resumes.

    python tests/hostile/kill.py --count 200 [--seed 0]

At a final name there must be the old valid file, the new valid file or none; then --resume must
give what an uninterrupted run gives, bit for bit. Every command runs in a fork of this process, so
that a moment falls into the work and not into imports. Exit code 1 if anything else was seen.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, tests is no package on the path

from dar_probe import checkpoints  # noqa: E402
from dar_probe.analysis import Analysis, open_analysis  # noqa: E402
from dar_probe.cli import app  # noqa: E402
from dar_probe.files.analysis_folder import CONTENTS  # noqa: E402
from dar_probe.reports import printing  # noqa: E402, F401  (imported before the forks)
from dar_probe.reports.pages import analysis  # noqa: E402, F401  (imported before the forks)
from tests.helpers import tiny  # noqa: E402

ENDS = {".png": b"IEND\xaeB`\x82", ".pdf": b"%%EOF\n", ".html": b"</html>"}


class Analyse:
    """``analyze``, over an earlier analysis with other samples or over nothing."""

    made = {"old": 2, "new": 4}  # samples of the analyses that lie there before

    def __init__(self, home: Path) -> None:
        self.home, self.checkpoint = home, home / "model.pt"
        model = tiny.model(size=8, dtype=torch.float32)
        torch.save({"ema": model.state_dict(), "args": argparse.Namespace(num_heads=2)},
                   self.checkpoint)  # fmt: skip
        for name, samples in self.made.items():
            call(*self.arguments(home / name, samples))
        self.wanted = open_analysis(home / "new").dataset

    def arguments(self, out: Path, samples: int = 4) -> list[object]:
        grid = ["--samples", samples, "--noise-levels", "5", "--batch-size", "2"]
        return ["analyze", self.checkpoint, "--data", "digits", *grid, "--out", out, "--resume"]

    def begin(self, rng: random.Random) -> Path:
        out = self.home / "out"
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(self.home / ".out.partial", ignore_errors=True)
        if rng.random() < 0.5:
            shutil.copytree(self.home / "old", out)
        return out

    def look(self, out: Path) -> str:
        if not out.exists():
            return "none"
        return "new" if valid(out).dataset.sizes["sample"] == 4 else "old"

    def check(self, out: Path) -> None:
        found = valid(out).dataset
        for name in self.wanted.data_vars:
            np.testing.assert_array_equal(found[name].values, self.wanted[name].values)
        assert not (self.home / ".out.partial").exists()


class Report(Analyse):
    """``report``, which renders the files of an analysis again, byte for byte."""

    made = {"new": 4}

    def arguments(self, out: Path, samples: int = 4) -> list[object]:
        return ["report", out] if out.name == "out" else super().arguments(out, samples)

    def begin(self, rng: random.Random) -> Path:
        out = self.home / "out"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(self.home / "new", out)
        return out

    def check(self, out: Path) -> None:
        assert files(out) == files(self.home / "new")


class Train:
    """``train`` with a checkpoint every ten steps."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.toml = home / "run.toml"
        self.toml.write_text(
            "depth = 2\nwidth = 16\nsteps = 60\nbatch_size = 8\ncheckpoint_every = 10\n"
            "validate_every = 20\nvalidation_samples = 8\nwarmup = 5\n"
        )
        call(*self.arguments(home / "whole"))
        self.wanted = files(home / "whole")

    def arguments(self, out: Path) -> list[object]:
        return ["train", "--config", self.toml, "--out", out, "--resume"]

    def begin(self, rng: random.Random) -> Path:
        shutil.rmtree(self.home / "run", ignore_errors=True)
        return self.home / "run"

    def look(self, out: Path) -> str:
        saved = sorted(out.glob("checkpoints/*.pt"))
        for path in saved:
            assert checkpoints.read(path).state
        return f"{len(saved)} checkpoints" if len(saved) < 6 else "new"

    def check(self, out: Path) -> None:
        found = files(out)
        for path, content in self.wanted.items():
            if path.suffix == ".pt":
                one, two = (torch.load(home / path, weights_only=True)
                            for home in (out, self.home / "whole"))  # fmt: skip
                assert same(one, two), path
            else:
                assert found[path] == content, path


CASES: dict[str, Callable[[Path], Analyse | Train]] = {
    "analyze": Analyse, "train": Train, "report": Report,
}  # fmt: skip


def call(*arguments: object) -> None:
    """Run one command in a fork, and wait for its good end."""
    status = os.waitpid(fork(*arguments), 0)[1]
    assert status == 0, f"{arguments} ended with {status}"


def fork(*arguments: object) -> int:
    child = os.fork()
    if child:
        return child
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        os.dup2(null, 2)
        app([str(a) for a in arguments], standalone_mode=False)
        os._exit(0)
    except BaseException as error:
        os.write(stderr, f"{arguments}: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(1)


def valid(out: Path) -> Analysis:
    """Open an analysis folder in which every file is whole."""
    assert {path.name for path in out.iterdir()} <= CONTENTS["analysis"]
    assert json.loads((out / "summary.json").read_text())["verdict"]
    for path in out.rglob("*.*"):
        if path.suffix in ENDS:
            assert path.read_bytes().rstrip(b"\n").endswith(ENDS[path.suffix].rstrip(b"\n")), path
    return open_analysis(out)


def files(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def same(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def kill(case: Analyse | Train, times: int, seed: int) -> Counter[str]:
    """Kill a command at ``times`` random moments of its whole duration; count what lay there."""
    rng, seen = random.Random(seed), Counter[str]()
    began = time.monotonic()
    call(*case.arguments(case.begin(rng)))
    whole = time.monotonic() - began
    for _ in range(times):
        out = case.begin(rng)
        child = fork(*case.arguments(out))
        time.sleep(rng.uniform(0, whole))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen[case.look(out)] += 1
        call(*case.arguments(out))
        case.check(out)
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="kills of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=CASES, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.only or CASES:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            seen = kill(CASES[name](Path(folder)), arguments.count, arguments.seed)
        found = ", ".join(f"{what} {n} times" for what, n in sorted(seen.items()))
        print(f"{name:8} {arguments.count} kills left {found}; all resumed bit for bit", flush=True)
        print(f"{'':8} {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
