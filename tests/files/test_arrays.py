"""Arrays of untrusted files: every type, what may be left out, and the memory that is asked for."""

import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from dar_probe.errors import UsageError
from dar_probe.files import arrays
from dar_probe.runtime import memory


def test_bfloat16_becomes_the_same_number_in_float32(tmp_path):
    values = torch.tensor([[1.0, -2.5], [3e38, 1e-40], [torch.inf, 0.1]])
    given = {"wide": values, "half": values.bfloat16(), "short": values.half()}
    given["whole"] = torch.tensor([-3, 4])
    safetensors.torch.save_file(given, tmp_path / "a.safetensors")
    found = arrays.read_arrays(tmp_path / "a.safetensors")
    assert found["half"].dtype == np.float32 and found["half"].shape == (3, 2)
    np.testing.assert_array_equal(found["half"], values.bfloat16().float().numpy())
    for name in ("wide", "short", "whole"):
        np.testing.assert_array_equal(found[name], given[name].numpy())
        assert found[name].dtype == given[name].numpy().dtype


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_only_what_is_asked_for_is_read(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    given = {"a": np.arange(3.0), "b": np.arange(4)}
    if suffix == ".npz":
        np.savez(path, **given)
    else:
        safetensors.torch.save_file({k: torch.from_numpy(v) for k, v in given.items()}, path)
    assert sorted(arrays.read_arrays(path)) == ["a", "b"]
    assert sorted(arrays.read_arrays(path, ["b", "c"])) == ["b"]
    assert arrays.read_arrays(path, []) == {}


def test_numbers_in_the_other_byte_order_are_turned(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3, dtype=">f4"))
    found = arrays.read_array(tmp_path / "a.npy")
    assert found.dtype == np.dtype("=f4") and found.tolist() == [0, 1, 2]


def test_an_entry_twice_is_refused_and_once_is_not(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(3), b=np.arange(3))
    assert len(arrays.read_arrays(path)) == 2
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("a.npy", file.read("b.npy"))
    with pytest.raises(UsageError, match="it has an entry twice"):
        arrays.read_arrays(path)


def test_memory_is_required_for_the_array_and_once_more_in_another_type(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "SMALL", 1000)
    count = 1000
    np.save(tmp_path / "a.npy", np.zeros(count))
    np.savez(tmp_path / "a.npz", a=np.zeros(count))
    safetensors.torch.save_file({"a": torch.zeros(count).double()}, tmp_path / "a.safetensors")
    for suffix, extra in ((".npy", 128), (".npz", 128), (".safetensors", 0)):
        path = tmp_path / f"a{suffix}"
        read = arrays.read_array if suffix == ".npy" else arrays.read_arrays
        need = 2 * (8 * count + extra)
        monkeypatch.setattr(memory, "available", lambda need=need: need)
        read(path)
        monkeypatch.setattr(memory, "available", lambda need=need: need - 1)
        with pytest.raises(UsageError, match="of memory"):
            read(path)


def test_little_is_read_whatever_memory_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 0)
    np.save(tmp_path / "a.npy", np.zeros(1000))
    assert arrays.read_array(tmp_path / "a.npy").shape == (1000,)


def test_an_entry_may_unpack_to_a_hundred_times_its_bytes_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "SMALL", 10)
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10**5))
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        (entry,) = file.infolist()
    ratio = entry.file_size / entry.compress_size
    monkeypatch.setattr(arrays, "MAX_RATIO", ratio)
    arrays.read_arrays(tmp_path / "a.npz")
    monkeypatch.setattr(arrays, "MAX_RATIO", ratio * 0.999)
    with pytest.raises(UsageError, match="claims 800128 bytes, packed in"):
        arrays.read_arrays(tmp_path / "a.npz")
