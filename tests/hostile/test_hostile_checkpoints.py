import argparse
import ast
import contextlib
import datetime
import gc
import io
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dar_probe import checkpoints
from dar_probe.checkpoints import reader
from dar_probe.checkpoints.reader import Checkpoint
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.files import kinds
from dar_probe.files.text import quote
from dar_probe.models.sit_layout import Sizes
from tests.hostile.builders import (
    BAD,
    Execute,
    official_state,
    rezip,
    sizes_of,
    tensor_pickle,
    training_checkpoint,
    with_attribute,
    with_pickle,
)

ROOT = Path(__file__).parents[2]
HOSTILE_NAME = "x\n\x1b[2J\u202e</script>\ud800"


def in_a_fresh_process(code: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", BAD)
def test_bad_file(name: str, tmp_path: Path) -> None:
    build, words = BAD[name]
    path = tmp_path / "given.pt"
    build(path)
    began = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        checkpoints.read(path)
    message = str(caught.value)
    assert words in message
    assert "given.pt" in message
    assert message.isprintable() and len(message) < 400
    assert caught.value.hint and caught.value.hint.isprintable()
    assert caught.value.exit_code == 3
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", ["items", "values", "get", "keys"])
def test_a_dict_that_brings_its_own_methods_is_read_by_its_items(name: str, tmp_path: Path) -> None:
    with_attribute(name)(tmp_path / "x.pt")
    assert torch.equal(checkpoints.read(tmp_path / "x.pt").state["w"], torch.zeros(10))
    rezip(
        tmp_path / "x.pt",
        tmp_path / "args.pt",
        lambda _, data: (
            data.replace(b"\x80\x02c", b"\x80\x02}X\x03\0\0\0ema}sX\x04\0\0\0argsc")[:-1] + b"s."
            if data.startswith(b"\x80\x02c")
            else data
        ),
    )
    assert checkpoints.read(tmp_path / "args.pt").args == {"w": "<Tensor>"}


def test_a_file_that_becomes_a_pipe_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a regular file when it was looked at, and is another one when it is opened."""
    (tmp_path / "x.pt").write_bytes(b"PK")
    regular = os.stat(tmp_path / "x.pt")
    (tmp_path / "x.pt").unlink()
    os.mkfifo(tmp_path / "x.pt")
    monkeypatch.setattr(os, "stat", lambda path: regular)
    with pytest.raises(CheckpointError, match="not a regular file"):
        checkpoints.read(tmp_path / "x.pt")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no such file")
def test_a_file_that_cannot_be_read_is_one_sentence() -> None:
    with pytest.raises(CheckpointError, match="cannot be opened: Input/output error"):
        checkpoints.read("/proc/self/mem")


def test_what_torch_warns_of_is_not_printed(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """A namespace in a storage's place, of which torch says that it is deprecated."""
    space = (
        b"cargparse\nNamespace\n)\x81}X\x05\0\0\0dtypectorch\nfloat32\ns"
        b"X\x10\0\0\0_untyped_storage(X\x07\0\0\0storagectorch\nFloatStorage\n"
        b"X\x01\0\0\x000X\x03\0\0\0cpuK\ntQsb"
    )
    good = tensor_pickle(10, 1)
    start, end = good.index(b"(X\x07\0\0\0storage"), good.index(b"tQ") + 2
    with_pickle(tmp_path / "x.pt", good[:start] + space + good[end:])
    with contextlib.suppress(CheckpointError):
        checkpoints.read(tmp_path / "x.pt")
    assert not recwarn.list


def test_the_builders_of_bad_archives_can_also_build_a_good_one(tmp_path: Path) -> None:
    with_pickle(tmp_path / "x.pt", tensor_pickle(10, 1))
    assert torch.equal(checkpoints.read(tmp_path / "x.pt").state["w"], torch.zeros(10))


def test_no_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, marker = tmp_path / "x.pt", tmp_path / "marker"
    torch.save({"ema": official_state(), "args": Execute(f"touch {marker}")}, path)
    with pytest.raises(CheckpointError, match=f"'{os.name}.system'"):
        checkpoints.read(path)
    # The second wall holds alone: torch refuses what the first one would have let through.
    monkeypatch.setattr(kinds, "ALLOWED_GLOBALS", kinds.ALLOWED_GLOBALS | {f"{os.name}.system"})
    with pytest.raises(CheckpointError, match="torch's safe loader refuses its pickle"):
        checkpoints.read(path)
    # So does the first, in a process where somebody widened torch's list.
    monkeypatch.undo()
    with (
        torch.serialization.safe_globals([(Path, "pathlib.PosixPath")]),
        pytest.raises(CheckpointError, match="pathlib.PosixPath"),
    ):
        torch.save({"w": torch.zeros(1), "p": Path("x")}, path)
        checkpoints.read(path)
    assert not marker.exists()


@pytest.mark.parametrize("numpy", [b"numpy._core", b"numpy.core"])  # of NumPy 2 and 1
def test_the_way_out_of_settings_of_other_classes_is_a_way(numpy: bytes, tmp_path: Path) -> None:
    """The hint's own command, under torch's safe loader, keeps the weights."""
    settings = argparse.Namespace(
        out=Path("x"), when=datetime.datetime(2026, 1, 1), lr=np.float64(3), some=np.arange(3)
    )
    torch.save({"model": official_state(), "args": settings}, tmp_path / "new.pt")
    with (
        zipfile.ZipFile(tmp_path / "new.pt") as old,
        zipfile.ZipFile(tmp_path / "x.pt", "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"numpy._core", numpy))
    with pytest.raises(CheckpointError, match=r"asks for 'pathlib\.") as caught:
        checkpoints.read(tmp_path / "x.pt")
    command = caught.value.hint.partition("classes: ")[2].replace(
        "FILE", repr(str(tmp_path / "x.pt"))
    )
    command = command.replace("NEW", repr(str(tmp_path / "y.pt")))
    subprocess.run([sys.executable, "-c", command], check=True)
    found = checkpoints.read(tmp_path / "y.pt").state
    for name, value in official_state().items():
        assert torch.equal(found[name], value)


def test_what_nobody_knows_is_not_to_be_imported(tmp_path: Path) -> None:
    torch.save({"model": official_state(), "args": Execute("true")}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as caught:
        checkpoints.read(tmp_path / "x.pt")
    assert "safe_globals" not in caught.value.hint


def test_the_allow_list_is_this() -> None:
    types = "Double Float Half BFloat16 Long Int Short Char Byte Bool".split()
    dtypes = (
        "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool uint16 uint32 uint64 "
        "complex32 complex64 complex128 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
    ).split()
    assert {
        "argparse.Namespace",
        "collections.OrderedDict",
        "torch.Size",
        "torch.device",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch.storage.UntypedStorage",  # named, and never called: see the builders
        "collections.Counter",
        "__builtin__.set",
        "builtins.set",
        *(f"torch.{name}Storage" for name in types),
        *(f"torch.{name}" for name in dtypes),
        "torch.float8_e4m3fn",
        "torch.float8_e5m2",
    } == kinds.ALLOWED_GLOBALS


def python_files() -> list[Path]:
    folders = ("dar_probe", "cli", "reports", "fixtures")
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def test_nothing_in_the_tree_loads_pickles_unsafely(subtests: pytest.Subtests) -> None:
    loads = 0
    for file in python_files():
        with subtests.test(file=str(file)):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                imported = (
                    {alias.name for alias in node.names}
                    if isinstance(node, ast.Import)
                    else ({node.module} if isinstance(node, ast.ImportFrom) else set())
                )
                assert not imported & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, file
                if not isinstance(node, ast.Call):
                    continue
                options = {k.arg: getattr(k.value, "value", ...) for k in node.keywords}
                assert options.get("weights_only", True) is True, file
                assert options.get("mmap", False) is False, file
                assert options.get("allow_pickle", False) is False, file
                called = ast.unparse(node.func)
                if called == "torch.load":
                    loads += 1
                    assert options["weights_only"] is True, file
                if called.endswith("safe_globals"):
                    assert ast.unparse(node.args[0]) == "[argparse.Namespace]", file
            text = file.read_text(encoding="utf-8")
            assert "weights_only=" + "False" not in text and "mmap=" + "True" not in text, file
    assert loads >= 1


def test_a_load_is_never_tried_twice(subtests: pytest.Subtests) -> None:
    for file in python_files():
        with subtests.test(file=str(file)):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                for handler in getattr(node, "handlers", []):
                    called = {
                        ast.unparse(n.func) for n in ast.walk(handler) if isinstance(n, ast.Call)
                    }
                    assert not any(name.rpartition(".")[2] == "load" for name in called), file


@pytest.mark.parametrize("name", ["web page", "overlap", "whole module", "legacy"])
def test_a_refusal_imports_no_torch(name: str, tmp_path: Path) -> None:
    BAD[name][0](tmp_path / "x.pt")
    code = """
import sys
from pathlib import Path
from dar_probe.checkpoints import read
from dar_probe.errors import CheckpointError
try:
    read(sys.argv[1])
except CheckpointError as error:
    print(error)
assert "torch" not in sys.modules and "numpy" not in sys.modules
"""
    assert BAD[name][1] in in_a_fresh_process(code, str(tmp_path / "x.pt"))


@pytest.mark.parametrize("name", ["bomb", "a billion entries", "nested key", "memory at will"])
def test_a_bomb_costs_no_memory(name: str, tmp_path: Path) -> None:
    BAD[name][0](tmp_path / "x.pt")
    code = """
import resource, sys
from pathlib import Path
from dar_probe.checkpoints import read
from dar_probe.errors import CheckpointError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read(sys.argv[1])
except CheckpointError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown_kib = int(in_a_fresh_process(code, str(tmp_path / "x.pt")))
    assert grown_kib < 32 * 1024


def test_nothing_of_the_unused_parts_stays_in_memory(tmp_path: Path) -> None:
    torch.save({"ema": {"w": torch.zeros(10)}, "model": {"w": torch.zeros(999)}}, tmp_path / "x.pt")
    found = checkpoints.read(tmp_path / "x.pt")
    gc.collect()
    alive = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.shape == (999,)]
    assert not alive and found.state["w"].shape == (10,)


# --- names are hostile


@given(st.text(), st.integers(20, 200))
def test_a_quoted_text_is_short_and_printable(text: str, limit: int) -> None:
    shown = quote(text, limit)
    assert shown.isprintable() and len(shown) <= limit
    assert (shown == repr(text)) == (len(repr(text)) <= limit and len(text) <= limit)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, HOSTILE_NAME, "", "~", "a/b\n/c"])
def test_hostile_paths(path: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        checkpoints.read(os.path.join(tmp_path, path))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 250


def test_a_good_file_with_a_hostile_path_opens(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\n\x1b[2J.pt"
    with open(path, "wb") as file:
        torch.save({"w": torch.zeros(1)}, file)
    assert checkpoints.read(os.fsdecode(path)).weights == "flat"


@pytest.mark.parametrize("where", ["type", "key", "args", "global"])
def test_hostile_names_inside(where: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    if where == "type":
        torch.save({HOSTILE_NAME * 99: 3, "w": torch.zeros(1)}, path)
    elif where == "key":
        torch.save({HOSTILE_NAME * 99: torch.zeros(1), **official_state()}, path)
    elif where == "args":
        args = {"heads": HOSTILE_NAME, "model": HOSTILE_NAME}
        torch.save({"ema": official_state(), "args": args}, path)
    else:
        with_pickle(path, b"cbuiltins\x1b[2J\x07\nx\r\n")
    with pytest.raises(CheckpointError) as caught:
        sizes_of(checkpoints.read(path).header)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


# --- what torch would have let through, were it not refused earlier


class Odd(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.eye(3).to_sparse(), "without plain memory"),
        (lambda: torch.eye(3).to_sparse_csr(), "without plain memory"),
        (lambda: torch.empty(3, device="meta"), "without plain memory"),
        (lambda: torch.zeros(3, dtype=torch.complex64), "complex64"),
        (lambda: torch.zeros(3).to(torch.float8_e8m0fnu), "float8_e8m0fnu"),
        (lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "qint8"),
        (lambda: torch.zeros(1).expand(1000), "larger than the 4 bytes"),
        (lambda: torch.zeros(4).as_strided((2**30, 2**30), (0, 0)), "larger than the 16 bytes"),
        (lambda: torch.zeros([1] * 17), "17 dimensions"),
        (lambda: torch.zeros(3).as_subclass(Odd), "of type Odd"),
        (lambda: {"w": 1}, "of type dict"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:.*quantiz")
def test_a_value_that_is_no_plain_tensor(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        reader._checked("w", make(), "'x.pt'")


# --- fuzzing


def names_all_the_way_down(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and names_all_the_way_down(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(names_all_the_way_down, value))
    return value is None or type(value) in (bool, int, float, str)


def opens_or_is_refused(path: Path) -> bool:
    try:
        found = checkpoints.read(path)
    except CheckpointError as error:
        assert str(error).isprintable() and error.hint
        return False
    assert type(found) is Checkpoint
    assert names_all_the_way_down(found.args)
    for key, tensor in found.state.items():
        assert type(key) is str and type(tensor) is torch.Tensor
        assert tensor.sum().shape == ()  # reads every element
    try:
        assert type(sizes_of(found.header)) is Sizes
    except (CheckpointError, UsageError) as error:
        assert str(error).isprintable() and error.hint
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    state = {f"w.{i}": torch.arange(3.0) + i for i in range(3)}
    training_checkpoint(folder / "training.pt")
    torch.save({"ema": state, "args": {"format": "dar-probe", "a": [1, (2.0, "x")]}},
               folder / "small.pt")  # fmt: skip
    safetensors.torch.save_file(state, folder / "small.safetensors")
    for name in ("training.pt", "small.pt", "small.safetensors"):
        assert opens_or_is_refused(folder / name)
    return folder


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes, bytes], bytes]:
    """A function that damages its first argument, perhaps with a piece of its second."""
    kind = draw(st.sampled_from(["flip", "flip", "cut", "splice", "repeat", "insert"]))
    places = draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=3))
    flips = draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
                          min_size=1, max_size=4))  # fmt: skip
    piece = draw(st.binary(min_size=1, max_size=8))

    def mutate(data: bytes, other: bytes) -> bytes:
        a, b = sorted(int(place * len(data)) for place in places[:2])
        c = int(places[2] * len(other))
        if kind == "cut":
            return data[:a]
        if kind == "splice":
            return data[:a] + other[c : c + b - a] + data[b:]
        if kind == "repeat":
            return data[:b] + data[a:]
        if kind == "insert":
            return data[:a] + piece + data[a:]
        changed = bytearray(data)
        for place, value in flips:
            if changed:
                changed[int(place * len(changed))] ^= value
        return bytes(changed)

    return mutate


FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(
    mutate=mutations(),
    name=st.sampled_from(["training.pt", "small.pt", "small.safetensors"]),
    other=st.sampled_from(["training.pt", "small.pt", "small.safetensors"]),
)
def test_any_bytes(folder: Path, mutate: Callable[..., bytes], name: str, other: str) -> None:
    target = folder / "mutant"
    target.write_bytes(mutate((folder / name).read_bytes(), (folder / other).read_bytes()))
    opens_or_is_refused(target)


@FUZZ
@given(
    mutate=mutations(),
    entry=st.sampled_from(["data.pkl", "data.pkl", "data.pkl", "byteorder", ".format_version",
                           "data/0", "version", ".storage_alignment"]),
    scanned=st.booleans(),
)  # fmt: skip
def test_any_bytes_in_an_archive_that_is_whole(
    folder: Path, mutate: Callable[..., bytes], entry: str, scanned: bool
) -> None:
    """The checksums fit, so that torch sees the damage; also without the walk over the pickle."""
    with zipfile.ZipFile(folder / "training.pt") as archive:
        other = archive.read("training/data.pkl")
    rezip(
        folder / "small.pt",
        folder / "mutant",
        lambda name, data: mutate(data, other) if name == entry else data,
    )
    with pytest.MonkeyPatch.context() as patch:
        if not scanned:
            patch.setattr(kinds, "_check_pickle", lambda pickled, shown: None)
        opens_or_is_refused(folder / "mutant")


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x10" + bytes(7)])
)
def test_any_small_file(folder: Path, content: bytes, start: bytes) -> None:
    (folder / "mutant").write_bytes(start + content)
    opens_or_is_refused(folder / "mutant")


@given(st.binary(max_size=300))
def test_any_pickle(content: bytes) -> None:
    """The walk over the pickle ends with nothing or a refusal, whatever the opcodes."""
    try:
        kinds._check_pickle(content, "'x'")
    except CheckpointError:
        return
    assert b"." in content


OPCODES = [
    b")",
    b"}",
    b"]",
    b"(",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"N",
    b"s",
    b"u",
    b"a",
    b"e",
] + [b"q\0", b"q\1", b"h\0", b"h\1", b"R", b"b", b"\x81", b"ccollections\nOrderedDict\n"]


@settings(max_examples=500)
@given(st.lists(st.sampled_from(OPCODES), max_size=40))
def test_the_walk_weighs_every_tuple_that_torch_builds(opcodes: list[bytes]) -> None:
    pickled = b"\x80\x02" + b"".join(opcodes) + b"t."
    limit = 12
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "MAX_TUPLE", limit)
        try:
            kinds._check_pickle(pickled, "'x'")
        except CheckpointError:
            return
    try:
        made = torch._weights_only_unpickler.load(io.BytesIO(pickled))
    except Exception:  # torch refuses it, whatever the walk says
        return
    assert weight(made) <= limit


def weight(value: Any) -> int:
    return 1 + sum(map(weight, value)) if isinstance(value, tuple) else 1
