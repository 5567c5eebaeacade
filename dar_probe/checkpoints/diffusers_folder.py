"""An untrusted path to what a diffusers folder says: class, settings, names and shapes.

Nothing here imports torch or diffusers, and no weight is read except to hash it.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dar_probe.checkpoints import shards
from dar_probe.errors import CheckpointError
from dar_probe.files import kinds
from dar_probe.files.json_file import AGAIN, read_object, settings
from dar_probe.files.safetensors_header import stored
from dar_probe.files.text import quote

MAX_CONFIG = 2**20  # bytes; the largest config.json of a transformer has 3 kB
MAX_SIZE = 2**24  # of one integer in config.json, else a short file could fill the memory
MAX_SAMPLE_SIZE = 4_096  # position tables grow with its square
MAX_AXES = 2**14  # of positions and of channels for them, all axes together

CONFIG, SCHEDULER = "config.json", "scheduler_config.json"
_WEIGHTS = "diffusion_pytorch_model"
# Released DiT and PixArt folders name the class that once held both.
_RENAMED = {
    ("Transformer2DModel", "ada_norm_zero"): "DiTTransformer2DModel",
    ("Transformer2DModel", "ada_norm_single"): "PixArtTransformer2DModel",
}


@dataclass(frozen=True, kw_only=True)
class Folder:
    """What is known of a transformer before its weights are read.

    Attributes:
        path: the folder with config.json and the weights, or the single file that holds them.
        shown: the path that was given, quoted for messages.
        class_name: name of the transformer's class in diffusers.
        config: its settings.
        scheduler: the settings of the pipeline's scheduler, None where there is none.
        weights: the safetensors files.
        variant: such as "fp16" where the files are named after one, else None.
        bytes: size of all weights files.
        settings: config.json, and the scheduler's file where there is one.
        shapes: of every tensor.
        dtype: the most frequent type of the stored tensors, such as "bfloat16".
        assumptions: one sentence for each choice that was made.
    """

    path: Path
    shown: str
    class_name: str
    config: dict[str, Any]
    scheduler: dict[str, Any] | None
    weights: tuple[Path, ...]
    variant: str | None
    bytes: int
    settings: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]
    dtype: str
    assumptions: tuple[str, ...]

    @cached_property
    def sha256(self) -> str:
        """Over the names and contents of settings and weights, in hex; reads all of them."""
        return _together((file.name, _sha256(file)) for file in (*self.settings, *self.weights))

    def with_settings(self, sha256: str) -> str:
        """Return a hash of one file of weights, in hex, together with the settings beside it."""
        beside = [(file.name, _sha256(file)) for file in self.settings]
        return _together([*beside, (self.path.name, sha256)]) if beside else sha256


def is_folder(path: str | Path) -> bool:
    """Tell whether a path is a folder in diffusers' layout, to judge by the names in it."""
    return any(os.path.isfile(Path(path, name)) for name in ("model_index.json", "config.json"))


def home_of(path: str | Path) -> Path | None:
    """Return the diffusers folder that a path is, or whose weights it is; None for other files."""
    path = Path(path)
    ours = path.suffix == ".safetensors" or shards.is_index(path)
    own = path.name.startswith(_WEIGHTS) and ours
    home = path.parent if own else path
    return home if is_folder(home) else None


def name_of(path: str | Path) -> str:
    """Return what a checkpoint is called: a file's name, or that of a folder's model.

    "transformer" tells nothing, nor does the hash that the hub's cache names a snapshot after.
    """
    path = Path(path)
    folder = home_of(path) or path
    name = path.stem
    if os.path.isdir(folder):
        home = _transformer(folder)
        home = home.parent if home.name == "transformer" else home
        cache = home.parent.parent.name if home.parent.name == "snapshots" else ""
        name = cache.removeprefix("models--") if cache.startswith("models--") else home.name
    return name if name.strip(".") else "checkpoint"  # ".." would lead out of every folder


def _transformer(path: Path) -> Path:
    """Return a folder by its own name, or by that of what it is a link to."""
    plain = Path(os.path.abspath(path))
    return plain if plain.name == "transformer" else path.resolve()


def read(path: str | Path) -> Folder:
    """Read a pipeline's root folder or a transformer's own folder that nobody vouches for.

    Raises:
        CheckpointError: it is neither, or something in it is missing, damaged or not allowed.
    """
    path = Path(path)
    shown = quote(path)
    assumptions: list[str] = []
    home, beside = path, _transformer(path).parent / "scheduler"
    if os.path.isfile(path / "model_index.json"):
        home, beside = path / "transformer", path / "scheduler"
        parts = read_object(path / "model_index.json", MAX_CONFIG)
        if "transformer" not in parts or not os.path.isdir(home):
            raise CheckpointError(
                f"{shown} is a pipeline without a transformer folder",
                hint="dar-probe probes transformers; U-Nets are not among them",
            )
        if isinstance(parts.get("transformer_2"), list) and parts["transformer_2"][:1] != [None]:
            assumptions.append(
                "the pipeline has two transformers, one for each end of the noise; "
                "this is the first one (high noise), also at the levels it was not trained for"
            )
    if not os.path.isfile(home / CONFIG):
        raise CheckpointError(
            f"{shown} has neither model_index.json nor {CONFIG}",
            hint="give the folder of a diffusers pipeline, or its transformer folder",
        )
    _named(read_object(home / CONFIG, MAX_CONFIG), shown)  # before files of its own are missed
    weights, variant, index = _weights(home, shown)
    if variant is not None:
        assumptions.append(f"the weights are those of the variant {quote(variant)}")
    shapes, dtype = _headers(weights, index, shown)
    found = read_settings(home, shown, scheduler=beside, tensors=len(shapes))
    return replace(
        found,
        weights=weights,
        variant=variant,
        bytes=sum(os.path.getsize(file) for file in weights),
        shapes=shapes,
        dtype=dtype,
        assumptions=tuple(assumptions),
    )


def read_settings(
    home: Path, shown: str = "", *, scheduler: Path | None = None, tensors: int = MAX_SIZE
) -> Folder:
    """Read what a transformer's folder says beside its weights, of which it may have none.

    Args:
        home: the folder with config.json.
        shown: what messages call it; empty: by its path.
        scheduler: the folder that may hold its scheduler; None: beside it.
        tensors: of its weights.

    Raises:
        CheckpointError: settings are damaged, or larger than the weights allow.
    """
    shown = shown or quote(home)
    config = read_object(home / CONFIG, MAX_CONFIG)
    scheduler_file = (scheduler or _transformer(home).parent / "scheduler") / SCHEDULER
    # A transformer's own folder lies beside its scheduler's as long as nobody moved it.
    inside = _transformer(home).name == "transformer"
    with_scheduler = os.path.isfile(scheduler_file) and inside
    return Folder(
        path=home,
        shown=shown,
        class_name=check_settings(config, tensors, shown),
        config=config,
        scheduler=read_object(scheduler_file, MAX_CONFIG) if with_scheduler else None,
        weights=(),
        variant=None,
        bytes=0,
        settings=(home / CONFIG, *([scheduler_file] if with_scheduler else [])),
        shapes={},
        dtype="",
        assumptions=(),
    )


def _named(config: dict[str, Any], shown: str) -> str:
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise CheckpointError(
            f"{shown} names no class in its config.json",
            hint="diffusers writes _class_name there; of a folder of transformers give the file "
            "with the weights; dar-probe audit measures a model of any layout in Python",
        )
    return name


def check_settings(config: dict[str, Any], tensors: int, shown: str) -> str:
    """Return the class's name of settings that are small enough to build it from.

    Raises:
        CheckpointError: they name none, or are larger than so many ``tensors`` allow.
    """
    name = _named(config, shown)
    told = config.get("quantization_config")
    if told is not None and not _is_read(told):
        method = told.get("quant_method") if isinstance(told, dict) else None
        by = f" by {quote(method, 40)}" if isinstance(method, str) else ""
        raise CheckpointError(
            f"{shown} holds weights quantised{by}, which are not read",
            hint="give the folder in bfloat16 or float32",
        )
    for key, value in config.items():
        numbers = _numbers(value)
        limit = MAX_SAMPLE_SIZE if key == "sample_size" else MAX_SIZE
        # Every layer has weights, so more layers than tensors are a lie, and a costly one.
        limit = tensors if "layers" in key else limit
        if "axes" in key:  # tables of positions grow with the sum
            numbers, limit = [sum(numbers)], MAX_AXES
        if any(number > limit for number in numbers):
            raise CheckpointError(
                f"{shown} is refused: its {quote(key)} is larger than its weights allow",
                hint=AGAIN,
            )
    norm_type = config.get("norm_type")
    return _RENAMED.get((name, norm_type), name) if isinstance(norm_type, str) else name


def _is_read(told: Any) -> bool:
    """Tell whether the weights are packed in a way that is dequantised."""
    return isinstance(told, dict) and told.get("quant_method") in ("bitsandbytes", "torchao")


def is_packed(path: Path) -> bool:
    """Tell whether a folder's weights are packed in a way that is dequantised."""
    return _is_read(settings(_inner(path) / CONFIG).get("quantization_config"))


def weights_file(path: Path) -> Path:
    """Return the file of a folder's weights, or the index of several.

    Raises:
        CheckpointError: there is none.
    """
    files, _, index = _weights(_inner(path), quote(path))
    return index.path if index else files[0]


def _inner(path: Path) -> Path:
    """Return the transformer's folder of a pipeline, or the transformer's own."""
    return path / "transformer" if os.path.isfile(path / "model_index.json") else path


def _numbers(value: Any) -> list[int]:
    """Return the whole numbers in a value of JSON."""
    found, left = [], [value]
    while left:
        part = left.pop()
        if isinstance(part, dict | list):
            left += part.values() if isinstance(part, dict) else part
        elif isinstance(part, int):
            found.append(part)
    return found


def _weights(home: Path, shown: str) -> tuple[tuple[Path, ...], str | None, shards.Index | None]:
    """Return the files, their variant, and their index."""
    names = sorted(entry for entry in os.listdir(home) if entry.startswith(_WEIGHTS))
    plain, index = f"{_WEIGHTS}.safetensors", f"{_WEIGHTS}.safetensors.index.json"
    if index in names:
        found = shards.read(home / index, shown, start=_WEIGHTS)
        return found.files, None, found
    if plain in names:
        return (home / plain,), None, None
    for name in names:
        start, _, end = name.partition(".safetensors.index.")
        if start == _WEIGHTS and end.count(".") == 1 and end.endswith(".json"):
            found = shards.read(home / name, shown, start=_WEIGHTS)
            return found.files, end.removesuffix(".json"), found
    for name in names:
        parts = name.split(".")
        if len(parts) == 3 and parts[2] == "safetensors" and "-of-" not in name:
            return (home / name,), parts[1], None
    if any(name.endswith(".bin") for name in names):
        raise CheckpointError(
            f"{shown} has its weights in pickles, which are never opened",
            hint="save it again: model.save_pretrained(FOLDER, safe_serialization=True)",
        )
    if names:
        raise CheckpointError(
            f"{shown} has shards of weights without their index {index}", hint=AGAIN
        )
    raise CheckpointError(f"{shown} has no weights: {plain} is missing", hint=AGAIN)


def _headers(
    weights: tuple[Path, ...], index: shards.Index | None, shown: str
) -> tuple[dict[str, tuple[int, ...]], str]:
    """Return every tensor's shape and the most frequent type, from the files' headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: list[str] = []
    for path in weights:
        with kinds.open_file(path) as file:
            if kinds.check(file, path) != "safetensors":
                raise CheckpointError(
                    f"{quote(path)} is of another kind under that name, which is never opened",
                    hint=AGAIN,
                )
            try:
                tensors = stored(file)
            except ValueError as error:
                raise CheckpointError(
                    f"{quote(path)} cannot be read: {quote(error)}", hint=AGAIN
                ) from error
        if index is not None:
            index.check(path, tensors, shapes)  # before the next one is read
        for key, entry in tensors.items():
            shapes[key] = entry.shape
            dtypes.append(entry.dtype)
    if not shapes:
        raise CheckpointError(f"{shown} holds no tensors", hint=AGAIN)
    if index is not None:
        index.check_whole(shapes)
    return shapes, max(sorted(set(dtypes)), key=dtypes.count)


def _together(hashes: Iterable[tuple[str, str]]) -> str:
    """Return one hash of names and the hashes of their contents."""
    return hashlib.sha256("".join(f"{name}:{own}\n" for name, own in hashes).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with kinds.open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
