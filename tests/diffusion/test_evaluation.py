"""Drawing samples from checkpoints and judging them, through the command line and from code."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from dar_probe import UsageError, api
from dar_probe.diffusion import data, evaluation, features, generation
from tests.helpers import tiny
from tests.helpers.shell import FIXTURES, run

FEW = ["--samples", "16", "--steps", "2"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "small.pt"
    model = tiny.model(size=8, dtype=torch.float32)
    torch.save({"ema": model.state_dict(), "args": argparse.Namespace(num_heads=2)}, path)
    return path


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    """A checkpoint of a model of 4x4x4 latents, and a VAE that makes 3x8x8 images of them."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("latent")
    model = tiny.model(in_channels=4, dtype=torch.float32)
    torch.save({"ema": model.state_dict(), "args": argparse.Namespace(num_heads=2)},
               folder / "latent.pt")  # fmt: skip
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, sample_size=8,
    ).save_pretrained(folder / "vae")  # fmt: skip
    return folder


def test_classifier_knows_rows_that_it_never_saw():
    held_out = data.digits().split("held-out")
    with torch.no_grad():
        right = (features.classifier()(held_out.latents).argmax(-1) == held_out.labels).double()
    assert right.mean() > 0.97


def test_sample_writes_a_picture_and_what_the_adm_suite_reads(checkpoint, tmp_path):
    done = run("sample", checkpoint, *FEW, "--classes", "3,5", "--guidance", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "16 samples, 2 steps of heun, guidance 2, ema weights" in done.stdout
    folder = tmp_path / "dar-probe-out" / "small-samples"
    assert {path.name for path in folder.iterdir()} == {"samples.npz", "samples.png"}
    with np.load(folder / "samples.npz") as stored:
        images, labels = stored["arr_0"], stored["arr_1"]
    assert images.shape == (16, 8, 8, 3) and images.dtype == np.uint8
    assert labels.tolist() == [3, 5] * 8
    with Image.open(folder / "samples.png") as sheet:
        assert sheet.size == (2 * 48 + 2, 8 * 48 + 7 * 2)  # two classes, two columns
        first = np.asarray(sheet)[:48:6, :48:6]
    np.testing.assert_array_equal(first, images[0])
    again = run("sample", checkpoint, *FEW, "--classes", "3,5", "--guidance", "2", "--out", folder)
    assert again.returncode == 0, again.stderr  # an earlier sheet is replaced
    with np.load(folder / "samples.npz") as stored:
        np.testing.assert_array_equal(stored["arr_0"], images)


def test_evaluate_prints_a_table_of_eighty_columns_and_json(checkpoint):
    done = run("evaluate", checkpoint, *FEW, "--seeds", "2")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "Fréchet distance" in done.stdout and "257 real ones" in done.stdout
    as_json = run("evaluate", checkpoint, *FEW, "--seeds", "1", "--json")
    found = json.loads(as_json.stdout)
    assert found["samples"] == 16 and found["measures"]["recall"]["low"] is None
    one = api.evaluate(checkpoint, samples=16, steps=2, solver="heun", seeds=[0])
    assert found["measures"]["frechet"]["value"] == one.measures["frechet"].value


def test_files_of_images_are_judged_as_the_samples_they_were(tmp_path):
    real = data.digits().split("held-out")
    generation.save(real, tmp_path)
    found = api.evaluate(tmp_path / "samples.npz")
    # Pixels lose less than half a step of 255.
    for name, value in found.floor.items():
        assert found.measures[name].value == pytest.approx(value, abs=0.02)
    assert found.floor["agreement"] > 0.97


def test_shipped_model_draws_digits():
    found = api.evaluate(
        FIXTURES / "digits-dar-static.pt", samples=64, steps=4, solver="heun", seeds=[0]
    )
    noise = data.Data(
        name="noise", description="", latents=data.noise(range(64), (1, 8, 8), seed=1),
        labels=torch.arange(64) % 10, ids=torch.arange(64),
    )  # fmt: skip
    judge = evaluation.Judge("digits", "digits", shape=(1, 8, 8))
    assert found.measures["agreement"].value > 0.7
    assert found.measures["frechet"].value < judge.measure(noise)["frechet"] / 4


def test_latents_are_kept_as_data_or_decoded(latent, tmp_path):
    done = run("sample", latent / "latent.pt", *FEW, "--out", tmp_path / "raw")
    assert done.returncode == 0, done.stderr
    kept = data.load_data(f"latents:{tmp_path / 'raw' / 'latents.npz'}")
    assert kept.latents.shape == (16, 4, 4, 4)
    done = run("sample", latent / "latent.pt", *FEW, "--vae", latent / "vae",
               "--out", tmp_path / "decoded")  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "decoded" / "samples.npz") as stored:
        assert stored["arr_0"].shape == (16, 8, 8, 3)
    with pytest.raises(UsageError, match="are latents, not images"):
        api.evaluate(latent / "latent.pt", samples=16, steps=1)


def test_features_of_a_local_folder(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                          image_size=28, patch_size=14)  # fmt: skip
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    images = data.digits().latents[:4]
    found = features.extractor(str(tmp_path))(images)
    wide = torch.nn.functional.interpolate(
        (images + 1) / 2, (28, 28), mode="bicubic", antialias=True
    ).clamp(0, 1)
    with torch.no_grad():
        wanted = model(pixel_values=(wide.repeat(1, 3, 1, 1) - 0.5) / 0.5).pooler_output
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"seeds": []}, "seeds must be different"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"samples": 3}, "3 samples cannot be judged"),
        ({"space": "nowhere"}, "no image model in 'nowhere'"),
        ({"batch_size": 0}, "0 samples in one pass"),
        ({"data": "images:nowhere"}, "no folder 'nowhere'"),
    ],
)
def test_refusals(checkpoint, settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        api.evaluate(checkpoint, **settings)


def test_refused_arrays_of_images(tmp_path):
    for name, content in {
        "none.npz": {"other": np.zeros(3)},
        "float.npz": {"arr_0": np.zeros((9, 8, 8, 3))},
        "few.npz": {"arr_0": np.zeros((3, 8, 8, 3), np.uint8)},
        "labels.npz": {"arr_0": np.zeros((9, 8, 8, 3), np.uint8), "arr_1": np.zeros(9)},
    }.items():
        np.savez(tmp_path / name, **content)
        with pytest.raises(UsageError):
            evaluation.read(tmp_path / name)
    with pytest.raises(UsageError, match="there is no file"):
        evaluation.read(tmp_path / "absent.npz")
