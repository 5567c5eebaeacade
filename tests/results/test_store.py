import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from dar_probe.errors import CheckpointError, UsageError
from dar_probe.results import store
from tests.helpers import synthetic
from tests.helpers.shell import interruptible


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "analysis.nc"
    store.write(synthetic.dataset(blocks=2, samples=3, levels=2), path)
    return path.read_bytes()


@pytest.fixture
def file(tmp_path: Path, good: bytes) -> Path:
    path = tmp_path / "analysis.nc"
    path.write_bytes(good)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        store.read(path)
    assert caught.value.exit_code == 3
    assert path.name in str(caught.value), "the sentence names the file"
    return str(caught.value)


# --- what is written is what is read ------------------------------------------------------------


@settings(deadline=None, max_examples=4)
@given(
    seed=st.integers(0, 1000),
    blocks=st.integers(1, 5),
    samples=st.integers(1, 4),
    levels=st.integers(1, 3),
    routing=st.sampled_from(["residual", "dar"]),
)
def test_reading_gives_back_what_was_written(tmp_path_factory, seed, **options) -> None:
    ds = synthetic.dataset(seed=seed, **options)
    path = tmp_path_factory.mktemp("identity") / "a.nc"
    store.write(ds, path)
    got = store.read(path)
    xr.testing.assert_identical(got, ds)
    for name in ds.variables:
        assert got[name].dtype.kind == ds[name].dtype.kind, name
        if ds[name].dtype.kind == "f":
            assert got[name].dtype == ds[name].dtype, name


def test_odd_names_and_more_variables_survive(tmp_path: Path) -> None:
    ds = synthetic.dataset(blocks=1, samples=2, name="</script>\u00fc \U0001f600\n$\\frac{.pt")
    ds["gate_ablated"] = ("pair", np.array([1.5, np.nan], np.float32))
    ds = ds.assign_coords(reader_name=("reader", ["\u03b1 block", "<b>mlp</b>", "head"]))
    store.write(ds, tmp_path / "a \u00fc.nc")
    xr.testing.assert_identical(store.read(tmp_path / "a \u00fc.nc"), ds)


def test_a_part_of_a_read_analysis_can_be_written_again(file: Path) -> None:
    part = store.read(file).isel(sample=[0])
    store.write(part, file)
    xr.testing.assert_identical(store.read(file), part)


def test_nothing_stays_open_and_nothing_is_changed(file: Path, good: bytes) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    ds = store.read(file)
    after = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    file.unlink()
    assert float(ds["rms"].sum()) > 0
    assert after == before
    copy = ds.copy(deep=True)
    store.write(ds, file)
    xr.testing.assert_identical(ds, copy)


def test_the_same_analysis_gives_the_same_bytes(file: Path, good: bytes) -> None:
    store.write(store.read(file), file)
    assert file.read_bytes() == good


def test_large_arrays_are_compressed_and_every_number_has_a_checksum(tmp_path: Path) -> None:
    ds = synthetic.dataset(blocks=4, samples=16, levels=5)
    store.write(ds, tmp_path / "a.nc")
    with h5py.File(tmp_path / "a.nc") as raw:
        assert (raw["gate"].compression, raw["gate"].compression_opts) == ("gzip", 4)
        for name in ds.data_vars:
            assert raw[name].fletcher32, name
            assert "_FillValue" not in raw[name].attrs, name


def test_the_file_has_the_usual_rights(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        store.write(synthetic.dataset(blocks=1, samples=1), tmp_path / "a.nc")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.nc").stat().st_mode) == 0o644


# --- writing fails cleanly ----------------------------------------------------------------------


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    file: Path, good: bytes, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    ds = synthetic.dataset(blocks=3)
    monkeypatch.setattr(os, call, full)
    with pytest.raises(UsageError, match="No space left on device") as caught:
        store.write(ds, file)
    monkeypatch.undo()
    assert caught.value.exit_code == 2 and "analysis.nc" in str(caught.value)
    assert only(file.parent) == ["analysis.nc"] and file.read_bytes() == good


def test_a_file_size_limit_met_in_the_middle(file: Path, good: bytes) -> None:
    ds = synthetic.dataset(blocks=6, samples=32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UsageError, match="File too large"):
            store.write(ds, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert only(file.parent) == ["analysis.nc"] and file.read_bytes() == good


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.write(synthetic.dataset(blocks=1), tmp_path / "a.nc")
    assert only(tmp_path) == []


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    ds = synthetic.dataset(blocks=1, samples=1)
    with pytest.raises(UsageError, match="No such file"):
        store.write(ds, tmp_path / "missing" / "a.nc")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        store.write(ds, tmp_path / "folder")
    assert only(tmp_path) == ["folder"] and only(tmp_path / "folder") == []


def test_no_broken_analysis_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'gate'"):
        store.write(synthetic.dataset(blocks=1).drop_vars("gate"), tmp_path / "a.nc")
    assert only(tmp_path) == []


def test_too_large_to_read_is_too_large_to_write(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_BYTES", 10_000)
    with pytest.raises(UsageError, match="GiB"):
        store.write(synthetic.dataset(), file)
    monkeypatch.setattr(store, "MAX_BYTES", 1000)
    assert "claims" in refusal(file)


# --- reading refuses ----------------------------------------------------------------------------


def test_what_is_no_file_or_no_netcdf(subtests: pytest.Subtests, tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "missing.nc")
    (tmp_path / "folder.nc").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.nc")
    for content, sentence in {
        b"": "is empty",
        b"not an analysis\n": "is not a NetCDF-4 file",
        b"<!DOCTYPE html><html></html>": "is not a NetCDF-4 file",
        b"version https://git-lfs.github.com/spec/v1\n": "is not a NetCDF-4 file",
        b"CDF\x01" + bytes(100): "is not a NetCDF-4 file",
        b"PK\x03\x04" + bytes(100): "is not a NetCDF-4 file",
        store.MAGIC[:4]: "is not a NetCDF-4 file",
        store.MAGIC: "is damaged",
        store.MAGIC + bytes(1000): "is damaged",
        store.MAGIC + b"\xff" * 1000: "is damaged",
    }.items():
        with subtests.test(content=content):
            (tmp_path / "a.nc").write_bytes(content)
            assert sentence in refusal(tmp_path / "a.nc")
    with pytest.raises(CheckpointError, match="no name of a file"):
        store.read("a\0b.nc")
    os.mkfifo(tmp_path / "pipe.nc")
    assert "not a regular file" in refusal(tmp_path / "pipe.nc")


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.99])
def test_truncated(file: Path, good: bytes, share: float) -> None:
    file.write_bytes(good[: int(share * len(good))])
    refusal(file)


def test_a_netcdf_file_of_something_else(tmp_path: Path) -> None:
    xr.Dataset({"t2m": ("time", [1.0, 2.0])}, attrs={"title": "weather"}).to_netcdf(
        tmp_path / "weather.nc", engine="h5netcdf"
    )
    assert "schema version None" in refusal(tmp_path / "weather.nc")
    with h5py.File(tmp_path / "plain.h5", "w") as raw:
        raw["x"] = np.zeros(3)
    refusal(tmp_path / "plain.h5")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    assert "schema version None" in refusal(tmp_path / "empty.h5")


def scale(raw: h5py.File) -> None:
    raw["cosine"].attrs["scale_factor"] = 0.5  # must not be believed: the numbers are as stored


def rename_kind(raw: h5py.File) -> None:
    del raw["reader_kind"]


def edit(name: str, value: float) -> Callable[[h5py.File], None]:
    def change(raw: h5py.File) -> None:
        raw[name][..., -1] = value

    return change


def attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    def change(raw: h5py.File) -> None:
        raw.attrs[name] = value

    return change


EDITS: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "cosine of 2": (edit("cosine", 2.0), "'cosine' leaves its range"),
    "negative rms": (edit("rms", -1.0), "'rms' leaves its range"),
    "infinite gate": (edit("gate", np.inf), "'gate' holds an infinite value"),
    "noise level of 7": (edit("noise_level", 7.0), "noise_level must rise"),
    "another version": (attribute("schema_version", 99), "schema version"),
    "a version that is a word": (attribute("schema_version", "new"), ""),
    "a version that is a list": (attribute("schema_version", [1, 1]), ""),
    "manifest of nonsense": (attribute("manifest", "{"), "manifest"),
    "manifest of numbers": (attribute("manifest", 3.0), "manifest"),
    "no kinds": (rename_kind, ""),
}


@pytest.mark.parametrize("case", EDITS)
def test_changed_by_hand(file: Path, case: str) -> None:
    change, sentence = EDITS[case]
    with h5py.File(file, "r+") as raw:
        change(raw)
    assert sentence in refusal(file)


def test_a_scale_added_by_hand_changes_no_number(file: Path) -> None:
    before = store.read(file)["cosine"].values
    with h5py.File(file, "r+") as raw:
        scale(raw)
    np.testing.assert_array_equal(store.read(file)["cosine"].values, before)


def test_numbers_outside_the_file_are_not_fetched(file: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.ones(64, np.float32).tobytes())
    with h5py.File(file, "r+") as raw:
        raw.create_dataset("outside", (64,), np.float32, external=[(str(secret), 0, 256)])
    assert "another file" in refusal(file)
    with h5py.File(file, "r+") as raw:
        del raw["outside"]
        raw["linked"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
    assert "links to another file" in refusal(file)
    with h5py.File(file, "r+") as raw:
        del raw["linked"]
        layout = h5py.VirtualLayout((4,), np.float32)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (4,))
        raw.create_virtual_dataset("virtual", layout)
    assert "another file" in refusal(file)
    with h5py.File(file, "r+") as raw:
        del raw["virtual"]
        raw.create_group("inner")["linked"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
        raw["soft"] = h5py.SoftLink("/inner/linked")
    assert "no array of this file" in refusal(file)
    with h5py.File(file, "r+") as raw:
        del raw["inner"]  # the soft link alone
    assert "'soft' is no array of this file" in refusal(file)


def test_little_on_disk_that_is_much_in_memory_is_refused(
    subtests: pytest.Subtests, file: Path, good: bytes
) -> None:
    def with_texts(raw: h5py.File) -> None:
        raw["inflated"] = np.array(["x" * 2**16] * 20, dtype=h5py.string_dtype())

    def never_written(raw: h5py.File) -> None:
        raw.create_dataset("inflated", (2**26,), np.float32, chunks=(2**10,))
        raw["inflated"].make_scale("inflated")

    def many_texts(raw: h5py.File) -> None:
        raw.attrs["inflated"] = ["x" * 100] * 65

    for change, sentence in (
        (with_texts, "more text than names have"),
        (never_written, "claims 0.3 GiB"),
        (many_texts, "many texts as 'inflated'"),
    ):
        with subtests.test(sentence=sentence):
            file.write_bytes(good)
            with h5py.File(file, "r+") as raw:
                change(raw)
            assert sentence in refusal(file)


def test_names_may_hold_so_much_text_and_not_a_letter_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name counts one beside its letters, so that a million empty ones are text too."""
    ds = synthetic.dataset(blocks=2, samples=2, levels=2)
    texts = {name: coord.values for name, coord in ds.coords.items() if coord.dtype.kind == "U"}
    need = max(values.size + sum(map(len, values)) for values in texts.values())
    store.write(ds, tmp_path / "a.nc")
    monkeypatch.setattr(store, "MAX_TEXT", need)
    store.read(tmp_path / "a.nc")
    longest = max(texts.values(), key=lambda values: values.size + sum(map(len, values)))
    for count in range(len(longest)):  # full after that many names, and more to come
        monkeypatch.setattr(store, "MAX_TEXT", longest.size + sum(map(len, longest[:count])))
        with pytest.raises(CheckpointError, match="more text than names have"):
            store.read(tmp_path / "a.nc")
    for most in (need - 1, longest.size - 1, 0):
        monkeypatch.setattr(store, "MAX_TEXT", most)
        with pytest.raises(CheckpointError, match="more text than names have"):
            store.read(tmp_path / "a.nc")


def test_a_claim_of_terabytes_is_refused_before_it_is_believed(file: Path) -> None:
    with h5py.File(file, "r+") as raw:
        raw.create_dataset("huge", (10**6, 10**6), np.float32, chunks=(1024, 1024))
        raw["huge"].dims[0].label = "a"
        for axis, name in enumerate("ab"):
            raw.create_dataset(name, (10**6,), np.float32, chunks=(1024,))
            raw[name].make_scale(name)
            raw["huge"].dims[axis].attach_scale(raw[name])
    assert "claims" in refusal(file)


def test_one_flipped_byte_in_the_numbers_is_noticed(file: Path, good: bytes) -> None:
    with h5py.File(file) as raw:
        chunk = raw["rms"].id.get_chunk_info(0)
    damaged = bytearray(good)
    damaged[chunk.byte_offset + 5] ^= 1
    file.write_bytes(damaged)
    assert "is damaged" in refusal(file)


FUZZ = """
import random, sys, warnings
from dar_probe.results import store
from dar_probe.errors import CheckpointError
path, good = sys.argv[1], open(sys.argv[1], "rb").read()
rng, refused = random.Random(0), 0
for _ in range(16):
    damaged = bytearray(good)
    for _ in range(rng.choice([1, 4, 40])):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    open(path, "wb").write(damaged)
    try:
        store.read(path)
    except CheckpointError:
        refused += 1
print(refused)
"""


def test_random_damage_is_refused_or_harmless(file: Path) -> None:
    """In a process of its own: a parser in C could take the tests with it."""
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert int(done.stdout) >= 5
    assert "Traceback" not in done.stderr, done.stderr


# --- the machine dies ---------------------------------------------------------------------------

WRITER = """
import os, random, signal, sys, time
from pathlib import Path
from dar_probe.results import store
from tests.helpers import synthetic
target = Path(sys.argv[1])
rng = random.Random(0)
versions = [synthetic.dataset(blocks=24, samples=20, levels=8, seed=seed) for seed in (0, 1)]
assert 4e6 < versions[0].nbytes < 8e6
whole = []
for ds in versions:
    start = time.perf_counter()
    store.write(ds, target)
    once = time.perf_counter() - start
    assert store.read(target).identical(ds)
    whole.append(target.read_bytes())
target.unlink()
seen = []
for trial in range(10):
    child = os.fork()
    if child == 0:
        for round in range(1000):
            store.write(versions[round % 2], target)
        os._exit(1)
    while trial > 4 and not target.exists():  # later kills meet an old file, on any machine
        time.sleep(0.0002)
    if trial % 2:  # half of the kills fall into the short time of the file's own writing
        while not list(target.parent.glob(".*.tmp")):
            time.sleep(0.0002)
        time.sleep(rng.uniform(0, 0.004))
    else:
        time.sleep(rng.uniform(0, 1.5 * once))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    seen.append("absent")
    if target.exists():
        seen[-1] = "valid" if target.read_bytes() in whole else "WRONG"
    left = list(target.parent.glob(".*.tmp"))
    assert len(left) <= 1, left
    for path in left:
        path.unlink()
print(*seen)
"""


def test_killed_at_ten_moments_the_target_is_absent_or_valid(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path / "analysis.nc")],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    seen = done.stdout.split()
    assert len(seen) == 10 and set(seen) <= {"absent", "valid"}
    assert "valid" in seen


def test_sigint_is_not_swallowed(tmp_path: Path) -> None:
    """A real Ctrl-C in the middle of a write ends the process and leaves no temporary file."""
    code = (
        "import os, signal, sys\nfrom dar_probe.results import store\n"
        "from tests.helpers import synthetic\n"
        "ds = synthetic.dataset(blocks=2)\nreal = os.fsync\n"
        "os.fsync = lambda fd: (os.kill(os.getpid(), signal.SIGINT), real(fd))\n"
        "store.write(ds, sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.nc")],
        capture_output=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        preexec_fn=interruptible,
    )
    assert done.returncode in (-signal.SIGINT, 130)
    assert only(tmp_path) == []
