"""REPA-E: latents are normalised by the file's own batch norm, never in silence and never twice."""

import numpy as np
import pytest
import torch

import dar_probe as dp
from dar_probe.adapt import warm_start
from dar_probe.diffusion import data as datasets
from dar_probe.diffusion import latent_norm
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models import sit_family
from dar_probe.models.generator import load_generator
from dar_probe.models.inspection import survey
from dar_probe.models.loading import load_checkpoint
from dar_probe.models.options import CheckpointOptions, SamplingOptions
from dar_probe.probe import samples
from tests.models import check, files

SAID = "the data were normalised by the batch norm in the model's file (bn), as in training"
READ = "a batch norm of latents is there (bn): read as REPA-E"


@pytest.fixture
def loaded(tmp_path):
    """Return the model of a file as REPA-E's trainer writes it; data lie beside it."""
    file = files.write("REPA-E", tmp_path)
    return load_checkpoint(CheckpointOptions(path=file.path, heads=file.heads))


def options(folder):
    return CheckpointOptions(path=folder / "0400000.pt", heads=files.HEADS)


def rows(latents, name="latents:x.npy"):
    return datasets.Data(
        name=name, description="some, used as they are", latents=latents,
        labels=torch.zeros(len(latents), dtype=torch.long), ids=torch.arange(len(latents)),
    )  # fmt: skip


def raw(loaded, count=64):
    """Return latents (count, 4, 8, 8) of the VAE, and what training makes of them."""
    torch.manual_seed(0)
    bn = torch.nn.BatchNorm2d(4, eps=1e-4, affine=False).double().eval()
    bn.load_state_dict({k: v.double() for k, v in loaded.model.bn.state_dict().items()})
    latents = torch.randn(count, 4, 8, 8) * bn.running_var[:, None, None].sqrt().float()
    latents += bn.running_mean[:, None, None].float()
    return latents, bn(latents.double()).float()


def test_data_are_normalised_as_torchs_batch_norm_does(loaded):
    latents, expected = raw(loaded)
    found, said = samples.choose(loaded, rows(latents), asked=None, default=64, seed=0)
    assert torch.equal(found.latents, expected) and found.doubts == ()
    assert said == [SAID]
    assert found.description == "some, normalised by the batch norm in the model's file (bn)"


def test_statistics_are_those_of_the_weights_that_are_taken(tmp_path, loaded):
    stored = files.repa_e()
    mean, var = (stored[name] for name in (latent_norm.MEAN, latent_norm.VARIANCE))
    assert torch.allclose(loaded.norm.mean, mean) and loaded.norm.mean.dtype == torch.float64
    assert torch.allclose(loaded.norm.std, (var + 1e-4).sqrt(), rtol=1e-6)
    of_raw = load_checkpoint(
        CheckpointOptions(path=tmp_path / "0400000.pt", heads=2, weights="model")
    )
    assert torch.allclose(of_raw.norm.mean, mean + 1)


def test_narrow_weights_leave_the_statistics_as_they_are(tmp_path, loaded):
    narrow = load_checkpoint(
        CheckpointOptions(path=tmp_path / "0400000.pt", heads=2, dtype="bfloat16")
    )
    assert torch.equal(narrow.norm.mean, loaded.norm.mean)
    assert torch.equal(narrow.norm.std, loaded.norm.std)


def test_the_forward_is_that_of_the_same_file_without_the_norm(loaded):
    """Noise is added between the norm and the network, so that the network must not apply it."""
    stored = files.repa_e()
    plain = {k: v.float().double() for k, v in stored.items() if not k.startswith("bn.")}
    args = {"path_type": "linear", "prediction": "v"}
    subject, _ = check.load(sit_family.FAMILY, plain, heads=2, args=args)
    (x, t, y), _ = check.problem(loaded.identified)
    assert torch.equal(loaded.model.double()(x, t, y), subject.model(x, t, y))


def test_own_samples_are_not_normalised_again(loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found, said = samples.choose(loaded, None, asked=3, default=64, seed=0)
    drawn, _ = loaded.draw(3, seed=0)
    assert torch.equal(found.latents, drawn) and SAID not in said


def test_what_sample_writes_is_measured_as_it_was_drawn(tmp_path, loaded):
    """`dar-probe sample` gives latents of the VAE; as data they are what the model drew."""
    made = load_generator(options(tmp_path), SamplingOptions(steps=2))
    data = made.draw(made.labels(4), seed=0)
    assert "batch norm of latents undone" in data.description
    stored = files.repa_e()
    bare = load_generator(options(tmp_path), SamplingOptions(steps=2))
    object.__setattr__(bare.loaded, "norm", None)
    drawn = bare.draw(bare.labels(4), seed=0).latents
    std = (stored["bn.running_var"] + 1e-4).sqrt()[:, None, None]
    expected = drawn.double() * std + stored["bn.running_mean"][:, None, None]
    assert torch.allclose(data.latents.double(), expected, rtol=1e-6, atol=1e-6)
    again, _ = samples.choose(loaded, rows(data.latents), asked=None, default=4, seed=0)
    assert torch.allclose(again.latents, drawn, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.18215, 5.0, "normalised before", "another VAE"])
def test_latents_that_do_not_fit_the_norm_are_doubted(loaded, scale):
    latents, normalised = raw(loaded)
    others = {"normalised before": normalised, "another VAE": latents + 4}
    given = others[scale] if scale in others else scale * latents
    found, _ = samples.choose(loaded, rows(given), asked=None, default=64, seed=0)
    (doubt,) = found.doubts
    assert "instead of about 1" in doubt and "another VAE" in doubt


def test_the_command_says_it(tmp_path):
    file = files.write("REPA-E", tmp_path)
    analysis = dp.analyze(
        file.path, data=file.data, heads=file.heads, samples=2, noise_levels=[0.5]
    )
    said = analysis.manifest["assumptions"]
    assert any(READ in one for one in said) and SAID in said
    assert "normalised by the batch norm in the model" in analysis.manifest["data"]["description"]
    assert any(READ in one for one in survey(options(tmp_path)).assumptions)


def test_without_projectors_the_clock_is_repas_too():
    state = {k: v for k, v in files.repa_e().items() if not k.startswith("projectors.")}
    found = check.identify(sit_family.FAMILY, state, heads=2)
    assert (found.family, found.objective) == ("repa", "repa")


def test_latents_of_other_vaes_and_normalised_queries():
    """SiT-XL/1 on 32 channels, with --qk-norm: all of it is in the shapes."""
    state = files.plain(channels=32, patch=1, size=4, head=8, projectors=(5,))
    state |= {f"bn.running_{name}": torch.ones(32) for name in ("mean", "var")}
    state["bn.num_batches_tracked"] = torch.tensor(0)
    found = check.identify(sit_family.FAMILY, state, args={"prediction": "v", "cfg_prob": 0.1})
    assert found.shape == (32, 4, 4) and found.objective == "repa"
    assert found.sizes["qk_norm"] and found.sizes["heads"] == 2 and found.sizes["patch"] == 1


def test_hostile_statistics_are_refused(tmp_path):
    state = files.repa_e()
    state["bn.running_var"][1] = -0.5
    path = check.save(tmp_path / "x.pt", state)
    with pytest.raises(CheckpointError, match="variance of -0.5, below zero"):
        load_checkpoint(CheckpointOptions(path=path, heads=2))
    path = check.save(tmp_path / "x.pt", {**state, "bn.running_var": torch.ones(3)})
    with pytest.raises(CheckpointError, match="bn.running_var"):
        load_checkpoint(CheckpointOptions(path=path, heads=2))
    path = check.save(tmp_path / "x.pt", {k: v for k, v in state.items() if k != "bn.running_var"})
    with pytest.raises(CheckpointError, match="'bn.running_var' is missing"):
        load_checkpoint(CheckpointOptions(path=path, heads=2))


def test_training_does_not_start_from_it(tmp_path):
    path = check.save(tmp_path / "x.pt", files.repa_e(), {"heads": 2})
    with pytest.raises(UsageError, match="batch norm of its own"):
        warm_start.original(path)


def test_a_vae_gets_latents_that_nobody_scales(tmp_path):
    from diffusers import AutoencoderKL

    from dar_probe.models.diffusers import vae

    torch.manual_seed(0)
    model = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, scaling_factor=0.5).eval()
    model.save_pretrained(tmp_path)
    latents = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 4, 4, 4), np.float32))
    expected = model.decode(latents).sample.clamp(-1, 1)
    device = torch.device("cpu")
    for given, scaled in ((latents, False), (latents / 2, True)):
        found = vae.load_decoder(tmp_path, device, scaled=scaled)(given)
        assert torch.allclose(found, expected, atol=1e-6)
