"""An untrusted path to a ``Checkpoint``: tensors and provenance, or a refusal."""

import argparse
import hashlib
import mmap
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from dar_probe.checkpoints import gguf_blocks, jax_model, shards, torchao_weights
from dar_probe.checkpoints.header import Header
from dar_probe.checkpoints.quantised import EIGHT_BITS, dequantised, is_settings
from dar_probe.checkpoints.settings import settings
from dar_probe.checkpoints.state_dict import SAVE, Weights, choose, plain, plain_names
from dar_probe.errors import CheckpointError, ProbeError, UsageError
from dar_probe.files import kinds
from dar_probe.files.safetensors_header import Stored, said, stored
from dar_probe.files.text import quote
from dar_probe.runtime.system import trim_memory

# CVE-2026-24747: before 2.10 a file could corrupt the heap under weights_only.
if TorchVersion(torch.__version__) < "2.10":
    raise UsageError(
        f"torch {torch.__version__} does not read checkpoints safely",
        hint="pip install 'torch>=2.10'",
    )

MAX_DIMS = 16
TRIM_EVERY = 16 * 2**20  # bytes
DTYPES = EIGHT_BITS | frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16}
    | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What was read from one file, or from the shards of one index.

    Attributes:
        path: where it was read from.
        sha256: of the whole file, or of the names and contents of the shards, in hex.
        bytes: size of the file or of all shards.
        weights: the state dict taken: "ema", "model", or "flat" where the file is one state dict.
        state: parameters by their plain names, without the prefixes of wrappers; on the CPU.
        args: the settings stored beside the weights as plain data, {} where there are none.
    """

    path: Path
    sha256: str
    bytes: int
    weights: str
    state: dict[str, Tensor]
    args: dict[str, Any]

    @property
    def header(self) -> Header:
        """What the file says beside its weights."""
        return Header(
            shown=quote(self.path.name),
            shapes={key: tuple(value.shape) for key, value in self.state.items()},
            args=self.args,
            weights=self.weights,
        )


def read(
    path: str | Path, *, weights: Weights = "auto", dtype: torch.dtype | None = None
) -> Checkpoint:
    """Read a .pt, .safetensors, .gguf or .npz file, or the index of several, of an unknown origin.

    ``weights`` chooses between the averaged ("ema") and the raw ("model") weights of a training
    checkpoint; "auto" prefers the average. The whole file passes through memory, one tensor at a
    time; only the weights that were chosen stay there. Nothing is mapped: a file that is cut short
    under a map ends the process. Packed weights are dequantised, see ``quantised``, to ``dtype``
    (None: to what their packing has); all others keep their own.

    Raises:
        CheckpointError: the file is refused, is damaged, or holds no such state dict.
        UsageError: its packed weights need a package that is not installed.
    """
    path = Path(path)
    if shards.is_index(path):
        content, digest, size = _read_shards(path)
    else:
        content, digest, size = _read_file(path, weights)
    jax = content if isinstance(content, jax_model.Content) else None
    content = jax.state if jax else content
    label, found, _ = choose(content, weights, quote(path), jax.averages if jax else {})
    args = jax.settings if jax else settings(content, label, quote(path))
    packed = plain_tensors(found, jax.bytes if jax else size, quote(path))
    del content, found, jax  # else what is packed stays until all is not
    state = dequantised(packed, quote(path.name), dtype).state
    return Checkpoint(
        path=path,
        sha256=digest,
        bytes=size,
        weights=label,
        state=state,
        args=args,
    )


def _read_file(path: Path, weights: Weights | None) -> tuple[Any, str, int]:
    """Return a file's content, its hash in hex and its size; ``weights`` None: all of it."""
    with kinds.open_file(path) as file:
        kind = kinds.check(file, path)
        before = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        content: Any
        if kind == "gguf":
            content = _load_gguf(file, path)
        elif kind == "npz":
            content = jax_model.load(file, path)
        elif kind == "zip":
            content = _load_zip(file, path, weights)
        else:
            content = _load_safetensors(file, path)
        after = os.fstat(file.fileno())
    if _stamp(before) != _stamp(after):
        raise _changed(path)
    return content, digest, before.st_size


def _read_shards(path: Path) -> tuple[dict[str, Any], str, int]:
    """Return what is in the shards of an index, a hash over names and contents, and the size."""
    index = shards.read(path)
    content: dict[str, Any] = {}
    digest, size = hashlib.sha256(), 0
    for file in index.files:
        found, own, bytes_ = _read_file(file, None)
        size += bytes_
        digest.update(f"{file.name}:{own}\n".encode())
        _add(content, found, index, file)
    index.check_whole(content)
    return content, digest.hexdigest(), size


def outline_of(path: Path) -> tuple[Any, int]:
    """Return the content of a file or of an index's shards, tensors on "meta", and the size.

    What says how weights are packed is on the CPU. Checksums are not compared, and nothing says
    that the weights can be read.

    Raises:
        CheckpointError: a file is refused or damaged.
    """
    if not shards.is_index(path):
        with kinds.open_file(path) as file:
            kind = kinds.check(file, path)
            size = os.fstat(file.fileno()).st_size
            if kind == "gguf":
                return _load_gguf(file, path, device="meta"), size
            if kind == "npz":
                return jax_model.outline(file, path), size
            return (outline if kind == "zip" else safetensors_outline)(file, path), size
    index = shards.read(path)
    content: dict[str, Any] = {}
    whole = 0
    for shard in index.files:
        found, size = outline_of(shard)
        whole += size
        _add(content, found, index, shard)
    index.check_whole(content)
    return content, whole


def _add(content: dict[str, Any], found: Any, index: shards.Index, file: Path) -> None:
    if not isinstance(found, dict):
        raise CheckpointError(f"{quote(file)} holds a {type(found).__name__}, no shard", hint=SAVE)
    found = plain(found)
    told = [name for name in found if name.endswith(torchao_weights.TOLD)]  # in no index
    index.check(file, found.keys() - told, content)
    content |= found


def read_tensors(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Return those tensors of a .pt file of data that are called ``names``.

    One that stands alone has the first of the names. What is not there is left out.

    Raises:
        CheckpointError: the file is refused, is damaged, or one of them is no tensor.
    """
    with kinds.open_file(path) as file:
        if kinds.check(file, path) != "zip":
            raise CheckpointError(f"{quote(path)} is no file of torch.save")
        kinds.verify_checksums(file, path)
        outline(file, path)
        content = _unpickle(file, path, "cpu")
        size = os.fstat(file.fileno()).st_size
    found = plain(content) if isinstance(content, dict) else {names[0]: content}
    return plain_tensors({k: found[k] for k in names if k in found}, size, quote(path))


def read_named(path: Path) -> dict[str, Tensor]:
    """Return every tensor of a .safetensors file by the name that it has there.

    Raises:
        CheckpointError: the file is refused, or is damaged.
    """
    with kinds.open_file(path) as file:
        if kinds.check(file, path) != "safetensors":
            raise CheckpointError(f"{quote(path)} is no .safetensors file")
        return dict(_load_safetensors(file, path))


def plain_tensors(
    found: dict[Any, Any], size: int, shown: str, *, device: str = "cpu"
) -> dict[str, Tensor]:
    """Return a state dict under plain names, of plain tensors on ``device`` alone.

    ``size`` is that of the file in bytes: no file holds more than that.

    Raises:
        CheckpointError: something in it is anything else, or claims more.
    """
    state = {
        key: _checked(key, value, shown, device) for key, value in plain_names(found, shown).items()
    }
    total = sum(map(_claimed, state.values()))
    if total > size:
        raise CheckpointError(
            f"{shown} is refused: its tensors claim {total} bytes, the file has {size}", hint=SAVE
        )
    return state


def check_finite(state: dict[str, Tensor]) -> None:
    """Require that no weight is NaN or infinite.

    Raises:
        ProbeError: naming the first tensor with such a weight.
    """
    for key, tensor in state.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        tensor = tensor.float() if tensor.dtype in EIGHT_BITS else tensor
        # NaN passes through both; 20 times faster than a look at every element.
        if not all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor)):
            bad = tensor.numel() - int(torch.isfinite(tensor).sum())
            raise ProbeError(
                f"{quote(key)} has {bad} of {tensor.numel()} weights that are NaN or infinite",
                hint="the training run diverged: use an earlier checkpoint",
            )


def _load_zip(file: BufferedReader, path: Path, weights: Weights | None) -> Any:
    """Return the content of a file of torch.save, with memory behind the chosen weights alone.

    ``weights`` None chooses all of them.

    Which storages these are is known when all of the pickle was read, so it is read twice; both
    times torch meets the storages in the same order.
    """
    kinds.verify_checksums(file, path)
    content = outline(file, path)
    if weights is None or choose(content, weights, quote(path)).label == "flat":
        return _unpickle(file, path, "cpu")
    blanks: list[torch.UntypedStorage] = []
    dropped = 0

    def drop(storage: Any, _: str) -> Any:
        nonlocal dropped
        dropped += storage.nbytes()
        if dropped >= TRIM_EVERY:
            dropped = 0
            # Else the peak is that of all of the file, twice: aligned blocks of glibc do not fit
            # where one of their size was.
            trim_memory()
        blanks.append(_blank(storage.nbytes()))
        return blanks[-1]

    found = choose(_unpickle(file, path, drop), weights, quote(path)).state
    used = {value.untyped_storage().data_ptr() for value in found.values() if _is_plain(value)}
    wanted = iter([blank.data_ptr() in used for blank in blanks])
    return _unpickle(file, path, lambda storage, _: storage if next(wanted) else drop(storage, _))


def _blank(size: int) -> torch.UntypedStorage:
    """Return ``size`` bytes that are never written, so that no memory is behind them."""
    if not size:
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    return torch.frombuffer(
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8
    ).untyped_storage()


def _is_plain(value: Any) -> bool:
    return type(value) in (Tensor, torch.nn.Parameter) and value.layout is torch.strided


def outline(file: BufferedReader, path: Path) -> Any:
    """Return the content of a zip that passed ``sniff.check``, its tensors on "meta"; rewind it.

    From torch 2.13 on no weight is read for it.

    Raises:
        CheckpointError: torch refuses it, or it was saved on a machine of the other byte order.
    """
    # torch would swap the bytes at address 0. It finds entries without regard to case.
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.lower().endswith("/byteorder")]
            orders = [archive.read(name) for name in names]
    except (zipfile.BadZipFile, OSError) as error:
        raise _unreadable(path, error) from error
    if not all(order == sys.byteorder.encode() for order in orders):
        raise CheckpointError(
            f"{quote(path)} was saved on a machine of the other byte order",
            hint="save it again on one of this machine's",
        )
    file.seek(0)
    return _unpickle(file, path, "meta")


def _unpickle(file: BufferedReader, path: Path, location: str | Callable[[Any, str], Any]) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file has no say in what is printed
            content = torch.load(file, map_location=location, weights_only=True, mmap=False)
    except Exception as error:  # torch raises a dozen types on damaged files, and may add some
        raise _unreadable(path, error) from error
    file.seek(0)
    return content


def safetensors_outline(file: BufferedReader, path: Path) -> dict[str, Tensor]:
    """Return the content of a safetensors file, its tensors on "meta", from its header.

    Of its tensors only those are read that say how a weight is packed.

    Raises:
        CheckpointError: the header breaks the format.
    """
    found = {
        name: _tensor(file, path, entry)
        if is_settings(name, entry.bytes)
        else torch.empty(entry.shape, dtype=getattr(torch, entry.dtype), device="meta")
        for name, entry in _stored(file, path).items()
    }
    return found | torchao_weights.told(said(file), found)


def _load_safetensors(file: BufferedReader, path: Path) -> dict[str, Tensor]:
    found = {name: _tensor(file, path, entry) for name, entry in _stored(file, path).items()}
    return found | torchao_weights.told(said(file), found)


def _tensor(file: BufferedReader, path: Path, entry: Stored) -> Tensor:
    raw = torch.empty(entry.bytes, dtype=torch.uint8)
    file.seek(entry.start)
    if file.readinto(raw.numpy().data) != entry.bytes:
        raise _changed(path)
    return raw.view(getattr(torch, entry.dtype)).reshape(entry.shape)


def _load_gguf(file: BufferedReader, path: Path, *, device: str = "cpu") -> dict[str, Tensor]:
    try:
        return gguf_blocks.load(file, device=device)
    except EOFError:
        raise _changed(path) from None
    except ValueError as error:
        raise _unreadable(path, error) from error


def _stored(file: BufferedReader, path: Path) -> dict[str, Stored]:
    try:
        return stored(file)
    except ValueError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = quote(error)
    if "weights_only" in str(error):  # a page of advice, to load the file unsafely among others
        reason = "torch's safe loader refuses its pickle"
    return CheckpointError(
        f"{quote(path)} cannot be read: {reason}", hint="download or save it again"
    )


def _changed(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{quote(path)} changed while it was read", hint="try again when it is complete"
    )


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _checked(key: str, value: Any, shown: str, device: str = "cpu") -> Tensor:
    """Return a plain tensor that owns what it claims, without hooks, attributes or gradient."""
    wrong = ""
    places = (device, "cpu")  # what says how weights are packed is always read
    if type(value) not in (Tensor, torch.nn.Parameter):
        wrong = f"of type {type(value).__name__}, not a tensor"
    elif value.layout is not torch.strided or value.device.type not in places or value.is_neg():
        wrong = f"a tensor without plain memory ({value.layout})"
    elif value.dtype not in DTYPES:
        wrong = f"of type {value.dtype}, which no model here has"
    elif value.dim() > MAX_DIMS:
        wrong = f"a tensor of {value.dim()} dimensions"
    elif _needed(value) > value.untyped_storage().nbytes():
        wrong = f"larger than the {value.untyped_storage().nbytes()} bytes stored for it"
    if wrong:
        raise CheckpointError(f"{shown} is refused: {quote(key)} is {wrong}", hint=SAVE)
    tensor: Tensor = value.detach()
    return tensor


def _needed(tensor: Tensor) -> int:
    """Return the bytes that a tensor claims, or that its last element reaches to."""
    claimed = _claimed(tensor)
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = int(tensor.storage_offset()) + sum((size - 1) * stride for size, stride in steps)
    return claimed and max(claimed, (last + 1) * tensor.element_size())


def _claimed(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
