"""What type checkers, and so editors, make of a script of a user who installed dar-probe."""

import shutil
import subprocess
import sys

import pytest

SCRIPT = """
import torch
from torch import nn

import dar_probe as dp

analysis = dp.analyze("ckpt.pt", samples=4, name="mine")
value: float = analysis.metrics["inflation"].value
status: str = analysis.verdict.status
module = nn.Linear(2, 2)
found: dp.Analysis = dp.audit(
    module,
    batch=lambda i, s: ((torch.zeros(len(i), 2),), {}),
    loss=lambda out, i, s: out.square().mean(1),
)
same: dp.Analysis = dp.analyze(module, batch=lambda i, s: ((torch.zeros(len(i), 2),), {}))
with dp.Probe("ckpt.pt") as probe:
    args, kwargs = probe.inputs(0.5)
    plain: nn.Module = probe.module
wrong: int = found.name
dp.analyze("ckpt.pt", sampels=3)
"""
WRONG = [len(SCRIPT.splitlines()) - 1, len(SCRIPT.splitlines())]  # the last two lines


# To read torch and the rest takes a minute, and what is asked are our own types.
MYPY = """[mypy]
strict = True
follow_imports = skip
[mypy-dar_probe.*]
follow_imports = silent
"""


# basedpyright is pyright with a Node.js of its own: pip alone installs it.
@pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
def test_a_script_of_a_user_is_understood(tmp_path, checker):
    program = shutil.which(checker, path=str(sys.prefix) + "/bin") or shutil.which(checker)
    if program is None:
        pytest.skip(f"{checker} is not installed")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')  # pyright's
    (tmp_path / "mypy.ini").write_text(MYPY)
    strict = {
        "mypy": ["--python-executable", sys.executable],
        "basedpyright": ["--pythonpath", sys.executable],
    }
    said = subprocess.run(
        [program, *strict[checker], "script.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    errors = [line for line in said.splitlines() if "error" in line and "script.py" in line]
    places = sorted(int(line.partition("script.py:")[2].partition(":")[0]) for line in errors)
    assert places == WRONG, said
