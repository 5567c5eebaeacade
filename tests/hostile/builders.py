"""Good and bad checkpoint files, built at test time. None of them is ever committed."""

import argparse
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dar_probe.checkpoints.header import Header
from dar_probe.models import loading, sit_family
from dar_probe.models.sit_layout import Sizes, read_sizes
from tests.checkpoints import packed

Shapes = dict[str, tuple[int, ...]]


def official_shapes(
    *,
    depth: int = 2,
    width: int = 8,
    patch: int = 2,
    channels: int = 4,
    size: int = 8,
    rows: int = 11,
    hidden: int | None = None,
    sigma: bool = False,
    head: int | None = None,
    projectors: tuple[int, ...] = (),
) -> Shapes:
    """Names and shapes of DiT's, SiT's and REPA's official state dict, spelled out."""
    d, hidden = width, hidden or 4 * width
    out = patch * patch * channels * (2 if sigma else 1)
    shapes: Shapes = {
        "pos_embed": (1, (size // patch) ** 2, d),
        "x_embedder.proj.weight": (d, channels, patch, patch),
        "x_embedder.proj.bias": (d,),
        "t_embedder.mlp.0.weight": (d, 256),
        "t_embedder.mlp.0.bias": (d,),
        "t_embedder.mlp.2.weight": (d, d),
        "t_embedder.mlp.2.bias": (d,),
        "y_embedder.embedding_table.weight": (rows, d),
    }
    for i in range(depth):
        shapes |= {
            f"blocks.{i}.attn.qkv.weight": (3 * d, d),
            f"blocks.{i}.attn.qkv.bias": (3 * d,),
            f"blocks.{i}.attn.proj.weight": (d, d),
            f"blocks.{i}.attn.proj.bias": (d,),
            f"blocks.{i}.mlp.fc1.weight": (hidden, d),
            f"blocks.{i}.mlp.fc1.bias": (hidden,),
            f"blocks.{i}.mlp.fc2.weight": (d, hidden),
            f"blocks.{i}.mlp.fc2.bias": (d,),
            f"blocks.{i}.adaLN_modulation.1.weight": (6 * d, d),
            f"blocks.{i}.adaLN_modulation.1.bias": (6 * d,),
        }
        for norm in ("q_norm", "k_norm") if head else ():
            shapes[f"blocks.{i}.attn.{norm}.weight"] = (head or 0,)
            shapes[f"blocks.{i}.attn.{norm}.bias"] = (head or 0,)
    shapes |= {
        "final_layer.linear.weight": (out, d),
        "final_layer.linear.bias": (out,),
        "final_layer.adaLN_modulation.1.weight": (2 * d, d),
        "final_layer.adaLN_modulation.1.bias": (2 * d,),
    }
    for k, z in enumerate(projectors):
        for layer, (rows_out, cols) in zip(
            (0, 2, 4), ((2048, d), (2048, 2048), (z, 2048)), strict=True
        ):
            shapes[f"projectors.{k}.{layer}.weight"] = (rows_out, cols)
            shapes[f"projectors.{k}.{layer}.bias"] = (rows_out,)
    return shapes


def sizes_of(header: Header, heads: int | None = None) -> Sizes:
    """What a file in SiT's layout is, if a model without memory takes its names and shapes."""
    found = sit_family.identify(header, heads)
    loading.blank(header, sit_family.FAMILY, found)
    header.assumptions.clear()  # they would be said twice
    return read_sizes(header, heads)


def official_state(dtype: torch.dtype = torch.float32, **sizes: object) -> dict[str, Tensor]:
    """Random weights of the official layout."""
    generator = torch.Generator().manual_seed(0)
    shapes = official_shapes(**sizes)  # type: ignore[arg-type]
    return {k: torch.randn(s, generator=generator).to(dtype) for k, s in shapes.items()}


def training_checkpoint(path: Path) -> Path:
    """What SiT's and DiT's train.py save: model, ema, opt and a Namespace."""
    ema = official_state()
    parameters = [torch.nn.Parameter(v.clone()) for v in ema.values()]
    optimiser = torch.optim.AdamW(parameters)
    sum(p.square().sum() for p in parameters).backward()  # type: ignore[union-attr]
    optimiser.step()
    args = argparse.Namespace(model="SiT-XL/2", num_classes=10, path_type="Linear", heads=2)
    content = {
        "model": {f"module.{k}": v + 1 for k, v in ema.items()},
        "ema": ema,
        "opt": optimiser.state_dict(),
        "args": args,
    }
    torch.save(content, path)
    return path


def rezip(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Copy a .pt, passing each entry through ``change``; the checksums fit the new content."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name.partition("/")[2], old.read(name)))


def with_pickle(path: Path, pickled: bytes, storage: bytes = bytes(40)) -> None:
    """Write an archive as torch does, around a hand-made pickle with one storage, "0"."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + pickled + b".")
        archive.writestr("a/byteorder", b"little")
        archive.writestr("a/data/0", storage)
        archive.writestr("a/version", b"3\n")


def tensor_pickle(size: int, stride: int, *, numel: int = 10, offset: int = 0) -> bytes:
    """A pickle of {"w": float tensor of one dimension} over storage "0"."""

    def integer(value: int) -> bytes:
        data = pickle.encode_long(value)
        return b"\x8a" + bytes([len(data)]) + data

    return (
        b"}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage"
        b"ctorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + integer(numel) + b"tQ"
        + integer(offset) + integer(size) + b"\x85" + integer(stride)
        + b"\x85\x89ccollections\nOrderedDict\n)RtRs"
    )  # fmt: skip


def _negated() -> bytes:
    """A tensor of which torch is told that its numbers are those of the file with another sign."""
    return tensor_pickle(10, 1).replace(
        b"ccollections\nOrderedDict\n)RtRs",
        b"ccollections\nOrderedDict\n)R}X\x03\0\0\0neg\x88stRs",
    )


def safetensors(path: Path, header: object, data: bytes = b"", length: int | None = None) -> None:
    """Write a .safetensors file with any header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)


class Execute:
    """Unpickling it the careless way runs a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def _entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _legacy(path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)


def _cut(path: Path) -> None:
    training_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-30_000])


def _appended(path: Path) -> None:
    training_checkpoint(path)
    path.write_bytes(path.read_bytes() + b"\0" * 64)


def _flipped_weight(path: Path) -> None:
    state = official_state()
    torch.save(state, path)
    raw = bytearray(path.read_bytes())
    raw[raw.index(state["pos_embed"].numpy().tobytes()) + 3] ^= 0x40
    path.write_bytes(raw)


def _bomb(path: Path) -> None:
    torch.save({"w": torch.zeros(2**24)}, path)
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in entries.items():
            new.writestr(name, data)


def _overlap(path: Path) -> None:
    """Two entries of the directory share one stretch of the file, four times over."""
    with_pickle(path, tensor_pickle(10, 1), bytes(4096))
    raw = path.read_bytes()
    start = raw.index(b"PK\x01\x02")
    end = raw.index(b"PK\x05\x06")
    entry = raw.index(b"PK\x01\x02", raw.index(b"PK\x01\x02", raw.index(b"PK\x01\x02") + 1) + 1)
    record = raw[entry : raw.index(b"PK\x01\x02", entry + 1)]
    extra = b"".join(record.replace(b"a/data/0", b"a/data/%d" % i) for i in range(1, 5))
    tail = struct.pack("<HHII", 8, 8, end - start + len(extra), start) + b"\0\0"
    path.write_bytes(raw[:end] + extra + raw[end : end + 8] + tail)


def _two_directories(path: Path) -> None:
    """zipfile takes the record before the locator, miniz the one that the locator names."""
    training_checkpoint(path)
    raw = bytearray(path.read_bytes())
    raw[-34:-26] = struct.pack("<Q", 4096)
    path.write_bytes(raw)


def _two_pickles(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/DATA.PKL", b"\x80\x02cposix\nsystem\n.")


def _numpy_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("latents.npy", b"\x93NUMPY")


def _torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/constants.pkl", b"\x80\x02).")


def _many_entries(path: Path) -> None:
    path.write_bytes(
        b"PK\x03\x04" + bytes(26) + b"PK\x06\x06" + bytes(28)
        + struct.pack("<QQQ", 10**9, 0, 30) + b"PK\x06\x07" + bytes(4) + struct.pack("<Q", 30)
        + bytes(4) + b"PK\x05\x06" + bytes(18)
    )  # fmt: skip


def _dict_bomb(path: Path) -> None:
    """Seven dicts, each holding the one before it sixty times: trillions of names."""
    inner: dict[str, object] = {"w": torch.zeros(1)}
    for _ in range(7):
        inner = {f"k{i}": inner for i in range(60)}
    torch.save(inner, path)


def _settings_bomb(lists: int) -> Callable[[Path], None]:
    """Lists, each holding the one before it ten times: ten of them are ten billion values."""
    inner: list[object] = [1]
    for _ in range(lists):
        inner = [inner] * 10
    return _saved({"ema": official_state(), "args": {"x": inner}})


def with_attribute(name: str) -> Callable[[Path], None]:
    """An OrderedDict with weights, and an attribute in the place of one of its methods."""
    part = tensor_pickle(10, 1).removeprefix(b"}")
    text = b"X" + struct.pack("<I", len(name)) + name.encode()
    made = b"ccollections\nOrderedDict\n"
    return _pickled(made + b")R" + part + b"}" + text + made + b"sb")


def _nested(depth: int) -> list[object]:
    return [_nested(depth - 1)] if depth else []


def _raw(content: bytes) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(content), None)[1]


def _saved(content: object, **options: object) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path, **options)  # type: ignore[arg-type]


def _pickled(pickled: bytes) -> Callable[[Path], None]:
    return lambda path: with_pickle(path, pickled)


def _tensors(*args: object, **options: object) -> Callable[[Path], None]:
    return lambda path: safetensors(path, *args, **options)  # type: ignore[arg-type]


def _gguf(
    settings: bytes = b"", pairs: int = 0, shapes: Any = None, **tensors: Any
) -> Callable[[Path], None]:
    return lambda path: (
        packed.gguf(path, tensors, settings=settings, pairs=pairs, shapes=shapes) and None
    )


# name -> (how it is built, words that the sentence must have)
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda path: None, "there is no file"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "diffusers folder": (
        lambda path: (path.mkdir(), (path / "config.json").write_text("{}"), None)[2],
        "a folder",
    ),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "there is no file"),
    "link to itself": (lambda path: path.symlink_to(path.name), "cannot be opened"),
    "pipe": (lambda path: os.mkfifo(path), "not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "empty": (_raw(b""), "is empty"),
    "git-lfs pointer": (
        _raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2700000000\n"),
        "git-lfs pointer",
    ),
    "web page": (_raw(b"\n <!DOCTYPE html><html><title>Sign in</title>"), "web page"),
    "text": (_raw(b"Access denied.\n"), "a text file"),
    "json with a brace": (_raw(b'{"ab": "{'), "a text file"),
    "gzip": (_raw(b"\x1f\x8b\x08" + bytes(600)), "gzip"),
    "7z": (_raw(b"7z\xbc\xaf\x27\x1c" + bytes(600)), "7z"),
    "tar": (_raw(b"a" * 257 + b"ustar" + bytes(300)), "tar"),
    "noise": (_raw(bytes(range(128, 256)) * 8), "neither"),
    "one byte": (_raw(b"\x80"), "neither"),
    "netcdf": (_raw(b"\x89HDF\r\n\x1a\n" + bytes(100)), "netCDF"),
    "gguf cut short": (_raw(b"GGUF\3\0\0\0"), "header is cut short"),
    "gguf of the other byte order": (_raw(b"GGUF\0\0\0\3" + bytes(16)), "byte order"),
    "gguf of many tensors": (
        _raw(b"GGUF\3\0\0\0" + b"\xff" * 7 + bytes(9)),
        "claims 72057594037927935 tensors",
    ),
    "gguf of endless texts": (
        _gguf(settings=packed.text("a") + struct.pack("<IIQ", 9, 8, 2**60) + bytes(2**22), pairs=1),
        "header is cut short or too large",
    ),
    "gguf of a long list": (
        _gguf(settings=packed.text("a") + struct.pack("<IIQ", 9, 4, 2**62), pairs=1),
        "cut short",
    ),
    "gguf of a list of lists": (
        _gguf(settings=packed.text("a") + struct.pack("<IIQ", 9, 9, 1), pairs=1),
        "the type 9",
    ),
    "gguf of no alignment": (
        _gguf(settings=packed.text("general.alignment") + struct.pack("<II", 4, 0), pairs=1),
        "its alignment is 0",
    ),
    "gguf of an unknown type": (_gguf(w=(99, (32,), bytes(34))), "the unknown type 99"),
    "gguf of a broken block": (_gguf(w=(8, (2, 33), bytes(68))), "is no Q8_0"),
    "gguf of no weights": (_gguf(w=(0, (0,), b"")), "is no F32"),
    "gguf beyond its end": (_gguf(w=(0, (2**40,), bytes(64))), "ends at byte"),
    "gguf of absurd sizes": (_gguf(w=(0, (2**62, 2**62), bytes(64))), "is no F32"),
    "gguf with a tail": (_gguf(w=(0, (2,), bytes(300))), "its tensors end at byte"),
    "gguf of two shapes": (_gguf(w=(0, (4,), bytes(16)), shapes={"w": (2**20, 2**20)}), "shape"),
    "gguf of a shape of nothing": (_gguf(w=(0, (4,), bytes(16)), shapes={"w": (-4, -1)}), "none"),
    "legacy": (_legacy, "format of before 1.6"),
    "bare pickle": (_raw(pickle.dumps({"a": 1})), "bare pickle"),
    "empty zip": (_raw(b"PK\x05\x06" + bytes(18)), "empty zip"),
    "truncated zip": (_cut, "cut short"),
    "tiny zip": (_raw(b"PK\x03\x04"), "cut short"),
    "zip with a tail": (_appended, "after its end"),
    "flipped weight": (_flipped_weight, "checksum of"),
    "bomb": (_bomb, "is compressed"),
    "overlap": (_overlap, "entries claim"),
    "two directories": (_two_directories, "not where it says"),
    "two pickles": (_two_pickles, "there twice"),
    "npz": (_numpy_archive, "NumPy .npz"),
    "torchscript": (_torchscript, "TorchScript"),
    "a billion entries": (_many_entries, "lists 1000000000 entries"),
    "whole module": (_saved(torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear"),
    "path in args": (_saved({"ema": {}, "args": {"out": Path("x")}}), "PosixPath"),
    "parts of processes": (
        _pickled(b"ctorch.distributed.tensor\nDTensor\n"),
        "spread over processes",
    ),
    "sparse": (_saved({"w": torch.eye(3).to_sparse()}), "_rebuild_sparse_tensor"),
    "meta": (_saved({"w": torch.empty(3, device="meta")}), "its tensors were on the device meta"),
    "complex": (_saved({"w": torch.zeros(3, dtype=torch.complex64)}), "ComplexFloatStorage"),
    "float8 scales": (_saved({"w": torch.zeros(3).to(torch.float8_e8m0fnu)}), "float8_e8m0fnu"),
    "a storage that is called": (
        _pickled(b"ctorch.storage\nUntypedStorage\nq\x00\x8a\x05\0\0\0\0\x01\x85R"),
        "its pickle calls a storage",
    ),
    "a storage that is called from memory": (
        _pickled(b"ctorch.storage\nUntypedStorage\nq\x000h\x00\x8a\x05\0\0\0\0\x01\x85R"),
        "its pickle calls a storage",
    ),
    "memory at will": (
        _pickled(b"cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x01\x85R"),
        "builtins.bytearray",
    ),
    "protocol 4": (_saved({"w": torch.zeros(3)}, pickle_protocol=4), "protocol 4"),
    "nested key": (_pickled(b"})" + b"\x85" * 1_000_000 + b"Ns"), "a tuple of over"),
    "doubling key": (_pickled(b"})" + b"q\0h\0\x86" * 60 + b"Ns"), "a tuple of over"),
    "huge pickle": (_pickled(b"N" * 5_000_000), "its pickle has"),
    "endless marks": (_pickled(b"(" * 1_000_000), "over 150000 steps"),
    "endless lists": (_pickled(b"]" + b"]a" * 400_000), "over 150000 steps"),
    "no opcodes": (_pickled(b"\xff"), "its pickle cannot be read"),
    "stack underflow": (_pickled(b"\x85"), "its pickle cannot be read"),
    "unknown memo": (_pickled(b"h\x07"), "its pickle cannot be read"),
    "expanded": (_pickled(tensor_pickle(10**12, 0)), "larger than"),
    "storage too small": (_pickled(tensor_pickle(10**6, 1)), "cannot be read"),
    "storage overstated": (_pickled(tensor_pickle(10, 1, numel=10**9)), "cannot be read"),
    "offset outside": (_pickled(tensor_pickle(10, 1, offset=10**6)), "cannot be read"),
    "shared": (_saved(dict.fromkeys("abcdefgh", torch.zeros(2**12))), "tensors claim"),
    "negated": (_pickled(_negated()), "without plain memory"),
    "17 dimensions": (_saved({"w": torch.zeros([1] * 17)}), "17 dimensions"),
    "a list": (_saved([1, 2]), "holds a list"),
    "a tensor": (_saved(torch.zeros(3)), "holds a Tensor"),
    "empty dict": (_saved({}), "but nothing"),
    "no tensors": (_saved({"step": 3, 7: 8}), "but 'step', a key of type int"),
    "a number among tensors": (_saved({"a": torch.zeros(1), "b": 3}), "'b' is of type int"),
    "a key that is no name": (_saved({"ema": {3: torch.zeros(1)}}), "a key of type int"),
    "same name twice": (
        _saved({"ema": {"module.a": torch.zeros(1), "a": torch.zeros(1)}}),
        "'a' twice",
    ),
    "args that are no settings": (
        _saved({"ema": {"a": torch.zeros(1)}, "args": "x"}),
        "args of type str",
    ),
    "dict bomb": (_dict_bomb, "hold each other without end"),
    "settings bomb": (_settings_bomb(4), "args are too large"),
    "endless settings bomb": (_settings_bomb(10), "hold each other without end"),
    "deep settings": (
        lambda path: torch.save({"ema": {}, "args": {"x": _nested(40)}}, path),
        "args are too large",
    ),
    "long text in args": (
        _saved({"ema": {"a": torch.zeros(1)}, "args": {"x": "y" * 20_000}}),
        "args are too large",
    ),
    "safetensors huge header": (_tensors(b"{}", length=2**62), "cannot be read"),
    "safetensors negative header": (_tensors(b"{}", length=2**64 - 1), "cannot be read"),
    "safetensors cut header": (_tensors(b'{"a', length=100), "cannot be read"),
    "safetensors no json": (_tensors(b"{{{{"), "cannot be read"),
    "safetensors cut data": (_tensors({"a": _entry([4], 0, 16)}, bytes(8)), "cannot be read"),
    "safetensors overlap": (
        _tensors({"a": _entry([2], 0, 8), "b": _entry([2], 4, 12)}, bytes(12)),
        "cannot be read",
    ),
    "safetensors hole": (
        _tensors({"a": _entry([1], 0, 4), "b": _entry([1], 8, 12)}, bytes(12)),
        "cannot be read",
    ),
    "safetensors negative offset": (_tensors({"a": _entry([1], -4, 0)}), "cannot be read"),
    "safetensors overflow": (_tensors({"a": _entry([2**62, 16], 0, 0)}), "cannot be read"),
    "safetensors overflow beside a zero": (
        _tensors({"a": _entry([2**62, 16, 0], 0, 0), "b": _entry([1], 0, 4)}, bytes(4)),
        "of no tensor",
    ),
    "safetensors header of brackets": (
        _tensors(b'{"a":[' + b"[]," * 700_000 + b"0]}"),
        "header claims",
    ),
    "safetensors wrong size": (_tensors({"a": _entry([3], 0, 8)}, bytes(8)), "cannot be read"),
    "safetensors unknown type": (
        _tensors({"a": _entry([1], 0, 1, "X9")}, bytes(1)),
        "cannot be read",
    ),
    "safetensors complex": (
        _tensors({"a": _entry([1], 0, 8, "C64")}, bytes(8)),
        "which no model here has",
    ),
    "safetensors empty": (_tensors({}), "but nothing"),
}
