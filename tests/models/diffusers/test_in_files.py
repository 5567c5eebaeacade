"""Weights that stay in a folder's files: the numbers of the plain analysis, bit for bit."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import dar_probe as dp
from dar_probe.checkpoints import diffusers_folder, memory_check
from dar_probe.models.diffusers import in_files, inputs
from dar_probe.models.diffusers import model as hub_model
from dar_probe.sites.freshness import LAYERS, NORMS
from tests.helpers import warm
from tests.models.diffusers import tiny

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
GRID = {"noise_levels": [0.2, 0.8], "samples": 2}


@pytest.fixture(scope="session")
def sharded(tmp_path_factory):
    """Return a function from a tiny model's name to its sharded folder and its latents."""
    made = {}

    def folder(name):
        if name not in made:
            home = tmp_path_factory.mktemp("sharded") / name
            read = diffusers_folder.read(tiny.save(name, home, max_shard_size="20KB"))
            assert len(read.weights) > 4
            call = inputs.plan(read.class_name, read.config, shape=tiny.SHAPES.get(name))
            x = np.random.default_rng(7).standard_normal((2, *call.shape), dtype=np.float32)
            np.savez(home / "x.npz", latents=x, labels=np.arange(2))
            made[name] = home, {**GRID, "data": f"latents:{home / 'x.npz'}"}
        return made[name]

    return folder


def equal(found, expected):
    assert found.data_vars.keys() == expected.data_vars.keys()
    for name, value in expected.data_vars.items():
        np.testing.assert_array_equal(found[name].values, value.values, err_msg=name)


# DiT's first block embeds classes beside the blocks; Wan keeps layers in float32.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("flux", "float32"), ("flux", "bfloat16"), ("sd3", "float32"), ("sd3", "float64"),
     ("dit", "float32"), ("wan", "float16")],
)  # fmt: skip
def test_numbers_are_those_of_the_plain_analysis(sharded, name, dtype):
    home, grid = sharded(name)
    plain = dp.analyze(home, dtype=dtype, **grid)
    again = dp.analyze(home, dtype=dtype, offload="disk", **grid)
    equal(again.dataset, plain.dataset)
    own = {"recompute": True, "offload": "disk", "created": again.manifest["created"]}
    assert again.manifest == {**plain.manifest, **own}
    assert plain.manifest["offload"] is None
    said = [[finding.sentence for finding in a.verdict.findings] for a in (again, plain)]
    assert said[0] == said[1]


def test_one_cell_is_as_many(sharded):
    home, grid = sharded("sana")
    one = {**grid, "samples": 1, "noise_levels": [0.2]}
    equal(dp.analyze(home, offload="disk", **one).dataset, dp.analyze(home, **one).dataset)


def test_interventions_and_files(sharded, tmp_path):
    home, grid = sharded("flux")
    given = {**grid, "noise_levels": [0.5], "samples": 1, "pairs": 2, "kinds": ("gate", "block")}
    plain = dp.ablate(home, **given)
    again = dp.ablate(home, offload="disk", out=tmp_path / "out", figures=False, report=False,
                      **given)  # fmt: skip
    equal(again.dataset, plain.dataset)
    equal(dp.open_analysis(tmp_path / "out" / "analysis.nc").dataset, plain.dataset)


def test_samples_of_the_model_itself(sharded, tmp_path, monkeypatch):
    home, _ = sharded("sd3")
    found = []
    for place in (None, "disk"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(place)))
        found.append(dp.analyze(home, offload=place, **GRID).dataset)
    equal(*found)


@pytest.mark.parametrize("name", ["flux", "sd3", "wan"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types_and_tables_are_those_of_the_whole_model(sharded, name, dtype):
    read = diffusers_folder.read(sharded(name)[0])
    whole = hub_model.build(read, dtype=dtype)
    model, weights = in_files.build(read, dtype=dtype)
    assert not model.training and all(p.is_meta for p in model.parameters())
    expected, found = whole.state_dict(), model.state_dict()
    assert found.keys() == expected.keys() == set(weights)
    for key, value in expected.items():
        assert found[key].dtype == weights[key].dtype == value.dtype, key
        assert torch.equal(weights[key], value), key
    tables = dict(model.named_buffers())
    for key, value in whole.named_buffers():
        assert not tables[key].is_meta and tables[key].dtype == value.dtype, key
        assert torch.equal(tables[key], value), key


def test_an_untrained_model_is_seen(tmp_path):
    kind, settings, _, _ = tiny.MODELS["sd3"]
    torch.manual_seed(0)
    made = getattr(diffusers, kind)(**settings)
    made.save_pretrained(tmp_path / "new", max_shard_size="20KB")
    said = [
        dp.analyze(tmp_path / "new", offload=place, data=None, **GRID).manifest["model"]["fresh"]
        for place in (None, "disk")
    ]
    assert said[0] == said[1] and said[0] in (NORMS, LAYERS)


def test_weights_are_judged_as_they_are_read(tmp_path):
    home = tiny.save("flux", tmp_path / "flux", max_shard_size="20KB")
    read = diffusers_folder.read(home)
    path = read.weights[3]
    state = load_file(path)
    next(iter(state.values())).view(-1)[0] = float("nan")
    save_file(state, path)
    with pytest.raises(dp.ProbeError, match="weights that are NaN or infinite"):
        dp.analyze(home, offload="disk", **GRID)


def test_room_for_a_block_is_enough(sharded, monkeypatch):
    home, grid = sharded("flux")
    whole = memory_check.needed(diffusers_folder.read(home).shapes, torch.float32)
    monkeypatch.setattr(memory_check, "available", lambda device="cpu": whole * 2 // 3)
    with pytest.raises(dp.ProbeError, match="GiB are available") as caught:
        dp.analyze(home, **grid)
    assert "--offload disk" in caught.value.hint
    dp.analyze(home, offload="disk", **grid)
    monkeypatch.setattr(memory_check, "available", lambda device="cpu": whole // 100)
    with pytest.raises(dp.ProbeError, match="GiB are available"):
        dp.analyze(home, offload="disk", **grid)


def test_what_cannot_be_is_refused(sharded, tmp_path):
    home, grid = sharded("flux")
    for given, said in (
        ({"offload": "moon"}, "unknown place 'moon'"),
        ({"offload": "cpu", "device": "cpu"}, "this one runs on the CPU"),
        ({"offload": "disk", "engine": "nnsight"}, "offload is of hooks"),
        ({"offload": "disk", "recompute": False}, "blocks are always run again"),
        ({"offload": "disk", "adapter": home}, "an adapter is merged into weights in memory"),
    ):
        with pytest.raises(dp.UsageError, match=said) as caught:
            dp.analyze(home, **given, **grid)
        assert caught.value.hint
    with pytest.raises(dp.UsageError, match="one file of weights is read whole") as caught:
        dp.analyze("fixtures/digits-residual.pt", offload="disk", **GRID)
    assert "save_pretrained" in caught.value.hint


@pytest.mark.parametrize("command", ["analyze", "ablate"])
def test_the_command(sharded, tmp_path, command):
    home, grid = sharded("flux")
    asked = ["--samples", 1, "--noise-levels", "0.5", "--data", grid["data"], "--out", "out"]
    asked += ["--pairs", 2, "--kinds", "gate"] if command == "ablate" else []
    done = warm.run(command, home, *asked, "--offload", "disk", cwd=tmp_path, light=True)
    assert done.returncode == 0, done.stderr
    manifest = dp.open_analysis(tmp_path / "out" / "analysis.nc").manifest
    assert manifest["offload"] == "disk"
    done = warm.run(command, home, *asked, "--offload", "cpu", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 2 and "--offload cpu keeps weights in host memory" in done.stderr
