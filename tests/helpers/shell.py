"""Runs the command line as a person does."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.helpers.warm import run

__all__ = ["FIXTURES", "ROOT", "interruptible", "run", "run_alone", "without_progress"]

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"
PARTS = "measuring|intervening|writing|drawing|sampling|training|preparing|timing|testing"
PROGRESS = re.compile(rf"^(?:{PARTS})  .* in [\d:]+\n", re.MULTILINE)


def without_progress(stderr):
    """Leave out the line that a log gets at the end of each part of the work."""
    return PROGRESS.sub("", stderr)


def interruptible():
    """Undo in a child that a shell ignores Ctrl-C for what it runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_alone(*arguments, cwd=None, **environment):
    """Run a command in an interpreter of its own, start and end included; ``run`` is quicker."""
    return subprocess.run(
        [sys.executable, "-m", "dar_probe.cli", *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=cwd,
        env={**os.environ, "COLUMNS": "80", **environment},
    )  # fmt: skip


def torchrun(processes, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
         "--standalone", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
             "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
