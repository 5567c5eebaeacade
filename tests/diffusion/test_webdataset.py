"""WebDataset's archives: the first rows, with their classes, read without unpacking them."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from dar_probe.diffusion import data as datasets
from dar_probe.errors import UsageError

ONE = np.ones((4, 2, 2))


def pack(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def npy(values):
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def png(value):
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(out, "PNG")
    return out.getvalue()


def latents(folder, counts=(3, 2)):
    rng, values, at = np.random.default_rng(0), [], 0
    for shard, count in enumerate(counts):
        members = []
        for _ in range(count):
            values.append(rng.standard_normal((4, 2, 2), dtype=np.float32))
            members.append((f"train/{at:05d}.latent.npy", npy(values[-1])))
            told = ("cls", str(at % 3)) if at % 2 else ("json", json.dumps({"label": at % 3}))
            members.append((f"train/{at:05d}.{told[0]}", told[1].encode()))
            at += 1
        pack(folder / f"{shard:06d}.tar", members)
    return np.stack(values), np.arange(at) % 3


def test_latents_of_several_archives(tmp_path):
    values, labels = latents(tmp_path)
    found = datasets.load_data(f"latents:{tmp_path}", num_classes=3)
    np.testing.assert_array_equal(found.latents, values)
    assert found.labels.tolist() == labels.tolist()
    few = datasets.load_data(f"latents:{tmp_path}", most=4)
    np.testing.assert_array_equal(few.latents, values[:4])
    one = datasets.load_data(f"latents:{tmp_path / '000001.tar'}")
    np.testing.assert_array_equal(one.latents, values[3:])


def test_rows_that_are_not_wanted_are_not_read(tmp_path):
    values, _ = latents(tmp_path)
    (tmp_path / "000001.tar").write_bytes(b"no archive at all")
    found = datasets.load_data(f"latents:{tmp_path}", most=3)
    np.testing.assert_array_equal(found.latents, values[:3])
    with pytest.raises(UsageError, match="'000001.tar' cannot be read as a tar archive"):
        datasets.load_data(f"latents:{tmp_path}", most=4)


def test_images_of_archives(tmp_path):
    members = []
    for at, value in enumerate((0, 255, 51)):
        members += [(f"{at}.png", png(value)), (f"{at}.cls", str(at).encode())]
    pack(tmp_path / "a.tar", members)
    for where in (tmp_path, tmp_path / "a.tar"):
        found = datasets.load_data(f"images:{where}", shape=(3, 4, 4), num_classes=3)
        means = found.latents.mean((1, 2, 3))
        np.testing.assert_allclose(means, [-1, 1, 51 / 127.5 - 1], atol=1e-6)
        assert found.labels.tolist() == [0, 1, 2]
        assert "labels: as the archives tell them" in found.changes
    # Images beside an archive are the folder's own.
    (tmp_path / "b.png").write_bytes(png(7))
    assert len(datasets.load_data(f"images:{tmp_path}", shape=(3, 4, 4))) == 1


def test_images_without_classes_are_said_to_be_of_one(tmp_path):
    pack(tmp_path / "a.tar", [("x.png", png(3)), ("x.txt", b"a caption"), ("._x.png", b"hidden")])
    found = datasets.load_data(f"images:{tmp_path}", shape=(1, 4, 4), num_classes=3)
    assert any("taken for class 0: no archive tells another" in one for one in found.changes)
    assert found.latents.shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.npy", npy(ONE)), ("a.mask.npy", npy(ONE))], "one .npy or .npz, and has"),
        ([("a.txt", b"words")], "takes one .npy or .npz, and has 'txt'"),
        ([("a.npy", b"\x93NUMPY" + b"x" * 40)], "'npy' cannot be read"),
        ([("a.npy", npy(np.array([{}], object)))], "'npy' cannot be read"),
        ([("a.npy", npy(ONE)), ("a.cls", b"cat")], "its class cannot be read"),
        ([("a.npy", npy(ONE)), ("a.cls", b"-1")], "its class is"),
        ([("a.npy", npy(ONE)), ("a.json", b'{"label": "cat"}')], "its class is 'cat'"),
        ([("a.npy", npy(ONE)), ("b.npy", npy(np.ones((4, 2, 3))))], "and the first one"),
        ([("a.npy", npy(ONE)), ("a.cls", b"1"), ("b.npy", npy(ONE))],
         "tells the classes of some samples alone"),
        ([], "holds no samples"),
    ],
)  # fmt: skip
def test_what_is_no_set_of_latents_is_refused(tmp_path, members, words):
    pack(tmp_path / "a.tar", members)
    with pytest.raises(UsageError, match=words):
        datasets.load_data(f"latents:{tmp_path}")


def test_compressed_and_cut_archives_are_refused(tmp_path):
    values, _ = latents(tmp_path, (3,))
    whole = (tmp_path / "000000.tar").read_bytes()
    for cut in (len(whole) // 3, 700, 100):
        (tmp_path / "000000.tar").write_bytes(whole[:cut])
        try:
            found = datasets.load_data(f"latents:{tmp_path}")
        except UsageError:
            continue
        np.testing.assert_array_equal(found.latents, values[: len(found)])  # whole rows alone
    pack(tmp_path / "000000.tar", [("a.npy", npy(ONE))], "w:gz")
    with pytest.raises(UsageError, match="cannot be read as a tar archive"):
        datasets.load_data(f"latents:{tmp_path}")


def test_links_in_archives_lead_nowhere(tmp_path):
    (tmp_path / "secret.npy").write_bytes(npy(ONE))
    folder = tmp_path / "set"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as archive:
        link = tarfile.TarInfo("a.npy")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.npy")
        archive.addfile(link)
    with pytest.raises(UsageError, match="holds no samples"):
        datasets.load_data(f"latents:{folder}")


def test_images_of_which_some_alone_have_a_class_are_refused(tmp_path):
    pack(tmp_path / "a.tar", [("0.png", png(1)), ("0.cls", b"2"), ("1.png", png(2))])
    with pytest.raises(UsageError, match="tells the classes of some samples alone"):
        datasets.load_data(f"images:{tmp_path}", shape=(3, 4, 4), num_classes=3)
