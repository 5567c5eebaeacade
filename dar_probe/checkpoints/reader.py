"""An untrusted path to a ``Checkpoint``: tensors and provenance, or a refusal."""

import argparse
import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from dar_probe.checkpoints import sniff
from dar_probe.checkpoints.header import Header
from dar_probe.checkpoints.sniff import quote
from dar_probe.errors import CheckpointError, ProbeError, UsageError

# CVE-2026-24747: before 2.10 a file could corrupt the heap under weights_only.
if TorchVersion(torch.__version__) < "2.10":
    raise UsageError(
        f"torch {torch.__version__} does not read checkpoints safely",
        hint="pip install 'torch>=2.10'",
    )

Weights = Literal["auto", "ema", "model"]

MAX_DIMS = 16
MAX_SETTINGS = 10_000  # values in args, counted as often as they are reached
MAX_SETTING_DEPTH = 16
SAVE = "save the plain weights again: torch.save(model.state_dict(), FILE)"
MAX_TEXT = 10_000  # characters of one text in args
DTYPES = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16}
    | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
)

# What wrappers add to a key: torch.compile, DeepSpeed, activation checkpointing and FSDP anywhere;
# DDP and training frameworks at the front.
_INNER = {"_orig_mod", "_forward_module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
_OUTER = {"module", "model"}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What was read from one file.

    Attributes:
        path: where it was read from.
        sha256: of the whole file, in hex.
        bytes: size of the file.
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


def read(path: str | Path, *, weights: Weights = "auto") -> Checkpoint:
    """Read a .pt or .safetensors file that nobody vouches for.

    ``weights`` chooses between the averaged ("ema") and the raw ("model") weights of a training
    checkpoint; "auto" prefers the average. The whole file passes through memory once.

    Raises:
        CheckpointError: the file is refused, is damaged, or holds no such state dict.
    """
    path = Path(path)
    with sniff.open_file(path) as file:
        kind = sniff.check(file, path)
        before = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if kind == "zip":
            content = _load_zip(file, path)
            after = os.fstat(file.fileno())
        else:
            content = _load_safetensors(path)  # by its path, the library takes no open file
            with sniff.open_file(path) as again:
                after = os.fstat(again.fileno())
    if _stamp(before) != _stamp(after):
        raise CheckpointError(
            f"{quote(path)} changed while it was read", hint="try again when it is complete"
        )
    label, found = _choose(content, weights, quote(path))
    state = _plain_names(found, quote(path))
    state = {key: _checked(key, value, quote(path)) for key, value in state.items()}
    total = sum(_claimed(tensor) for tensor in state.values())
    if total > before.st_size:
        raise CheckpointError(
            f"{quote(path)} is refused: its tensors claim {total} bytes, "
            f"the file has {before.st_size}",
            hint=SAVE,
        )
    return Checkpoint(
        path=path,
        sha256=digest,
        bytes=before.st_size,
        weights=label,
        state=state,
        args=_settings(content, label, quote(path)),
    )


def check_finite(state: dict[str, Tensor]) -> None:
    """Require that no weight is NaN or infinite.

    Raises:
        ProbeError: naming the first tensor with such a weight.
    """
    for key, tensor in state.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # NaN passes through both; 20 times faster than a look at every element.
        if not all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor)):
            bad = tensor.numel() - int(torch.isfinite(tensor).sum())
            raise ProbeError(
                f"{quote(key)} has {bad} of {tensor.numel()} weights that are NaN or infinite",
                hint="the training run diverged: use an earlier checkpoint",
            )


def _load_zip(file: BufferedReader, path: Path) -> Any:
    sniff.verify_checksums(file, path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # torch raises a dozen types on damaged files, and may add some
        raise _unreadable(path, error) from error


def _load_safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except Exception as error:  # SafetensorError, and Python's own for types it does not know
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = quote(error)
    if "weights_only" in str(error):  # a page of advice, to load the file unsafely among others
        reason = "torch's safe loader refuses its pickle"
    return CheckpointError(
        f"{quote(path)} cannot be read: {reason}", hint="download or save it again"
    )


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _choose(content: Any, weights: Weights, shown: str) -> tuple[str, dict[Any, Any]]:
    """Return which state dict was taken, and it, still unchecked."""
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{shown} holds a {type(content).__name__}, not a state dict",
            hint=SAVE,
        )
    sets = [name for name in ("ema", "model") if isinstance(content.get(name), dict)]
    if sets:
        label = sets[0] if weights == "auto" else weights
        if label in sets:
            chosen: dict[Any, Any] = content[label]
            return label, chosen
    if any(isinstance(value, Tensor) for value in content.values()):
        if weights == "auto":
            return "flat", content
        sets = ["one unnamed state dict"]
    if sets:
        raise CheckpointError(
            f"{shown} holds no {weights} weights, but {' and '.join(sets)}",
            hint="leave the choice of weights out",
        )
    raise CheckpointError(
        f"{shown} holds neither ema, model nor a flat state dict, "
        f"but {', '.join(map(_key, itertools.islice(content, 5))) or 'nothing'}",
        hint=SAVE,
    )


def _key(key: Any) -> str:
    return quote(key, 40) if isinstance(key, str) else f"a key of type {type(key).__name__}"


def _plain_names(found: dict[Any, Any], shown: str) -> dict[str, Any]:
    """Return the values under their names in the bare model.

    REPA's first releases kept the blocks after the aligned depth in a second list.
    """
    state: dict[str, Any] = {}
    for key, value in found.items():
        if not isinstance(key, str):
            raise CheckpointError(
                f"{shown} has a key of type {type(key).__name__}, not a name", hint=SAVE
            )
        parts = [part for part in key.split(".") if part not in _INNER]
        while len(parts) > 1 and parts[0] in _OUTER:
            del parts[0]
        name = ".".join(parts)
        if name in state:
            raise CheckpointError(
                f"{shown} has {quote(name)} twice, under different prefixes", hint=SAVE
            )
        state[name] = value
    first = re.compile(r"blocks\.([0-9]{1,4})\.")
    later = re.compile(r"decoder_blocks\.([0-9]{1,4})\.")
    if not any(later.match(key) for key in state):
        return state
    offset = 1 + max((int(m[1]) for m in map(first.match, state) if m), default=-1)
    return {
        later.sub(lambda m: f"blocks.{int(m[1]) + offset}.", key, count=1): value
        for key, value in state.items()
    }


def _checked(key: str, value: Any, shown: str) -> Tensor:
    """Return a plain tensor that owns what it claims, without hooks, attributes or gradient."""
    wrong = ""
    if type(value) not in (Tensor, torch.nn.Parameter):
        wrong = f"of type {type(value).__name__}, not a tensor"
    elif value.layout is not torch.strided or value.device.type != "cpu":
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


def _settings(content: Any, label: str, shown: str) -> dict[str, Any]:
    args = None if label == "flat" else content.get("args")
    if label != "flat" and args is None and isinstance(content.get("config"), dict):
        args = content["config"]  # as LightningDiT calls them
    if args is None:
        return {}
    if not isinstance(args, argparse.Namespace | dict):
        raise CheckpointError(
            f"{shown} has args of type {type(args).__name__}, not settings",
            hint="save them as a dict of plain values",
        )
    plain: dict[str, Any] = _plain(args, iter(range(MAX_SETTINGS)), 0, shown)
    return plain


def _plain(value: Any, room: Iterator[int], depth: int, shown: str) -> Any:
    """Return ``value`` as None, bool, int, float, str, list and dict with str keys.

    Anything else becomes its type in angle brackets. ``room`` runs out for settings that refer
    to each other so often that written out they would fill the memory.
    """
    long = isinstance(value, str) and len(value) > MAX_TEXT
    if next(room, None) is None or depth > MAX_SETTING_DEPTH or long:
        raise CheckpointError(
            f"{shown} is refused: its args are too large to be settings",
            hint="save them as a dict of plain values",
        )
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return {
            str(_plain(key, room, depth + 1, shown)): _plain(item, room, depth + 1, shown)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, room, depth + 1, shown) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value) if isinstance(value, torch.dtype) else f"<{type(value).__name__}>"
