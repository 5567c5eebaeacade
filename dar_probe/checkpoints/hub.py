"""A model of the Hugging Face Hub by its id, such as "black-forest-labs/FLUX.1-dev".

The only file that turns to a network, and only for what has the form of an id and is no local path.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from dar_probe.checkpoints import diffusers_folder
from dar_probe.errors import CheckpointError
from dar_probe.files.text import quote

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".gguf", ".npz", ".npy", ".nc", ".toml")
# Of a pipeline the transformer and its scheduler; or the files of a transformer's own folder.
WANTED = (
    "model_index.json", "config.json", "diffusion_pytorch_model*.json",
    "diffusion_pytorch_model*.safetensors", "transformer/*.json", "transformer/*.safetensors",
    "scheduler/*.json",
)  # fmt: skip


def is_id(path: str | Path) -> bool:
    """Tell whether a path that is not there can only be meant as the id of a model.

    A name under a folder that is there, or with the suffix of a file, is a path with a typo.
    """
    text = str(path)
    if not ID.fullmatch(text) or text.lower().endswith(FILES):
        return False
    return not os.path.lexists(text) and not os.path.lexists(text.partition("/")[0])


def local(path: str | Path, *, on_download: Callable[[str], None] | None = None) -> Path:
    """Return a path as it is, and for an id of the Hub the folder of its snapshot.

    What is in the Hub's cache is taken from there. Otherwise the transformer's files are
    downloaded, unless ``HF_HUB_OFFLINE`` is set.

    Args:
        path: a path, or an id.
        on_download: called with the id before anything is downloaded.

    Raises:
        CheckpointError: an id that is not in the cache and cannot be downloaded.
    """
    if not is_id(path):
        return Path(path)
    name = str(path)
    try:
        from huggingface_hub import constants
    except ImportError:
        raise _missing(name, "huggingface_hub is not installed") from None
    cached = _snapshot(name, only_local=True)
    if isinstance(cached, Path) and _whole(cached):
        return cached
    if constants.HF_HUB_OFFLINE:
        raise _missing(name, "HF_HUB_OFFLINE forbids to download it")
    if on_download:
        on_download(name)
    found = _snapshot(name, only_local=False)
    if isinstance(found, Path):
        return found
    raise _missing(name, f"it cannot be downloaded: {found}")


def _snapshot(name: str, *, only_local: bool) -> Path | str:
    """Return the folder of a snapshot, or why there is none."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, allow_patterns=list(WANTED), local_files_only=only_local)
        )
    except Exception as error:  # of the library, of HTTP, of the disk: there is no common base
        first = str(error).strip().partition("\n")[0]
        return f"{type(error).__name__}: {first}"


def _whole(folder: Path) -> bool:
    """Tell whether a snapshot has all that is read: others fetch single files of a model."""
    try:
        diffusers_folder.read(folder)
    except CheckpointError:
        return False
    return True


def _missing(name: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"there is no file or folder {quote(name)}, and no such model in the cache of the Hugging "
        f"Face Hub; {why}",
        hint=f"for a model of the Hub: hf download {name} (hf auth login first where it is gated); "
        "else check the path",
    )
