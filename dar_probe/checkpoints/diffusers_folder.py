"""An untrusted path to what a diffusers folder says: class, settings, names and shapes.

Nothing here imports torch or diffusers, and no weight is read except to hash it.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dar_probe.errors import CheckpointError
from dar_probe.files import kinds
from dar_probe.files.safetensors_header import stored
from dar_probe.files.text import quote

MAX_CONFIG = 2**20  # bytes; the largest config.json of a transformer has 3 kB
MAX_INDEX = 2**20  # bytes; Qwen-Image's, with 1,933 tensors, has 0.2 MB
MAX_SHARDS = 1_000
MAX_SIZE = 2**24  # of one integer in config.json, else a short file could fill the memory
MAX_SAMPLE_SIZE = 4_096  # position tables grow with its square
MAX_AXES = 2**14  # of positions and of channels for them, all axes together

_WEIGHTS = "diffusion_pytorch_model"
_AGAIN = "download the folder again"
# Released DiT and PixArt folders name the class that once held both.
_RENAMED = {
    ("Transformer2DModel", "ada_norm_zero"): "DiTTransformer2DModel",
    ("Transformer2DModel", "ada_norm_single"): "PixArtTransformer2DModel",
}


@dataclass(frozen=True, kw_only=True)
class Folder:
    """What is known of a transformer before its weights are read.

    Attributes:
        path: the folder with config.json and the weights.
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
        digest = hashlib.sha256()
        for file in (*self.settings, *self.weights):
            digest.update(f"{file.name}:{_sha256(file)}\n".encode())
        return digest.hexdigest()


def is_folder(path: str | Path) -> bool:
    """Tell whether a path is a folder in diffusers' layout, to judge by the names in it."""
    return any(os.path.isfile(Path(path, name)) for name in ("model_index.json", "config.json"))


def home_of(path: str | Path) -> Path | None:
    """Return the diffusers folder that a path is, or whose weights it is; None for other files."""
    path = Path(path)
    own = path.name.startswith(_WEIGHTS) and path.suffix == ".safetensors"
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
        index = _json(path / "model_index.json", MAX_CONFIG)
        if "transformer" not in index or not os.path.isdir(home):
            raise CheckpointError(
                f"{shown} is a pipeline without a transformer folder",
                hint="dar-probe probes transformers; U-Nets are not among them",
            )
        if isinstance(index.get("transformer_2"), list) and index["transformer_2"][:1] != [None]:
            assumptions.append(
                "the pipeline has two transformers, one for each end of the noise; "
                "this is the first one (high noise), also at the levels it was not trained for"
            )
    if not os.path.isfile(home / "config.json"):
        raise CheckpointError(
            f"{shown} has neither model_index.json nor config.json",
            hint="give the folder of a diffusers pipeline, or its transformer folder",
        )
    config = _json(home / "config.json", MAX_CONFIG)
    if not isinstance(config.get("_class_name"), str):  # before files of its own are missed
        raise CheckpointError(
            f"{shown} names no class in its config.json",
            hint="diffusers writes _class_name there; folders of transformers are not read, but "
            "dar-probe audit measures a model of any layout in Python",
        )
    scheduler_file = beside / "scheduler_config.json"
    # A transformer's own folder lies beside its scheduler's as long as nobody moved it.
    inside = _transformer(home).name == "transformer"
    with_scheduler = os.path.isfile(scheduler_file) and inside
    scheduler = _json(scheduler_file, MAX_CONFIG) if with_scheduler else None
    weights, variant, listed = _weights(home, shown)
    if variant is not None:
        assumptions.append(f"the weights are those of the variant {quote(variant)}")
    shapes, dtype = _headers(weights, listed, shown)
    settings = (home / "config.json", *([scheduler_file] if with_scheduler else []))
    return Folder(
        path=home,
        shown=shown,
        class_name=_class_name(config, len(shapes), shown),
        config=config,
        scheduler=scheduler,
        weights=tuple(weights),
        variant=variant,
        bytes=sum(os.path.getsize(file) for file in weights),
        settings=settings,
        shapes=shapes,
        dtype=dtype,
        assumptions=tuple(assumptions),
    )


def _json(path: Path, limit: int) -> dict[str, Any]:
    """Return the object in a file of at most ``limit`` bytes."""
    with kinds.open_file(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise CheckpointError(f"{quote(path)} has over {limit} bytes", hint=_AGAIN)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or no text
        raise CheckpointError(f"{quote(path)} is not readable JSON", hint=_AGAIN) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{quote(path)} holds no settings", hint=_AGAIN)
    return value


def _class_name(config: dict[str, Any], tensors: int, shown: str) -> str:
    """Return the class's name of settings that are small enough to build it from."""
    if config.get("quantization_config") is not None:
        raise CheckpointError(
            f"{shown} holds quantised weights, which have no gradients to measure",
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
                hint=_AGAIN,
            )
    norm_type = config.get("norm_type")
    name: str = config["_class_name"]
    return _RENAMED.get((name, norm_type), name) if isinstance(norm_type, str) else name


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


def _weights(home: Path, shown: str) -> tuple[list[Path], str | None, dict[str, str] | None]:
    """Return the files, their variant, and which tensor an index promises in which file."""
    names = sorted(entry for entry in os.listdir(home) if entry.startswith(_WEIGHTS))
    plain, index = f"{_WEIGHTS}.safetensors", f"{_WEIGHTS}.safetensors.index.json"
    if index in names:
        return _shards(home, index, shown, None)
    if plain in names:
        return [home / plain], None, None
    for name in names:
        start, _, end = name.partition(".safetensors.index.")
        if start == _WEIGHTS and end.count(".") == 1 and end.endswith(".json"):
            return _shards(home, name, shown, end.removesuffix(".json"))
    for name in names:
        parts = name.split(".")
        if len(parts) == 3 and parts[2] == "safetensors" and "-of-" not in name:
            return [home / name], parts[1], None
    if any(name.endswith(".bin") for name in names):
        raise CheckpointError(
            f"{shown} has its weights in pickles, which are never opened",
            hint="save it again: model.save_pretrained(FOLDER, safe_serialization=True)",
        )
    if names:
        raise CheckpointError(
            f"{shown} has shards of weights without their index {index}", hint=_AGAIN
        )
    raise CheckpointError(f"{shown} has no weights: {plain} is missing", hint=_AGAIN)


def _shards(
    home: Path, index: str, shown: str, variant: str | None
) -> tuple[list[Path], str | None, dict[str, str]]:
    listed = _json(home / index, MAX_INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{quote(home / index)} lists no weights", hint=_AGAIN)
    names = sorted({str(name) for name in listed.values()})
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{shown} has over {MAX_SHARDS} shards", hint=_AGAIN)
    for name in names:
        if not name.startswith(_WEIGHTS) or not name.endswith(".safetensors") or "\\" in name:
            raise CheckpointError(
                f"{shown} is refused: its index names {quote(name)}, which is no shard",
                hint=_AGAIN,
            )
        if Path(name).name != name:
            raise CheckpointError(
                f"{shown} is refused: its index names {quote(name)}, outside the folder",
                hint=_AGAIN,
            )
        if not os.path.isfile(home / name):
            raise CheckpointError(f"{shown} lacks the shard {quote(name)}", hint=_AGAIN)
    return [home / name for name in names], variant, listed


def _headers(
    weights: list[Path], listed: dict[str, str] | None, shown: str
) -> tuple[dict[str, tuple[int, ...]], str]:
    """Return every tensor's shape and the most frequent type, from the files' headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: list[str] = []
    for path in weights:
        with kinds.open_file(path) as file:
            if kinds.check(file, path) != "safetensors":
                raise CheckpointError(
                    f"{quote(path)} is a pickle under another name, which is never opened",
                    hint=_AGAIN,
                )
            try:
                tensors = stored(file)
            except ValueError as error:
                raise CheckpointError(
                    f"{quote(path)} cannot be read: {quote(error)}", hint=_AGAIN
                ) from error
        for key, entry in tensors.items():
            if key in shapes:
                raise CheckpointError(f"{shown} has {quote(key)} in two of its files", hint=_AGAIN)
            if listed is not None and listed.get(key) != path.name:  # before the next one is read
                raise _disagreement(shown, key)
            shapes[key] = entry.shape
            dtypes.append(entry.dtype)
    if not shapes:
        raise CheckpointError(f"{shown} holds no tensors", hint=_AGAIN)
    if listed is not None and (left := listed.keys() - shapes.keys()):
        raise _disagreement(shown, min(left))
    return shapes, max(sorted(set(dtypes)), key=dtypes.count)


def _disagreement(shown: str, key: str) -> CheckpointError:
    return CheckpointError(
        f"{shown} contradicts itself: its index and its shards disagree on {quote(key)}",
        hint=_AGAIN,
    )


def _sha256(path: Path) -> str:
    with kinds.open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
