"""No command turns to a network: nothing is tried, in Python or below it, not only nothing got."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("offline.py")
NAMESPACE = ["unshare", "--user", "--map-root-user", "--net"]
# What a person may have set to keep libraries quiet, so that they are quiet without it.
ASIDE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")


def namespace():
    """The command that starts a process without a network; empty where the kernel refuses."""
    try:
        done = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return []
    return NAMESPACE if done.returncode == 0 else []


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the script says, run where a connection could be made in no way if possible."""
    folder = tmp_path_factory.mktemp("offline")
    environment = {k: v for k, v in os.environ.items() if k not in ASIDE}
    done = subprocess.run(
        [*namespace(), sys.executable, SCRIPT],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**environment, "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_command_runs_to_its_end_and_calls_nobody(found):
    assert {name: code for name, (code, _) in found["done"].items() if code != 0} == {}
    assert {name.split()[0] for name in found["done"]} >= {
        "analyze", "report", "compare", "figures", "ablate", "audit", "bench", "train", "inspect",
        "doctor",
    }  # fmt: skip
    assert found["attempts"] == []
    assert found["planted"][0], "the guard has not seen the attempt that was made on purpose"


def test_nothing_below_python_sends_anything(found):
    if not namespace():
        pytest.skip("the kernel lets no user make a network namespace")
    before, after = found["sent"]
    assert after == before
    assert found["planted"][1] != before, "the counters have not seen the attempt made on purpose"
