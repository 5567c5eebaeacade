"""Runs the command line as a person does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "fixtures"


def interruptible():
    """Undo in a child that a shell ignores Ctrl-C for what it runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(*arguments, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-m", "dar_probe.cli", *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=cwd,
        env={**os.environ, "COLUMNS": "80", **environment},
    )  # fmt: skip
