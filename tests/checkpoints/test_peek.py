"""The first look at a file: the same names and shapes as reading it, at no price in memory."""

import contextlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dar_probe.checkpoints.peek import peek
from dar_probe.checkpoints.reader import read
from dar_probe.errors import CheckpointError
from dar_probe.files.safetensors_header import stored
from tests.hostile.builders import BAD, official_state, rezip, training_checkpoint
from tests.hostile.builders import safetensors as write_safetensors

ROOT = Path(__file__).parents[2]
MIB = 2**20


def same(path, weights="auto"):
    seen, found = peek(path, weights), read(path, weights=weights)
    assert seen.shapes == {key: tuple(value.shape) for key, value in found.state.items()}
    assert list(seen.shapes) == list(found.state)
    assert seen.dtypes == {key: value.dtype for key, value in found.state.items()}
    assert (seen.args, seen.weights, seen.bytes) == (found.args, found.weights, found.bytes)
    return found


@pytest.mark.parametrize("weights", ["auto", "ema", "model"])
def test_a_training_checkpoint(weights, tmp_path):
    same(training_checkpoint(tmp_path / "x.pt"), weights)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int8, torch.bool])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_flat_file_with_prefixes(dtype, suffix, tmp_path):
    state = {f"module._orig_mod.{k}": v.to(dtype) for k, v in official_state().items()}
    state |= {"scalar": torch.ones((), dtype=dtype), "none": torch.ones(0, 3, dtype=dtype)}
    path = tmp_path / f"x{suffix}"
    (torch.save if suffix == ".pt" else safetensors.torch.save_file)(state, path)
    found = same(path)
    for key, value in state.items():
        assert torch.equal(found.state[key.removeprefix("module._orig_mod.")], value)


def test_fixtures():
    paths = sorted((ROOT / "fixtures").glob("*.pt"))
    assert len(paths) == 3
    for path in paths:
        assert same(path).args["format"] == "dar-probe"


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_or_only_its_bytes_are_bad(name, tmp_path):
    path = tmp_path / "given.pt"
    BAD[name][0](path)
    if name in ("flipped weight", "storage overstated", "offset outside"):
        assert peek(path).shapes  # reading it is refused
        return
    with pytest.raises(CheckpointError) as caught:
        peek(path)
    assert str(caught.value).isprintable() and caught.value.hint


def test_the_other_byte_order_is_refused_before_torch_swaps_at_address_zero(tmp_path):
    path = training_checkpoint(tmp_path / "x.pt")
    other = {"little": b"big", "big": b"little"}[sys.byteorder]
    rezip(path, tmp_path / "y.pt", lambda name, data: other if name == "byteorder" else data)
    for look in (peek, read):
        with pytest.raises(CheckpointError, match="byte order"):
            look(tmp_path / "y.pt")


# --- the header of safetensors, against the library's own reading

NAMES = st.text(max_size=3)
SIZES = st.integers(0, 4) | st.sampled_from([-1, 2**62, 2**64, True, 1.0, "2", None])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "I64", "X", 3]),
        "shape": st.lists(st.integers(0, 3) | SIZES, max_size=3),
        "data_offsets": st.lists(SIZES, min_size=1, max_size=3),
    }
)


@st.composite
def headers(draw):
    """A header of files that are whole, and of files where one thing is not."""
    header, end = {}, 0
    for name in draw(st.lists(NAMES, max_size=4, unique=True)):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    if draw(st.booleans()):
        header[draw(NAMES)] = draw(ENTRIES)
    if draw(st.booleans()):
        header["__metadata__"] = {"a": "b"}
    names = draw(st.permutations(list(header)))
    return {name: header[name] for name in names}, bytes(end + draw(st.sampled_from([0, 0, 1])))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(headers())
def test_no_header_is_read_that_the_library_refuses(tmp_path_factory, made):
    path = tmp_path_factory.getbasetemp() / "x.safetensors"
    header, data = made
    write_safetensors(path, header, data)
    with open(path, "rb") as file, contextlib.suppress(ValueError):
        mine = stored(file)
        theirs = safetensors.torch.load_file(path)
        assert {k: entry.shape for k, entry in mine.items()} == {
            k: tuple(v.shape) for k, v in theirs.items()
        }
        for key, entry in mine.items():
            assert getattr(torch, entry.dtype) == theirs[key].dtype
            file.seek(entry.start)
            assert (
                file.read(entry.bytes)
                == theirs[key].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},'
         b'"a":{"dtype":"I8","shape":[],"data_offsets":[0,1]}}', "twice"),
        (b"[" * 100_000, "nested"),
        (b"[]", "no list of tensors"),
        (b'{"\\ud800":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', "surrogates"),
        (b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,' + b"9" * 5000 + b"]}}", "digits"),
        (b'{"a":3}', "is no tensor"),
    ],
)  # fmt: skip
def test_a_header_that_is_none(raw, words, tmp_path):
    write_safetensors(tmp_path / "x", raw, b"\0")
    with open(tmp_path / "x", "rb") as file, pytest.raises(ValueError, match=words):
        stored(file)


def described(**places):
    """Return the header of one-byte numbers with the given first and last bytes."""
    return json.dumps(
        {
            name: {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
            for name, (start, stop) in places.items()
        }
    ).encode()


@pytest.mark.parametrize(
    ("places", "size"),
    [
        ({"a": (0, 4), "b": (8, 12), "c": (8, 12)}, 12),  # as many bytes as there are, in all
        ({"a": (0, 4), "b": (5, 8)}, 8),  # a hole
        ({"a": (1, 4), "b": (4, 8)}, 8),  # a hole at the beginning
        ({"a": (0, 5), "b": (4, 8)}, 8),  # an overlap
        ({"a": (0, 4), "b": (0, 4)}, 4),  # twice the same
        ({"a": (0, 4), "b": (4, 8)}, 9),  # a byte too many
        ({"a": (0, 4), "b": (4, 8)}, 7),  # a byte too few
    ],
    ids=str,
)
def test_every_byte_belongs_to_exactly_one_tensor(places, size, tmp_path):
    write_safetensors(tmp_path / "x", described(**places), bytes(size))
    with (tmp_path / "x").open("rb") as file, pytest.raises(ValueError, match="byte|hole"):
        stored(file)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.torch.load_file(tmp_path / "x")


def test_empty_tensors_may_lie_anywhere_between_others(tmp_path):
    places = {"b": (4, 8), "none": (4, 4), "a": (0, 4), "last": (8, 8), "first": (0, 0)}
    write_safetensors(tmp_path / "x", described(**places), bytes(range(8)))
    with (tmp_path / "x").open("rb") as file:
        found = stored(file)
        begin = 8 + len(described(**places))
    assert {name: (e.start - begin, e.start - begin + e.bytes) for name, e in found.items()} == (
        places
    )
    starts = [entry.start for entry in found.values()]
    assert starts == sorted(starts)


@pytest.mark.parametrize(
    ("kind", "shape", "fits"),
    [
        ("U8", [0, 2**62], True),
        ("U8", [0, 2**63 - 1], True),
        ("U8", [0, 2, 2**62], False),
        ("F16", [0, 2**61], True),
        ("F16", [0, 2**62], False),
        ("F64", [2**59, 0], True),
        ("F64", [2**60, 0], False),
        ("U8", [2**63, 0], False),
        ("U8", [0] * 64, True),
        ("U8", [0] * 65, False),
    ],
    ids=str,
)
def test_an_empty_tensor_is_as_large_as_torch_can_count(kind, shape, fits, tmp_path):
    """Where a size is zero the others may be anything; torch multiplies them in int64."""
    entry = {"dtype": kind, "shape": shape, "data_offsets": [0, 0]}
    write_safetensors(tmp_path / "x", json.dumps({"a": entry}).encode(), b"")
    with (tmp_path / "x").open("rb") as file:
        if fits:
            assert stored(file)["a"].shape == tuple(shape)
        else:
            with pytest.raises(ValueError, match="'a' has"):
                stored(file)


# --- memory

# Not getrusage: a child's begins with the peak of the process that started it.
MEASURE = """
import re, sys
from pathlib import Path
from dar_probe.checkpoints.peek import peek
from dar_probe.checkpoints.reader import read

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

before = peak()
found = {"peek": peek, "read": read}[sys.argv[1]](sys.argv[2])
print((peak() - before) * 1024)
"""


ONLY_LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no VmHWM")


def peak_of(what, path):
    """Bytes that a fresh process needs above its imports."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, what, str(path)],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@ONLY_LINUX
def test_a_look_at_a_gibibyte_costs_almost_nothing(tmp_path):
    path, size = tmp_path / "x.safetensors", 2**30
    count = 64
    part = size // count
    header = json.dumps({
        f"blocks.{i}.w": {"dtype": "F32", "shape": [1024, part // 4096],
                          "data_offsets": [i * part, (i + 1) * part]}
        for i in range(count)
    }).encode()  # fmt: skip
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)  # a hole, no block on disk
    assert len(peek(path).shapes) == count
    assert peak_of("peek", path) < 16 * MIB  # measured: 1.1


@ONLY_LINUX
def test_a_look_at_a_pt_file_leaves_the_tensors_on_the_disk(tmp_path):
    torch.save({f"w{i}": torch.zeros(4 * MIB) for i in range(12)}, tmp_path / "x.pt")
    assert peak_of("peek", tmp_path / "x.pt") < 48 * MIB  # of 192; measured: 1.7


@ONLY_LINUX
def test_reading_costs_one_copy_of_the_chosen_weights(tmp_path):
    def weights():
        return {f"blocks.{i}.w": torch.zeros(MIB) for i in range(16)}  # 64 MiB

    opt = {"exp_avg": weights(), "exp_avg_sq": weights()}
    torch.save({"model": weights(), "ema": weights(), "opt": opt}, tmp_path / "x.pt")
    assert peak_of("read", tmp_path / "x.pt") < (64 + 32) * MIB  # of 256; measured: 73
    small = {f"w{i}": {f"b{j}": torch.zeros(MIB // 16) for j in range(64)} for i in range(15)}
    torch.save({"opt": small, "ema": small["w0"]}, tmp_path / "many.pt")
    assert peak_of("read", tmp_path / "many.pt") < (16 + 32) * MIB  # of 240
    torch.save(weights(), tmp_path / "y.pt")
    assert peak_of("read", tmp_path / "y.pt") < (64 + 16) * MIB
    safetensors.torch.save_file(weights(), tmp_path / "z.safetensors")
    assert peak_of("read", tmp_path / "z.safetensors") < (64 + 16) * MIB


def test_weights_that_share_memory_with_others_are_the_right_ones(tmp_path):
    base = torch.randn(100)
    parts = {"a": base[:50], "b": base[50:], "tied": base[:50], "none": base[:0]}
    content = {
        "model": {"a": base.flip(0).clone(), "b": torch.zeros(0)},
        "before": [torch.randn(7), base],
        "ema": parts,
        "opt": {"a": base[::2], "b": torch.randn(30), "c": torch.zeros(0)},
    }
    torch.save(content, tmp_path / "x.pt")
    for weights in ("ema", "model"):
        found = read(tmp_path / "x.pt", weights=weights).state
        assert list(found) == list(content[weights])
        for key, value in content[weights].items():
            assert torch.equal(found[key], value)


def test_a_file_cut_short_afterwards_does_no_harm(tmp_path):
    """Weights are copies: a map of a file that shrinks would end the process."""
    state = {"w": torch.arange(10_000.0)}
    torch.save({"ema": state, "model": {"w": torch.zeros(10_000)}}, tmp_path / "x.pt")
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    for path in tmp_path.iterdir():
        found = read(path).state["w"]
        path.write_bytes(b"")
        assert torch.equal(found, state["w"])
