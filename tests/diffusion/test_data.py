"""Samples by id: the digits, images, latents and noise; bad data get one clear sentence."""

import io
import os
import struct
import subprocess
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dar_probe.diffusion import data as datasets
from dar_probe.errors import UsageError


def test_digits():
    digits = datasets.load_data("digits")
    assert digits.latents.shape == (1797, 1, 8, 8)
    assert (digits.latents.min(), digits.latents.max()) == (-1, 1)
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_held_out_rows_are_never_trained_on():
    train, held = (
        datasets.load_data("digits", split="train"),
        datasets.load_data("digits", split="held-out"),
    )
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
    found = datasets.load_data(f"images:{tmp_path}", shape=(3, 8, 8), num_classes=2)
    assert found.latents.shape == (4, 3, 8, 8)
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.latents[:2].unique().tolist() == [-1] and found.latents[2:].unique().tolist() == [
        1
    ]
    grey = datasets.load_data(f"images:{tmp_path}", shape=(1, 8, 8))
    assert grey.latents.shape == (4, 1, 8, 8)
    whole = "of 4 images: 4 resized to 8x8 (they have 20x10 pixels), 4 cropped"
    labels = "labels: 2 classes by the names of their folders: 0 'cat', 1 'dog'"
    assert found.changes == (f"{whole} to a square", labels)
    bare = datasets.load_data(f"images:{tmp_path / 'cat'}", shape=(3, 8, 8), num_classes=2)
    assert bare.changes[-1] == "every image is taken for class 0: there are no subfolders"
    (tmp_path / "cat").rename(tmp_path / "dog" / "a; b")
    for image in (tmp_path / "dog").glob("*.png"):
        image.unlink()
    alone = datasets.load_data(f"images:{tmp_path / 'dog'}", shape=(3, 8, 8), num_classes=2)
    assert alone.changes[-1] == "every image is taken for class 0: there is one subfolder"
    assert grey.changes == (f"{whole} to a square, 4 turned grey",)


def test_only_the_wanted_images_are_read_and_hidden_ones_are_none(tmp_path):
    """What a file manager leaves behind is no image, and a damaged one behind the last no harm."""
    for name in ("b/1.png", "b/2.png", "a/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 10 * int(name[2])).save(tmp_path / name)
    (tmp_path / "b" / "3.png").write_bytes(b"no image")
    (tmp_path / "a" / "._1.png").write_bytes(b"left behind")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "1.png").write_bytes(b"left behind")
    wanted = {"shape": (1, 8, 8), "num_classes": 2}
    found = datasets.load_data(f"images:{tmp_path}", most=3, **wanted)
    assert found.labels.tolist() == [0, 1, 1]
    assert found.description.startswith("4 images, ")
    assert found.description.endswith("2 classes by the names of their folders: 0 'a', 1 'b'")
    with pytest.raises(UsageError, match="'3.png' cannot be read"):
        datasets.load_data(f"images:{tmp_path}", **wanted)


def test_an_image_lies_as_its_camera_says(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 255
    turned = Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 6  # rotated by a quarter
    turned.save(tmp_path / "a.png", exif=exif)
    (found,) = datasets.load_data(f"images:{tmp_path}", shape=(1, 8, 8)).latents
    expected = np.rot90(pixels, -1).astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(found[0], expected)


@pytest.mark.parametrize(
    ("scale", "doubted"), [(1, False), (0.18215, True), (5.5, True), (2, False)]
)
def test_latents_that_are_hardly_scaled_are_doubted(tmp_path, scale, doubted):
    values = np.random.default_rng(0).standard_normal((4, 4, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", scale * values)
    doubts = datasets.load_data(f"latents:{tmp_path / 'x.npy'}").doubts
    assert bool(doubts) == doubted
    assert not doubted or f"standard deviation of {scale * values.std():.3g}," in doubts[0]
    (tmp_path / "latents_stats.pt").write_bytes(b"")
    assert len(datasets.load_data(f"latents:{tmp_path / 'x.npy'}").doubts) == 1 + doubted


def test_labels_may_be_one_hot(tmp_path):
    values = np.zeros((3, 1, 8, 8), np.float32)
    hot = np.eye(4, dtype=np.float32)[[2, 0, 3]]
    np.savez(tmp_path / "x.npz", latents=values, labels=hot)
    found = datasets.load_data(f"latents:{tmp_path / 'x.npz'}", num_classes=4)
    assert found.labels.tolist() == [2, 0, 3]
    assert found.changes == ("labels are one-hot rows of 4 classes",)
    hot[0, 1] = 1
    np.savez(tmp_path / "x.npz", latents=values, labels=hot)
    with pytest.raises(UsageError, match="do not fit"):
        datasets.load_data(f"latents:{tmp_path / 'x.npz'}")


def test_what_images_lose_is_said(tmp_path):
    """Nothing is said of images that fit; of the others, what was done to how many."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert datasets.load_data(f"images:{tmp_path}", shape=(3, 8, 8)).changes == ()
    Image.new("L", (8, 8)).save(tmp_path / "b.png")
    Image.new("RGBA", (16, 16)).save(tmp_path / "c.png")
    (said,) = datasets.load_data(f"images:{tmp_path}", shape=(3, 8, 8)).changes
    assert said == (
        "of 3 images: 1 resized to 8x8 (they have 8x8 to 16x16 pixels), "
        "1 given three equal channels, 1 stripped of transparency"
    )


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
    found = datasets.load_data(f"latents:{path}", shape=(4, 8, 8), num_classes=5)
    assert np.array_equal(found.latents.numpy(), x) and found.labels.tolist() == y.tolist()
    assert found.first(2).ids.tolist() == [0, 1]


def write_bytes(path):
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    return path


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
        (lambda d: f"latents:{d}", "holds no latents"),
        (lambda d: f"latents:{write_bytes(d / 'a.h5')}", "as REPA-E caches latents"),
        (lambda d: f"latents:{write(d / 'a.npz', latents=np.zeros((2, 4, 8, 8)))}", "no labels"),
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
        datasets.load_data(make(tmp_path), shape=(4, 8, 8), num_classes=10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "npy"])
def test_labels_may_be_missing_where_the_model_has_no_classes(tmp_path, kind):
    x, path = np.ones((3, 4, 8, 8), np.float32), tmp_path / f"some.{kind}"
    if kind == "npz":
        np.savez(path, latents=x)
    elif kind == "safetensors":
        from safetensors.numpy import save_file

        save_file({"latents": x}, path)
    else:
        np.save(path, x)
    found = datasets.load_data(f"latents:{path}", shape=(4, 8, 8))
    assert found.labels.tolist() == [0, 0, 0] and not found.labelled
    assert not found.first(2).labelled and "without labels" in found.description
    with pytest.raises(UsageError, match="has no labels, the model knows 3 classes") as told:
        datasets.load_data(f"latents:{path}", shape=(4, 8, 8), num_classes=3)
    assert "labels (N,)" in told.value.hint and "some_labels" not in str(told.value)
    assert datasets.digits().labelled


@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x.safetensors", "x.txt"])
def test_damaged_latents(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 not really")
    (tmp_path / "x_labels.npy").write_bytes(b"nor this")
    with pytest.raises(UsageError, match=r"cannot be read|no known kind"):
        datasets.load_data(f"latents:{tmp_path / name}")


def packed(path, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in (("latents", np.zeros((2**13, 4, 16, 16), np.float32)),
                            ("labels", np.zeros(2**13, int))):  # fmt: skip
            archive.writestr(f"{name}.npy", npy(array))
    return path


def npy(array, shape=None):
    """A .npy file's bytes, perhaps with another shape in its header."""
    file = io.BytesIO()
    np.save(file, array)
    if shape is None:
        return file.getvalue()
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(64)


def twice(path):
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for name in ("latents.npy", "labels.npy", "labels.npy"):
            archive.writestr(name, npy(np.zeros((2, 4), np.float32)))
    return path


def sparse(path):
    """64 GiB of zeros that lie nowhere."""
    path.write_bytes(npy(np.zeros(1), (2**20, 4, 64, 64))[:128])
    os.truncate(path, 2**36 + 128)
    np.save(path.with_name("x_labels.npy"), np.zeros(2**20, int))
    return path


def pickled(path):
    class Marker:
        def __reduce__(self):
            return os.system, (f"touch {path.with_name('ran')}",)

    np.savez(path, latents=np.array([Marker()], dtype=object), labels=np.zeros(1, int))
    return path


def with_label(path, label):
    np.savez(path, latents=np.zeros((1, 4), np.float32), labels=np.array([label]))
    return path


def made(path, content):
    path.write_bytes(content)
    path.with_name("x_labels.npy").write_bytes(npy(np.zeros(2, int)))
    return path


def header_bomb(path):
    raw = b'{"a":[' + b"[]," * 700_000 + b"0]}"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    return path


NOT_FINITE = {"latents": np.array([[1e300, 0.0]]), "labels": np.zeros(1, int)}
HOSTILE = {
    "bomb": (lambda d: packed(d / "x.npz"), "claims 33554560 bytes"),
    "bomb in bz2": (lambda d: packed(d / "x.npz", zipfile.ZIP_BZIP2), "claims 33554560 bytes"),
    "twice": (lambda d: twice(d / "x.npz"), "an entry twice"),
    "sparse": (lambda d: sparse(d / "x.npy"), "needs 128.0 GiB"),
    "pickle": (lambda d: pickled(d / "x.npz"), "Object arrays cannot be loaded"),
    "pipe": (lambda d: os.mkfifo(d / "x.npz") or d / "x.npz", "no file"),
    "header": (lambda d: header_bomb(d / "x.safetensors"), "header claims"),
    "code": (lambda d: made(d / "x.npy", npy(0, "(__import__('os').abort(),)")), "cannot be read"),
    "nested": (lambda d: made(d / "x.npy", npy(0, "(" * 5000)), "cannot be read"),
    "minus": (lambda d: made(d / "x.npy", npy(0, "-" * 9000 + "1")), "cannot be read"),
    "exabytes": (lambda d: made(d / "x.npy", npy(0, (10**9, 10**9))), "cannot be read"),
    "digits": (lambda d: made(d / "x.npy", npy(0, f"({'9' * 9000},)")), "cannot be read"),
    "negative label": (lambda d: with_label(d / "x.npz", -1), "whole numbers from 0"),
    "huge label": (lambda d: with_label(d / "x.npz", 2**63), "whole numbers from 0"),
    "NaN label": (lambda d: with_label(d / "x.npz", np.nan), "whole numbers from 0"),
    "text label": (lambda d: with_label(d / "x.npz", "a"), "whole numbers from 0"),
    "no rows": (lambda d: write(d / "x.npz", latents=np.zeros((0, 4)), labels=np.zeros(0, int)),
                "do not fit"),
    "beyond float32": (lambda d: write(d / "x.npz", **NOT_FINITE), "NaN or Inf"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_latents(tmp_path, name, recwarn):
    make, words = HOSTILE[name]
    path = make(tmp_path)
    recwarn.clear()
    with pytest.raises(UsageError, match=words) as caught:
        datasets.load_data(f"latents:{path}")
    message = str(caught.value)
    assert message.isprintable() and len(message) < 300 and caught.value.hint.isprintable()
    assert caught.value.hint and caught.value.exit_code == 2
    assert not recwarn.list and not (tmp_path / "ran").exists()


def test_latents_in_types_that_numpy_lacks_or_another_machine_has(tmp_path):
    x = torch.randn(3, 4).to(torch.bfloat16)
    save_file({"latents": x, "labels": torch.arange(3)}, tmp_path / "x.safetensors")
    assert torch.equal(datasets.latents(tmp_path / "x.safetensors").latents, x.float())
    swapped = x.float().numpy().astype(">f4")
    found = datasets.latents(write(tmp_path / "x.npz", latents=swapped, labels=np.arange(3)))
    assert torch.equal(found.latents, x.float())


def chunk(kind, content):
    return (
        struct.pack(">I", len(content)) + kind + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )  # fmt: skip


def png(width, height, *more):
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", head),
            *more,
            chunk(b"IDAT", zlib.compress(bytes(100))),
            chunk(b"IEND", b""),
        ]
    )


def gif():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "GIF")
    return file.getvalue()


IMAGES = {
    "bomb": (png(10**5, 10**5), "cannot be read as an image"),
    "smaller bomb": (png(9000, 9000), "its 9000x9000 pixels are too many"),
    "little on disk": (png(2**12, 2**12), "its 4096x4096 pixels are too many"),
    "text bomb": (png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24)))), "too large"),
    # Pillow would start Ghostscript for it.
    "program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "identify"),
    "another format": (gif(), "identify"),
    "drawing": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "identify"),
    "page": (b"<!doctype html>", "identify"),
    "empty": (b"", "identify"),
    "pipe": (os.mkfifo, "not a regular file"),
    "zeros": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "loop": (lambda path: path.symlink_to(path.name), "cannot be opened"),
    "folder": (lambda path: path.mkdir(), "a folder"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_hostile_images(tmp_path, name, recwarn, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is started
    content, words = IMAGES[name]
    path = tmp_path / "a\n\x1b[2J.png"
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        datasets.load_data(f"images:{tmp_path}", shape=(3, 8, 8))
    message = str(caught.value)
    assert message.isprintable() and len(message) < 400 and caught.value.hint.isprintable()
    assert caught.value.exit_code == 2 and not recwarn.list


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [("CMYK", "JPEG", {}), ("RGBA", "PNG", {}), ("P", "PNG", {}), ("1", "BMP", {}),
     ("RGB", "WEBP", {"save_all": True, "append_images": [Image.new("RGB", (9, 9), "red")]})],
)  # fmt: skip
def test_images_of_every_mode_are_their_first_picture(tmp_path, mode, kind, options):
    Image.new(mode, (9, 9)).save(tmp_path / "a.png", kind, **options)
    found = datasets.load_data(f"images:{tmp_path}", shape=(3, 8, 8)).latents
    assert found.shape == (1, 3, 8, 8)
    assert torch.allclose(found, torch.tensor(1.0 if mode == "CMYK" else -1.0), atol=0.02)


def test_damaged_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(UsageError, match="cannot be read as an image"):
        datasets.load_data(f"images:{tmp_path}", shape=(3, 8, 8))


@pytest.mark.parametrize("count", [0, -1, 1798])
def test_more_samples_than_there_are(count):
    with pytest.raises(UsageError, match="1797"):
        datasets.load_data("digits").first(count)


def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    found = datasets.load_data(f"images:{tmp_path}", shape=(1, 8, 8)).latents
    np.testing.assert_allclose(found[0, 0].numpy(), ramp / 65535 * 2 - 1, atol=0.01)


def test_an_entry_that_is_no_array_is_not_taken_for_one(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("latents", b"no array")
        archive.writestr("labels", b"no array")
    with pytest.raises(UsageError, match="no array called 'latents'"):
        datasets.latents(path)
