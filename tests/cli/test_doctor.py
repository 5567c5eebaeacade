"""``dar-probe doctor``: what it shows, and that it fails where measuring does."""

import json
import math
import re
import tomllib
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from dar_probe.cli import app
from dar_probe.errors import ProbeError
from dar_probe.probe import self_test as module
from dar_probe.runtime import environment
from dar_probe.runtime.version import __version__
from tests.helpers.shell import ROOT, run, without_progress

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GOOD = module.SelfTest(
    device="cpu", gate_conservation=1e-3, read_residual=1e-7, limit=1e-2, seconds=1.0
)


def names(requirements):
    return {re.split(r"[<>=;\[ ]", one)[0] for one in requirements}


def invoked(monkeypatch, found, *arguments):
    def test(device):
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(module, "self_test", test)
    return CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "80"})


def test_the_real_one(tmp_path):
    done = run("doctor", "--device", "cpu", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["dar_probe"] == __version__ and found["libraries"]["torch"]
    assert found["devices"][0]["name"] == "cpu" and found["devices"][0]["free"] > 2**20
    assert found["disk_free"] > 2**20 and found["self_test"]["passed"]
    assert 0 < found["self_test"]["gate_conservation"] < 3e-3  # measured: 1.1e-3
    assert 0 < found["self_test"]["read_residual"] < 1e-6  # measured: 8e-8
    assert without_progress(done.stderr) == "" and list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there():
    done = run("doctor", "--device", "cuda:99")
    assert done.returncode == 2 and "is not available here" in done.stderr


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (replace(GOOD, gate_conservation=0.5), "gates cancel to 0.5"),
        (replace(GOOD, read_residual=0.5), "what is read to 0.5"),
        (replace(GOOD, gate_conservation=float("nan")), "gates cancel to NaN"),
        (replace(GOOD, read_residual=float("nan")), "what is read to NaN"),
        (ProbeError("nothing is there"), "did not run: ProbeError: nothing is there"),
        (ImportError("no torch"), "did not run: ImportError: no torch"),
    ],
)
def test_what_does_not_measure_is_exit_code_4(monkeypatch, found, said):
    done = invoked(monkeypatch, found)
    assert done.exit_code == 4 and said in " ".join(done.stdout.split()) and " FAIL " in done.stdout
    done = invoked(monkeypatch, found, "--json")
    parsed = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(name))
    assert done.exit_code == 4 and parsed["self_test"]["passed"] is False


@pytest.mark.parametrize("name", ["gate_conservation", "read_residual"])
@pytest.mark.parametrize("routing", module.ROUTINGS)
def test_nan_in_one_model_is_no_pass(monkeypatch, name, routing):
    real = module.measure

    def measure(subject, *rest):
        found = real(subject, *rest)
        if (subject.routes is None) == (routing == "residual"):
            found[name][0, -1] = float("nan")
        return found

    monkeypatch.setattr(module, "measure", measure)
    found = module.self_test("cpu")
    assert math.isnan(getattr(found, name)) and not found.passed


def test_what_is_missing_is_told_with_its_cure(monkeypatch):
    real = environment.version_of
    monkeypatch.setattr(
        environment, "version_of", lambda name: None if name == "torchdiffeq" else real(name)
    )
    done = invoked(monkeypatch, GOOD)
    assert done.exit_code == 0 and " PASS " in done.stdout
    assert "missing: pip install 'dar-probe[sampling]'" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_all_dependencies_and_extras_are_there():
    assert set(environment.LIBRARIES) == names(PROJECT["dependencies"])
    optional = PROJECT["optional-dependencies"]
    ours = {one.name: set(one.needs) for one in environment.EXTRAS if one.name}
    assert ours == {name: names(optional[name]) for name in ours}
    assert set(optional) - set(ours) == {"test", "test-core", "lint", "docs", "dev"}


def test_without_torch_there_are_no_devices(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "version_of", lambda name: None)
    assert environment.look(tmp_path).devices == ()
