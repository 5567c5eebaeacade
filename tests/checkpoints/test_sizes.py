"""Precision and size: half-precision files, and models that do not fit into memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import dar_probe as dp
from dar_probe.checkpoints import memory_check
from tests.helpers import tiny


@pytest.fixture
def model():
    return tiny.model(depth=3, dtype=torch.float32, size=8)


def saved(path, model, dtype):
    torch.save({name: value.to(dtype) for name, value in model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_a_file_in_any_precision_is_measured_in_the_one_asked_for(tmp_path, model, stored):
    options = {"noise_levels": [0.2, 0.8], "samples": 3, "heads": 2}
    path = saved(tmp_path / "stored.pt", model, stored)
    found = dp.analyze(path, **options).dataset
    # The same numbers in a float32 file: what was rounded was rounded when it was saved.
    rounded = {name: value.to(stored).float() for name, value in model.state_dict().items()}
    torch.save(rounded, tmp_path / "single.pt")
    expected = dp.analyze(tmp_path / "single.pt", **options).dataset
    for name in ("rms", "grad_rms", "gate", "loss"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert '"dtype": "float32"' in found.attrs["manifest"]
    narrow = dp.analyze(path, **options, dtype="bfloat16").dataset
    assert '"dtype": "bfloat16"' in narrow.attrs["manifest"]
    np.testing.assert_allclose(narrow["rms"], expected["rms"], rtol=0.05)


def test_a_model_without_room_is_refused_before_its_weights_are_read(tmp_path, model, monkeypatch):
    path = saved(tmp_path / "large.pt", model, torch.float16)
    needed = sum(p.numel() for p in model.parameters()) * (2 + 4)  # as stored, and converted
    monkeypatch.setattr(memory_check, "available", lambda device="cpu": needed - 1)
    monkeypatch.setattr("dar_probe.checkpoints.read", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(dp.ProbeError, match=r"this needs 0\.0 GiB on cpu, and 0\.0 GiB") as caught:
        dp.analyze(path, heads=2)
    assert caught.value.exit_code == 4 and "--dtype bfloat16" in caught.value.hint
    monkeypatch.setattr(memory_check, "available", lambda device="cpu": needed)
    with pytest.raises(ZeroDivisionError):  # now it is read
        dp.analyze(path, heads=2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM")
def test_inspecting_a_large_file_needs_no_memory_for_its_weights(tmp_path):
    """SiT-XL/2's 2.7 GB as a sparse safetensors file: the header alone is read."""
    code = f"""
import json, struct, sys
from pathlib import Path
import torch
import dar_probe as dp
from dar_probe.models.inspection import survey
from dar_probe.models.options import CheckpointOptions

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

with torch.device("meta"):
    state = dp.build("SiT-XL/2").state_dict()
at, entries = 0, {{}}
for name, value in state.items():
    size = value.numel() * 4
    entries[name] = {{"dtype": "F32", "shape": list(value.shape), "data_offsets": [at, at + size]}}
    at += size
header = json.dumps(entries).encode()
path = Path({str(tmp_path)!r}) / "xl.safetensors"
with path.open("wb") as file:
    file.write(struct.pack("<Q", len(header)) + header)
    file.truncate(8 + len(header) + at)
small = CheckpointOptions(path={str(tmp_path)!r} + "/small.pt", heads=2)
survey(small)  # whatever is imported or cached for any file
before = peak()
found = survey(CheckpointOptions(path=path))
print(found.parameters, found.flops, peak() - before)
"""
    saved(tmp_path / "small.pt", tiny.model(), torch.float32)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parameters, flops, memory = map(int, done.stdout.split())
    assert parameters == 675_129_632
    # The DiT paper (2212.09748, table 4) has 118.64 G multiply-adds for XL/2 at 32 x 32 latents.
    assert flops / 2e9 == pytest.approx(118.64, rel=1e-3)
    assert memory < 64 * 2**20
