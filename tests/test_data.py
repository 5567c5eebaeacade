"""Samples by id: the digits, images, latents and noise; bad data get one clear sentence."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from dar_probe.errors import UsageError
from dar_probe.train import data as datasets


def test_digits():
    digits = datasets.load("digits")
    assert digits.latents.shape == (1797, 1, 8, 8)
    assert (digits.latents.min(), digits.latents.max()) == (-1, 1)
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_held_out_rows_are_never_trained_on():
    train, held = datasets.load("digits", split="train"), datasets.load("digits", split="held-out")
    assert (len(train), len(held)) == (1540, 257)
    assert not set(train.ids.tolist()) & set(held.ids.tolist())
    assert set(held.labels.tolist()) == set(range(10))


def test_noise_is_a_function_of_seed_and_id_alone():
    noise = datasets.noise([5, 6, 7], (1, 8, 8), seed=0)
    again = datasets.noise([7, 5], (1, 8, 8), seed=0)
    assert torch.equal(again[0], noise[2]) and torch.equal(again[1], noise[0])
    assert not torch.equal(datasets.noise([5], (1, 8, 8), seed=1)[0], noise[0])
    assert not torch.equal(noise[0], noise[1])
    many = datasets.noise(range(200), (1, 8, 8), seed=0)
    assert abs(float(many.mean())) < 0.03 and abs(float(many.std()) - 1) < 0.03


def test_images(tmp_path):
    for label, value in (("cat", 0), ("dog", 255)):
        (tmp_path / label).mkdir()
        for i in range(2):
            Image.new("RGB", (20, 10), (value, value, value)).save(tmp_path / label / f"{i}.png")
    found = datasets.load(f"images:{tmp_path}", shape=(3, 8, 8), num_classes=2)
    assert found.latents.shape == (4, 3, 8, 8)
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.latents[:2].unique().tolist() == [-1] and found.latents[2:].unique().tolist() == [
        1
    ]
    grey = datasets.load(f"images:{tmp_path}", shape=(1, 8, 8))
    assert grey.latents.shape == (4, 1, 8, 8)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "npy"])
def test_latents(tmp_path, kind):
    x = np.random.default_rng(0).standard_normal((5, 4, 8, 8)).astype(np.float32)
    y = np.arange(5)
    path = tmp_path / f"some.{kind}"
    if kind == "npz":
        np.savez(path, latents=x, labels=y)
    elif kind == "safetensors":
        from safetensors.numpy import save_file

        save_file({"latents": x, "labels": y}, path)
    else:
        np.save(path, x)
        np.save(tmp_path / "some_labels.npy", y)
    found = datasets.load(f"latents:{path}", shape=(4, 8, 8), num_classes=5)
    assert np.array_equal(found.latents.numpy(), x) and found.labels.tolist() == y.tolist()
    assert found.first(2).ids.tolist() == [0, 1]


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda d: "cifar", "unknown data"),
        (lambda d: f"images:{d / 'nowhere'}", "no folder"),
        (lambda d: f"images:{d}", "no images"),
        (lambda d: f"latents:{d / 'nowhere.npz'}", "no file"),
        (lambda d: f"latents:{d}", "no file"),
        (lambda d: f"latents:{write(d / 'a.npz', latents=np.zeros((2, 4, 8, 8)))}", "'labels'"),
        (
            lambda d: (
                f"latents:{write(d / 'b.npz', latents=np.zeros((3, 8)), labels=np.arange(2))}"
            ),
            "do not fit",
        ),
        (
            lambda d: (
                "latents:"
                + str(write(d / "c.npz", latents=np.zeros((2, 4, 8, 8)), labels=np.arange(2) / 2))
            ),
            "whole numbers",
        ),
        (
            lambda d: (
                "latents:"
                + str(
                    write(
                        d / "d.npz", latents=np.full((1, 4, 8, 8), np.nan), labels=np.zeros(1, int)
                    )
                )
            ),
            "NaN",
        ),
        (
            lambda d: (
                "latents:"
                + str(write(d / "e.npz", latents=np.zeros((1, 4, 8, 4)), labels=np.zeros(1, int)))
            ),
            "4x8x4, the model takes 4x8x8",
        ),
        (
            lambda d: (
                "latents:"
                + str(write(d / "f.npz", latents=np.zeros((1, 3, 8, 8)), labels=np.zeros(1, int)))
            ),
            "3x8x8, the model takes 4x8x8",
        ),
        (
            lambda d: (
                "latents:"
                + str(write(d / "g.npz", latents=np.zeros((1, 4, 8, 8)), labels=np.full(1, 12)))
            ),
            "label 12",
        ),
    ],
)
def test_bad_data_get_one_sentence(tmp_path, make, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        datasets.load(make(tmp_path), shape=(4, 8, 8), num_classes=10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x.safetensors", "x.txt"])
def test_damaged_latents(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 not really")
    (tmp_path / "x_labels.npy").write_bytes(b"nor this")
    with pytest.raises(UsageError, match=r"cannot be read|no known kind"):
        datasets.load(f"latents:{tmp_path / name}")


def test_damaged_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(UsageError, match="cannot be read as an image"):
        datasets.load(f"images:{tmp_path}", shape=(3, 8, 8))


@pytest.mark.parametrize("count", [0, -1, 1798])
def test_more_samples_than_there_are(count):
    with pytest.raises(UsageError, match="1797"):
        datasets.load("digits").first(count)


def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    found = datasets.load(f"images:{tmp_path}", shape=(1, 8, 8)).latents
    np.testing.assert_allclose(found[0, 0].numpy(), ramp / 65535 * 2 - 1, atol=0.01)


def test_an_entry_that_is_no_array_is_not_taken_for_one(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("latents", b"no array")
        archive.writestr("labels", b"no array")
    with pytest.raises(UsageError, match="no array called 'latents'"):
        datasets.latents(path)
