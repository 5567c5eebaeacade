"""Files of known families with weights that cannot be measured, and forwards that fail."""

import os

import numpy as np
import pytest
import torch

import dar_probe as dp
from dar_probe.diffusion import objectives
from dar_probe.errors import CheckpointError, ProbeError
from dar_probe.models.inspection import survey
from dar_probe.models.options import CheckpointOptions
from dar_probe.probe import samples
from dar_probe.probe.denoising import Denoising, contradiction
from tests.helpers import tiny
from tests.models import files, test_own

GRID = {"noise_levels": [0.5], "samples": 2}
folder = test_own.folder


@pytest.fixture
def spoil(tmp_path):
    """Return a function to the words for a case's file with one tensor changed."""

    def change(case, key, to):
        file = files.write(case, tmp_path)
        content = torch.load(file.path, weights_only=False)
        state = content.get("ema", content)
        state[key] = to(state[key])
        torch.save(content, file.path)
        return {"model": file.path, "heads": file.heads}, {"data": file.data, **GRID}

    return change


@pytest.mark.parametrize("case", ["SiT", "MDTv2"])
def test_quantised_weights_are_refused_by_name(spoil, case):
    key = "final_layer.linear.weight"
    where, how = spoil(case, key, lambda t: t.to(torch.int8))
    with pytest.raises(CheckpointError, match=f"quantised weights.*'{key}' is int8"):
        survey(CheckpointOptions(path=where["model"], heads=where["heads"]))
    with pytest.raises(CheckpointError, match=f"quantised weights.*'{key}' is int8"):
        dp.analyze(**where, **how)


@pytest.mark.parametrize("case", ["SiT", "LightningDiT"])
def test_a_stream_that_overflows_is_no_variant(spoil, case):
    where, how = spoil(case, "blocks.1.attn.proj.weight", lambda t: t * 1e30)
    with pytest.raises(ProbeError, match="overflows float32 at"):
        dp.analyze(**where, **how)


def test_a_forward_of_a_family_of_one_s_own_that_fails_is_one_sentence(folder):
    code = (folder / "mine.py").read_text().replace("return self.out(", "return self.outside(")
    (folder / "fails.py").write_text(code, encoding="utf-8")
    for data in ([], ["--data", "latents:data.npz"]):
        done = test_own.type_in(
            folder, "analyze", *data, *test_own.GRID, "--out", "no", family="fails:FAMILY"
        )
        assert done.returncode == (4 if data else 3), done.stderr
        assert "AttributeError" in done.stderr and "'outside'" in done.stderr


def test_weights_that_predict_nothing_contradict_nothing():
    model = tiny.model(dtype=torch.float32)
    for parameter in model.final_layer.parameters():
        torch.nn.init.normal_(parameter, std=9.0)
    data, problem = tiny.problem(model, samples=8, dtype=torch.float32)
    other = Denoising(
        objectives.get("dit"), data, seed=0, device=problem.device, dtype=torch.float32
    )
    for assumed in (problem, other):
        assert contradiction(model, assumed, data, seed=0) is None


def test_samples_that_are_not_finite_are_neither_kept_nor_measured(spoil, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    where, _ = spoil("SiT", "final_layer.linear.bias", lambda t: t + 3e38)
    with pytest.raises(ProbeError, match="draws are NaN or infinite"):
        dp.analyze(**where, **GRID)
    where, _ = spoil("SiT", "final_layer.linear.bias", lambda t: t)
    right = dp.analyze(**where, **GRID).dataset["rms"].values
    (kept,) = (tmp_path / "cache/dar-probe/samples").iterdir()
    with np.load(kept) as arrays:
        changed = {**arrays, "latents": arrays["latents"] * np.float32("nan")}
    np.savez(kept, **changed)
    np.testing.assert_array_equal(dp.analyze(**where, **GRID).dataset["rms"].values, right)


@pytest.mark.parametrize("kind", ["pipe", "array", "cut", "header", "bomb", "page", "shape"])
def test_a_cache_that_somebody_else_wrote_is_drawn_anew(kind, tmp_path):
    path, good = tmp_path / "x.npz", np.zeros((2, 4), np.float32)
    arrays = {"latents": good, "description": np.array("drawn")}
    np.savez(path, **arrays)
    assert samples._stored(path, (2, 4))[1] == "drawn"
    if kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "array":
        with path.open("wb") as file:
            np.save(file, good)
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif kind == "header":
        path.write_bytes(path.read_bytes().replace(b"(2, 4)", b"((((((", 1))
    elif kind == "bomb":
        np.savez_compressed(path, **{**arrays, "latents": np.zeros(2**23, np.float32)})
    elif kind == "page":
        np.savez(path, **{**arrays, "description": np.array("drawn\x1b[2J")})
    else:
        np.savez(path, **{**arrays, "latents": good.T})
    assert samples._stored(path, (2, 4)) is None


def test_a_proof_that_rounding_hides_is_said(tmp_path):
    model = tiny.model(depth=2, dtype=torch.float32, size=8)
    for block in model.blocks:
        block.adaLN_modulation[1].weight.data.mul_(1e-3)
        block.adaLN_modulation[1].bias.data.mul_(1e-3)
    torch.save(model.state_dict(), tmp_path / "quiet.pt")
    said = {}
    for dtype in ("float32", "bfloat16"):
        found = dp.analyze(tmp_path / "quiet.pt", heads=2, dtype=dtype, **GRID)
        said[dtype] = [s for s in found.manifest["assumptions"] if "too small beside" in s]
    assert said["float32"] == []
    assert said["bfloat16"][0].startswith("4 of 4 writes are too small beside the stream")


def test_a_file_beside_somebody_s_config_json_is_a_file(tmp_path):
    file = files.write("U-ViT latent", tmp_path)  # .safetensors
    (tmp_path / "config.json").write_text('{"model": "U-ViT"}')
    analysis = dp.analyze(file.path, heads=file.heads, data=file.data, **GRID)
    assert analysis.manifest["model"]["family"] == "uvit"
    assert survey(CheckpointOptions(path=file.path, heads=file.heads)).family == "uvit"


def test_a_model_of_one_s_own_that_returns_more_than_its_prediction(folder):
    code = (folder / "mine.py").read_text().replace("reshape(x.shape)", "reshape(x.shape), None")
    (folder / "twice.py").write_text(code, encoding="utf-8")
    options = ["--data", "latents:data.npz", *test_own.GRID, "--out", "no"]
    done = test_own.type_in(folder, "analyze", *options, family="twice:FAMILY")
    assert done.returncode == 4 and "the model returns a tuple" in done.stderr
