"""From a folder on disk to the dataset, against plain autograd on a model that diffusers loads."""

import json

import numpy as np
import pytest
import torch

import dar_probe as dp
from dar_probe.checkpoints import diffusers_folder
from dar_probe.diffusion import data as datasets
from dar_probe.models import registry
from dar_probe.models.diffusers import inputs, scheduler
from dar_probe.probe.recorder import untouched
from dar_probe.sites.freshness import LAYERS, NORMS, freshness
from tests.helpers import warm
from tests.models import check
from tests.models.diffusers import tiny
from tests.models.diffusers.test_sites import SINGLE_PRECISION, Called

diffusers = pytest.importorskip("diffusers")
LEVELS, SAMPLES = [0.2, 0.8], 2


def latents(path, shape):
    values = np.random.default_rng(0).standard_normal((SAMPLES, *shape)).astype(np.float32)
    np.savez(path, latents=values, labels=np.arange(SAMPLES))
    return torch.from_numpy(values)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_a_folder_is_analysed_from_disk_to_dataset(tmp_path, name):
    home = tiny.save(name, tmp_path / name)
    read = diffusers_folder.read(home)
    call = inputs.plan(read.class_name, read.config, shape=tiny.SHAPES.get(name))
    x = latents(tmp_path / "x.npz", call.shape)
    dtype = torch.float32 if name in SINGLE_PRECISION else torch.float64
    ds = dp.analyze(
        home,
        data=f"latents:{tmp_path / 'x.npz'}",
        noise_levels=LEVELS,
        samples=SAMPLES,
        dtype=str(dtype).removeprefix("torch."),
    ).dataset
    model = getattr(diffusers, read.class_name).from_pretrained(read.path, torch_dtype=dtype)
    objective, _ = scheduler.choose(read.class_name, read.config, read.scheduler)
    noise = datasets.noise(range(SAMPLES), call.shape, seed=0).to(dtype)
    for row, level in enumerate(ds["noise_level"].values):
        s = torch.full((SAMPLES,), float(level), dtype=dtype)
        called = Called(model.eval(), call, SAMPLES)
        called.times = objective.model_time(s)
        noised = objective.interpolate(x.to(dtype), noise, s)
        target = objective.target(x.to(dtype), noise, s)
        with untouched(called):
            subject = registry.find(called, (noised[:1],), {}, live_only=True)
            expected = check.reference(
                subject, (noised,), lambda out, t=target: (out - t).square().flatten(1).mean(1)
            )
        for variable in ("rms", "grad_rms", "cosine", "gate", "loss"):
            found = torch.from_numpy(ds[variable].values[row]).to(dtype)
            error = check.relative(found, expected[variable])
            # Measured: 5e-15 and 5e-7.
            assert error < (4e-14 if dtype == torch.float64 else 4e-6), (variable, error)
    manifest = json.loads(ds.attrs["manifest"])
    assert manifest["model"]["family"] == read.class_name
    assert manifest["checkpoint"]["sha256"] == read.sha256
    assert manifest["config"]["objective"] == objective.name
    assert manifest["data"]["name"].startswith("latents:")


def test_the_model_draws_its_own_samples_and_text_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    home = tiny.save("sd3", tmp_path / "sd3")
    done = warm.run("analyze", home, "--samples", 3, "--noise-levels", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "3 samples drawn from the model itself (25 steps of FlowMatchEuler" in said
    assert "no text was given: every sample has random normal numbers of its own" in said
    page = (tmp_path / "dar-probe-out/sd3/report.html").read_text()
    assert "no text was given" in page and "drawn from the model itself" in page


def test_text_from_a_file_changes_the_numbers_and_the_assumptions(tmp_path):
    home = tiny.save("sd3", tmp_path / "sd3")
    rng = np.random.default_rng(1)
    np.savez(
        tmp_path / "text.npz",
        encoder_hidden_states=rng.standard_normal((3, 5, 12)).astype(np.float32),
        pooled_projections=rng.standard_normal((3, 10)).astype(np.float32),
    )
    latents(tmp_path / "x.npz", (4, 8, 8))
    options = {"data": f"latents:{tmp_path / 'x.npz'}", "noise_levels": [0.5], "samples": 2}
    drawn = dp.analyze(home, **options)
    given = dp.analyze(home, **options, text=tmp_path / "text.npz")
    assert not np.allclose(drawn.dataset["gate"], given.dataset["gate"], equal_nan=True)
    assert not any("no text was given" in s for s in given.manifest["assumptions"])
    with pytest.raises(dp.UsageError, match="takes no 'colour'"):
        np.savez(tmp_path / "bad.npz", colour=np.zeros((1, 2)))
        dp.analyze(home, **options, text=tmp_path / "bad.npz")
    with pytest.raises(dp.UsageError, match="--heads is not for a diffusers folder"):
        dp.analyze(home, **options, heads=2)


def test_a_single_file_of_weights_stands_for_its_folder(tmp_path):
    home = tiny.save("dit", tmp_path / "dit")
    latents(tmp_path / "x.npz", (4, 8, 8))
    options = {"data": f"latents:{tmp_path / 'x.npz'}", "noise_levels": [0.5], "samples": 2}
    weights = home / "transformer" / "diffusion_pytorch_model.safetensors"
    one, other = dp.analyze(home / "transformer", **options), dp.analyze(weights, **options)
    np.testing.assert_array_equal(one.dataset["gate"], other.dataset["gate"])


def test_without_diffusers_one_sentence_says_what_to_install(tmp_path):
    home = tiny.save("dit", tmp_path / "dit")
    (tmp_path / "without.py").write_text(
        "import sys\n"
        "assert 'diffusers' not in sys.modules\n"
        "sys.modules['diffusers'] = None\n"
        "from dar_probe.cli import main\n"
        f"sys.argv = ['dar-probe', 'analyze', {str(home)!r}]\n"
        "main()\n"
    )
    done = warm.script(tmp_path / "without.py", cwd=tmp_path)
    assert done.returncode == 2 and "pip install 'dar-probe[diffusers]'" in done.stderr


def test_another_prediction_keeps_the_schedulers_own_steps(tmp_path):
    home = tiny.save("hunyuan-dit", tmp_path / "hy")
    latents(tmp_path / "x.npz", (4, 8, 8))
    options = {"data": f"latents:{tmp_path / 'x.npz'}", "noise_levels": [0.5], "samples": 2}
    usual = dp.analyze(home, **options).dataset
    other = dp.analyze(home, **options, objective="ddpm:scaled-linear:eps").dataset
    np.testing.assert_array_equal(usual["noise_level"], other["noise_level"])
    np.testing.assert_array_equal(usual["timestep"], other["timestep"])
    assert not np.allclose(usual["loss"], other["loss"])
    sd3 = tiny.save("sd3", tmp_path / "sd3")
    turned = dp.analyze(sd3, **options, objective="flow:t=1000s:reversed").dataset
    assert turned["timestep"].values == pytest.approx(500)
    with pytest.raises(dp.UsageError, match="unknown objective 'flow:t=2s'"):
        dp.analyze(sd3, **options, objective="flow:t=2s")


@pytest.mark.usefixtures("undrawn")
def test_resuming_with_another_text_measures_again(tmp_path):
    home = tiny.save("sd3", tmp_path / "sd3")
    latents(tmp_path / "x.npz", (4, 8, 8))
    options = {"data": f"latents:{tmp_path / 'x.npz'}", "noise_levels": [0.5], "samples": 2}
    options |= {"out": tmp_path / "out", "resume": True}
    text = np.random.default_rng(1).standard_normal((1, 5, 12)).astype(np.float32)
    np.savez(tmp_path / "text.npz", encoder_hidden_states=text)
    first = dp.analyze(home, **options, text=tmp_path / "text.npz").dataset
    again = dp.analyze(home, **options, text=tmp_path / "text.npz").dataset
    assert again.attrs["manifest"] == first.attrs["manifest"]  # it was there
    np.savez(tmp_path / "text.npz", encoder_hidden_states=2 * text)
    other = dp.analyze(home, **options, text=tmp_path / "text.npz").dataset
    assert not np.array_equal(other["gate"], first["gate"], equal_nan=True)


def test_a_trained_copy_is_measured_at_the_levels_of_the_bare_transformer():
    audit = dp.audit(tiny.build("sd3"), samples=3, train_steps=2)
    before, after = audit.before.dataset, audit.dataset
    assert before.sizes["noise_level"] == 5
    for coord in ("noise_level", "timestep", "log_snr"):
        np.testing.assert_array_equal(after[coord], before[coord])
    assert not np.array_equal(after["rms"], before["rms"])


@pytest.mark.parametrize("name", tiny.MODELS)
def test_a_new_model_of_every_class_is_fresh(name):
    """Weights as the class makes them are told from weights of any other kind."""
    kind, settings, _, _ = tiny.MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        new = getattr(diffusers, kind)(**settings)
    assert freshness(new) in (NORMS, LAYERS)
    assert freshness(tiny.build(name)) == ""


def test_random_weights_are_untrained_and_no_failure(tmp_path, monkeypatch):
    """A folder that nobody has trained has no symptoms to be judged, whatever its numbers are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kind, settings, _, _ = tiny.MODELS["sd3"]
    torch.manual_seed(0)
    new = getattr(diffusers, kind)(**settings)
    new.save_pretrained(tmp_path / "new")
    options = {"noise_levels": [0.2, 0.8], "samples": 2}
    for found in (
        dp.analyze(tmp_path / "new", **options), dp.audit(new, **options)
    ):  # fmt: skip
        assert found.verdict.status == "untrained"
        assert "its linear layers hold what PyTorch draws for new ones" in found.verdict.sentence
    tiny.randomise(new).save_pretrained(tmp_path / "other")
    assert dp.analyze(tmp_path / "other", **options).verdict.status != "untrained"
