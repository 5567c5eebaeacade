"""Every benchmark script runs, and prints its table: sizes are tiny and no time is judged."""

import math
import re
from pathlib import Path

import pytest

from tests.helpers import warm

HERE = Path(__file__).resolve().parent
ROWS = {
    "alternatives": [
        "floor", "our probe", "explicit gates through autograd",
        "cache of every module, by hooks", "one pass per noise level",
        "nnsight, reduced in numpy",
    ],
    "cost": [
        "2 x 64, 16 tokens", "2 x 16, 16 tokens, narrow", "2 x 16, 4 tokens, narrow, short",
        "2 x 64, 16 tokens, DAR static+t S=4", "2 x 64, 16 tokens, DAR dynamic S=4",
    ],
    "growth": [
        "2 x 64, 16 tokens", "4 x 64, 16 tokens", "2 x 64, 64 tokens", "2 x 16, 16 tokens",
    ],
    "memory": ["residual", "dynamic"],
    "offload": ["1 + 2", "2 + 4", "projected: 19 + 38"],
    "precision": ["rms", "grad_rms", "cosine", "write_rms", "gate", "query_share", "write_lost"],
    "recompute": ["2 x 64, 16 tokens", "4 x 64, 16 tokens"],
    "routing": [
        "residual", "static S=4", "static+t S=4", "dynamic S=4", "static dense", "static+t dense",
        "dynamic dense", "AttnRes", "naive static S=4", "naive static dense",
        "naive dynamic dense",
    ],
    "verdict": [
        "imports", "analyze: verdict on the screen", "analyze", "analyze --no-figures", "figures",
    ],
    "watch": ["2 x 16, residual", "2 x 16, dar"],
    "xl": ["SiT-S/8"],
}  # fmt: skip
NUMBER = re.compile(r"[-+]?\d+\.\d+(?:e[-+]\d+)?")


def test_every_script_is_here():
    scripts = {path.stem for path in HERE.glob("*.py")} - {"common", "test_bench_scripts"}
    scripts -= {"first_view"}  # it times Chromium; tests/reports/test_browser.py drives the page
    assert scripts == set(ROWS)


NEEDING = {"offload": pytest.mark.extras}  # diffusers and accelerate


@pytest.mark.parametrize("name", [pytest.param(n, marks=NEEDING.get(n, ())) for n in ROWS])
def test_script(name):
    done = warm.script(HERE / f"{name}.py", "--small", "--threads", 1, "--repeats", 1)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    rows = {
        cells[0]: cells[1:]
        for line in lines
        if line.startswith("|") and (cells := [c.strip() for c in line.strip("|").split("|")])
    }
    assert set(ROWS[name]) <= set(rows), sorted(rows)
    for row in ROWS[name]:
        numbers = [float(n) for cell in rows[row] for n in NUMBER.findall(cell)]
        assert numbers or row == "write_lost"
        assert all(map(math.isfinite, numbers))
    assert "nan" not in done.stdout.split("Machine:")[0].lower().split()
    assert re.fullmatch(r"Machine: .+ \(cpu\), 1 threads, torch \S+", lines[-1])
