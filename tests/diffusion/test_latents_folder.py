"""Latents as REPA's and LightningDiT's preprocessing leaves them, and .pt files of tensors."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dar_probe.diffusion import data as datasets
from dar_probe.errors import UsageError
from dar_probe.files import arrays
from tests.hostile.builders import with_pickle

SHAPE = (4, 6, 6)
MEAN = "of each image the mean of the VAE's posterior is taken; training draws from it"
SCALED = "the data were scaled by 0.18215, the factor of Stable Diffusion's VAE, as in training"


def repa(folder, count=7, *, each=3, channels=4, labels=True):
    """Write moments of ``count`` images, ``each`` a subfolder; return means and labels."""
    rng = np.random.default_rng(0)
    means = rng.normal(1, 5, (count, channels, 6, 6)).astype(np.float32)
    classes = rng.integers(0, 10, count).tolist()
    entries = []
    for i in rng.permutation(count).tolist():
        name = f"{i // each:05d}/img-mean-std-{i:08d}.npy"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, np.concatenate([means[i], np.full_like(means[i], 0.1)]))
        entries.append([name, classes[i]])
    if labels:
        (folder / "dataset.json").write_text(json.dumps({"labels": entries}))
    return means, classes


def lightningdit(folder, sizes=(5, 3), *, stats=True, dtype=torch.float32):
    """Write shards of 2 channels; return what training sees of the images, and their labels."""
    torch.manual_seed(0)
    mean, std = torch.tensor([3.0, -1.0])[:, None, None], torch.tensor([2.0, 0.5])[:, None, None]
    normal = torch.randn(sum(sizes), 2, 6, 6)
    latents, labels = (normal * std + mean).to(dtype), torch.arange(sum(sizes)) % 10
    for k, rows in enumerate(torch.split(torch.arange(sum(sizes)), list(sizes))):
        part = {"latents": latents[rows], "latents_flip": latents[rows] + 9, "labels": labels[rows]}
        save_file(part, folder / f"latents_rank00_shard{k:03d}.safetensors")
    if stats:
        torch.save({"mean": mean[None], "std": std[None]}, folder / "latents_stats.pt")
    return (latents.float() - mean) / std, labels.tolist()


def fast_dit(folder, sizes=(1,) * 6):
    """Write scaled latents and labels of one batch a file in two folders; return both."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((sum(sizes), *SHAPE)).astype(np.float32)
    labels = rng.integers(0, 10, len(latents))
    for name in ("imagenet256_features", "imagenet256_labels"):
        (folder / name).mkdir()
    for k, rows in enumerate(np.split(np.arange(len(latents)), np.cumsum(sizes)[:-1])):
        np.save(folder / f"imagenet256_features/{k}.npy", latents[rows])
        np.save(folder / f"imagenet256_labels/{k}.npy", labels[rows])
    return latents, labels


@pytest.mark.parametrize("sizes", [(1,) * 6, (4, 2)])
@pytest.mark.parametrize("inside", ["", "imagenet256_features"])
def test_fast_dits_pair_of_folders_is_read_as_it_is(tmp_path, sizes, inside):
    """Its encoder has multiplied the latents by 0.18215 before it saves them."""
    latents, labels = fast_dit(tmp_path, sizes)
    found = datasets.load_data(f"latents:{tmp_path / inside}", shape=SHAPE, num_classes=10)
    np.testing.assert_array_equal(found.latents, latents)
    assert found.labels.tolist() == labels.tolist()
    assert found.changes == ("labels are those of the folder 'imagenet256_labels'",)
    assert found.description.endswith("used as they are") and found.doubts == ()
    assert len(datasets.load_data(f"latents:{tmp_path}", most=3)) == 3


def test_a_pair_of_folders_that_does_not_fit_is_refused(tmp_path):
    fast_dit(tmp_path)
    where = f"latents:{tmp_path}"
    np.save(tmp_path / "imagenet256_labels/3.npy", np.zeros(2, np.int64))
    with pytest.raises(
        UsageError, match=r"3.npy' has labels of shape \(2,\), its latents are \(1,"
    ):
        datasets.load_data(where)
    (tmp_path / "imagenet256_labels/3.npy").unlink()
    with pytest.raises(UsageError, match="there is no file"):
        datasets.load_data(where)
    np.save(tmp_path / "imagenet256_features/2.npy", np.zeros((1, 4, 3, 3), np.float32))
    with pytest.raises(UsageError, match="does not fit the other latents"):
        datasets.load_data(where)
    for file in (tmp_path / "imagenet256_features").iterdir():
        file.unlink()
    with pytest.raises(UsageError, match="holds no .npy files"):
        datasets.load_data(where)


@pytest.mark.parametrize("end", [".npz", ".safetensors"])
def test_a_file_without_latents_says_what_it_has_instead(tmp_path, end):
    found = {"moments": np.zeros((2, 8, 6, 6), np.float32), "y": np.zeros(2, np.int64)}
    if end == ".npz":
        np.savez(tmp_path / "x.npz", **found)
    else:
        save_file({k: torch.from_numpy(v) for k, v in found.items()}, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="no array called 'latents', but 'moments' and 'y'"):
        datasets.load_data(f"latents:{tmp_path / ('x' + end)}")


def test_samples_of_twice_the_channels_are_called_what_they_may_be(tmp_path):
    np.savez(tmp_path / "x.npz", latents=np.zeros((2, 8, 6, 6), np.float32))
    with pytest.raises(UsageError, match="samples of 8x6x6, the model takes 4x6x6") as caught:
        datasets.load_data(f"latents:{tmp_path / 'x.npz'}", shape=SHAPE)
    assert "a VAE's mean and deviation" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "what"),
    [("train.parquet", "Parquet"), ("data.mdb", "LMDB"),
     ("shard.00000.mds", "MosaicML"), ("7.pt", "one .pt file a row"),
     ("n01440764/1.npz", "one .npz file a row")],
)  # fmt: skip
def test_what_trainers_keep_latents_in_is_called_what_it_is(tmp_path, name, what):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=f"is not read: it holds .*{what}") as caught:
        datasets.load_data(f"latents:{tmp_path}")
    assert "one .npz" in caught.value.hint
    if not name.endswith((".pt", ".npz")):
        with pytest.raises(UsageError, match=f"'{name}' is not read: it is .*{what}"):
            datasets.load_data(f"latents:{tmp_path / name}")


@pytest.mark.parametrize("inside", ["", "vae-sd"])
def test_repas_moments_are_the_mean_scaled(tmp_path, inside):
    means, labels = repa(tmp_path / inside)
    found = datasets.load_data(f"latents:{tmp_path}", shape=SHAPE, num_classes=10)
    np.testing.assert_allclose(found.latents, means * 0.18215, rtol=1e-6)
    assert found.labels.tolist() == labels and found.ids.tolist() == list(range(7))
    assert found.changes == (MEAN, SCALED) and found.doubts == ()
    assert found.description.endswith("scaled by 0.18215, the factor of Stable Diffusion's VAE")


def test_moments_are_left_to_a_model_that_has_a_norm_of_its_own(tmp_path):
    means, _ = repa(tmp_path)
    found = datasets.load_data(f"latents:{tmp_path}", raw=True)
    assert np.array_equal(found.latents, means) and found.changes == (MEAN,)
    own = datasets.LatentNorm(mean=torch.ones(4).double(), std=torch.full((4,), 5.0).double(),
                              by="bn")  # fmt: skip
    named = found.normalised(own)
    np.testing.assert_allclose(named.latents, (means - 1) / 5, atol=1e-6)
    assert named.changes == (MEAN, "the data were normalised by bn, as in training")


def test_moments_of_another_vae_are_doubted(tmp_path):
    repa(tmp_path, channels=8)
    found = datasets.load_data(f"latents:{tmp_path}")
    assert "nothing tells how the model takes them" in found.doubts[-1]
    assert found.changes == (MEAN,) and found.description.endswith("used as they are")


def test_lightningdits_shards_are_normalised_by_their_statistics(tmp_path):
    expected, labels = lightningdit(tmp_path)
    found = datasets.load_data(f"latents:{tmp_path}", num_classes=10)
    torch.testing.assert_close(found.latents, expected)
    assert found.labels.tolist() == labels and found.doubts == ()
    said = "the data were normalised by mean and std in latents_stats.pt, as in training"
    assert found.changes == (said,)
    shard = datasets.load_data(f"latents:{tmp_path / 'latents_rank00_shard001.safetensors'}")
    torch.testing.assert_close(shard.latents, expected[5:])
    assert shard.changes == (said,)


@pytest.mark.parametrize("scale", [1, 1.3 / 5 / 0.18215])
def test_moments_that_were_scaled_before_are_doubted(tmp_path, scale):
    """As they are drawn, and at the widest that a channel of scaled latents usually has."""
    repa(tmp_path)
    for path in tmp_path.rglob("*.npy"):
        np.save(path, scale * 0.18215 * np.load(path))
    (doubt,) = datasets.load_data(f"latents:{tmp_path}").doubts
    assert doubt.startswith("Scaled by 0.18215") and "instead of about 1" in doubt


def test_shards_of_narrow_numbers_and_without_statistics(tmp_path):
    expected, _ = lightningdit(tmp_path, dtype=torch.bfloat16)
    torch.testing.assert_close(datasets.load_data(f"latents:{tmp_path}").latents, expected)
    (tmp_path / "latents_stats.pt").unlink()
    found = datasets.load_data(f"latents:{tmp_path}")
    (doubt,) = found.doubts
    assert "no latents_stats.pt" in doubt and found.changes == ()


def test_latents_that_were_normalised_before_are_doubted(tmp_path):
    expected, labels = lightningdit(tmp_path)
    save_file(
        {"latents": expected, "labels": torch.tensor(labels)},
        tmp_path / "latents_rank00_shard000.safetensors",
    )
    (tmp_path / "latents_rank00_shard001.safetensors").unlink()
    (doubt,) = datasets.load_data(f"latents:{tmp_path}").doubts
    assert doubt.startswith("Normalised by mean and std in latents_stats.pt, a channel")


def test_only_the_wanted_rows_are_read(tmp_path, monkeypatch):
    means, labels = repa(tmp_path)
    opened, looked = [], []
    for module, name, seen in ((arrays, "read_array", opened), (os, "scandir", looked)):
        before = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda path, f=before, seen=seen: seen.append(Path(path)) or f(path)
        )
    (tmp_path / "00002" / "img-mean-std-00000006.npy").write_bytes(b"damaged")
    found = datasets.load_data(f"latents:{tmp_path}", most=2)
    np.testing.assert_allclose(found.latents, means[:2] * 0.18215, rtol=1e-6)
    assert found.labels.tolist() == labels[:2]
    assert {path.name for path in opened} == {f"img-mean-std-{i:08d}.npy" for i in (0, 1)}
    assert looked == [tmp_path, tmp_path, tmp_path / "00000"]
    with pytest.raises(UsageError, match="img-mean-std-00000006.npy' cannot be read"):
        datasets.load_data(f"latents:{tmp_path}")


def test_only_the_wanted_rows_of_shards_are_read(tmp_path):
    expected, labels = lightningdit(tmp_path)
    (tmp_path / "latents_rank00_shard002.safetensors").write_bytes(b"damaged")
    found = datasets.load_data(f"latents:{tmp_path}", most=6)
    torch.testing.assert_close(found.latents, expected[:6])
    assert found.labels.tolist() == labels[:6]
    few = arrays.read_rows(tmp_path / "latents_rank00_shard000.safetensors", ("latents", "no"), 2)
    assert list(few) == ["latents"] and few["latents"].shape == (2, 2, 6, 6)
    with pytest.raises(UsageError, match="shard002.safetensors' cannot be read"):
        datasets.load_data(f"latents:{tmp_path}", most=9)


def test_rows_are_in_the_order_of_their_whole_paths(tmp_path):
    names = ["a-b/1.npy", "a/2.npy", "a.npy", "b/c/3.npy", "Z.npy"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / name, np.full(SHAPE, names.index(name), np.float32))
    (tmp_path / ".b").mkdir()
    np.save(tmp_path / ".b" / "0.npy", np.zeros(SHAPE))
    found = datasets.load_data(f"latents:{tmp_path}")
    assert [names[int(row[0, 0, 0])] for row in found.latents] == sorted(names)
    assert not found.labelled and found.changes == ()


def test_labels_stand_in_blocks_of_the_file(tmp_path, monkeypatch):
    from dar_probe.diffusion import latents_folder

    _, labels = repa(tmp_path, 40)
    for block in (64, 77, 10**6):
        monkeypatch.setattr(latents_folder, "BLOCK", block)
        assert datasets.load_data(f"latents:{tmp_path}").labels.tolist() == labels
    (tmp_path / "dataset.json").write_text('{"labels": null}')
    assert not datasets.load_data(f"latents:{tmp_path}").labelled


@pytest.mark.parametrize("alone", [True, False])
def test_pt_files(tmp_path, alone):
    latents, labels = torch.randn(3, *SHAPE), torch.arange(3)
    content = {"latents": latents.bfloat16(), "labels": labels, "made_by": "me"}
    torch.save(latents if alone else content, tmp_path / "x.pt")
    found = datasets.load_data(f"latents:{tmp_path / 'x.pt'}")
    assert torch.equal(found.latents, latents if alone else latents.bfloat16().float())
    assert found.labelled is not alone
    assert found.labels.tolist() == ([0, 0, 0] if alone else [0, 1, 2])


def shaped(folder, row, shape, dtype=np.float32):
    repa(folder)
    np.save(folder / "00000" / f"img-mean-std-{row:08d}.npy", np.ones(shape, dtype))


def labelled(folder, text):
    repa(folder)
    (folder / "dataset.json").write_text(text)


def stats(folder, content):
    lightningdit(folder)
    torch.save(content, folder / "latents_stats.pt")


def shard(folder, **content):
    lightningdit(folder)
    save_file(content, folder / "latents_rank01_shard000.safetensors")


ONES = torch.ones(1, 2, 1, 1)
HOSTILE = {
    "empty": (lambda d: None, "holds no latents"),
    "another size": (lambda d: shaped(d, 1, (8, 5, 6)), "00000001.npy' of shape"),
    "odd channels": (lambda d: shaped(d, 0, (7, 6, 6)), "00000000.npy' of shape"),
    "a number": (lambda d: shaped(d, 0, ()), "00000000.npy' of shape"),
    "whole numbers": (lambda d: shaped(d, 2, (8, 6, 6), np.int64), "00000002.npy' of shape"),
    "log variance": (
        lambda d: (shaped(d, 1, (8, 6, 6)), np.save(
            d / "00000" / "img-mean-std-00000001.npy", -np.ones((8, 6, 6), np.float32))),
        "values below 0",
    ),
    "another kind": (
        lambda d: (repa(d), np.save(d / "00000" / "img.npy", np.ones((8, 6, 6)))),
        "'00000/img.npy' of shape",
    ),
    "no label": (
        lambda d: labelled(d, '{"labels": [["00000/img-mean-std-00000000.npy", 1]]}'),
        "has no label of '00000/img-mean-std-00000001.npy'",
    ),
    "no labels": (lambda d: labelled(d, "[1, 2]"), "does not begin with labels"),
    "a label of text": (lambda d: labelled(d, '{"labels": [["a", "b"]]}'), "has no label"),
    "nested": (lambda d: labelled(d, '{"labels": ' + "[" * 10**5), "nested without end"),
    "cut short": (lambda d: labelled(d, '{"labels": [["00000/img'), "cannot be read"),
    "no text": (lambda d: (repa(d), (d / "dataset.json").write_bytes(b"\xff" * 9)), "utf-8"),
    "half a label": (
        lambda d: labelled(d, json.dumps({"labels": [
            [f"{i // 3:05d}/img-mean-std-{i:08d}.npy", 0.5] for i in range(7)]})),
        "whole numbers",
    ),
    "no statistics": (lambda d: stats(d, {"mean": ONES}), "no mean and std of 2 channels"),
    "no spread": (lambda d: stats(d, {"mean": ONES, "std": 0 * ONES}), "no mean and std of 2"),
    "endless spread": (lambda d: stats(d, {"mean": ONES, "std": np.inf * ONES}), "no mean and std"),
    "beyond float32": (
        lambda d: (repa(d), np.save(
            d / "00000" / "img-mean-std-00000001.npy", np.full((8, 6, 6), 1e300))),
        "NaN or Inf",
    ),
    "other channels": (
        lambda d: stats(d, {"mean": torch.ones(3), "std": torch.ones(3)}), "no mean and std of 2",
    ),
    "statistics of text": (lambda d: stats(d, {"mean": "a", "std": "b"}), "latents_stats.pt"),
    "statistics that run": (
        lambda d: (lightningdit(d), with_pickle(d / "latents_stats.pt", b"cos\nsystem\n)R")),
        "asks for 'os.system'",
    ),
    "no latents": (lambda d: shard(d, labels=torch.arange(2)), "no array called 'latents'"),
    "other latents": (
        lambda d: shard(d, latents=torch.ones(2, 2, 5, 6), labels=torch.arange(2)),
        "rank01_shard000.safetensors' of shape",
    ),
    "fewer labels": (
        lambda d: shard(d, latents=torch.ones(2, 2, 6, 6), labels=torch.arange(3)),
        "rank01_shard000.safetensors' of shape",
    ),
    "NaN": (
        lambda d: shard(d, latents=torch.full((2, 2, 6, 6), torch.nan), labels=torch.arange(2)),
        "NaN or Inf",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_bad_folders_are_refused(tmp_path, name, recwarn):
    make, words = HOSTILE[name]
    make(tmp_path)
    recwarn.clear()
    with pytest.raises(UsageError, match=words) as caught:
        datasets.load_data(f"latents:{tmp_path}")
    message = str(caught.value)
    assert message.isprintable() and len(message) < 400 and caught.value.hint.isprintable()
    assert caught.value.exit_code == 2 and not recwarn.list


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(1)], "of type list, not a tensor"),
        ({"labels": torch.ones(1)}, "no array called 'latents'"),
        (
            {"latents": torch.ones(2, 4).to_sparse()},
            "asks for 'torch._utils._rebuild_sparse_tensor'",
        ),
        ({"latents": torch.ones(1).expand(2, 10**9)}, "claim|larger"),
    ],
)
def test_bad_pt_files_are_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UsageError, match=words):
        datasets.load_data(f"latents:{tmp_path / 'x.pt'}")
