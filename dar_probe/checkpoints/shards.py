"""Weights that are spread over files, and the index that lists them.

No torch: the command line looks here before it loads anything.
"""

import os
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

from dar_probe.errors import CheckpointError
from dar_probe.files.json_file import AGAIN, read_object
from dar_probe.files.text import quote

MAX_INDEX = 2**20  # bytes; Qwen-Image's, with 1,933 tensors, has 0.2 MB
MAX_SHARDS = 1_000

_INDEX = re.compile(r"(?P<stem>.+)\.(?P<kind>safetensors|bin)\.index(?P<variant>\.[^.]+)?\.json")
# ColossalAI does not say of how many.
_SHARD = re.compile(r"(?P<stem>.+?)-(\d{5})(-of-(?P<count>\d{5}))?\.(?P<kind>safetensors|bin)")


@dataclass(frozen=True)
class Index:
    """What an index says.

    Attributes:
        path: of the index.
        shown: the index, or the folder it lies in, quoted for messages.
        files: the shards, sorted by name; all of them are there.
        listed: the name of the file of every tensor.
    """

    path: Path
    shown: str
    files: tuple[Path, ...]
    listed: dict[str, str]

    def check(self, file: Path, names: Iterable[object], earlier: Container[object]) -> None:
        """Require that the index lists all of the tensors of a shard as that shard's.

        ``earlier`` are the names in the shards before it.

        Raises:
            CheckpointError: it does not, or one of them was there already.
        """
        for name in names:
            if name in earlier:
                raise CheckpointError(
                    f"{self.shown} has {quote(str(name))} in two of its files", hint=AGAIN
                )
            if not isinstance(name, str) or self.listed.get(name) != file.name:
                raise self._disagreement(str(name))

    def check_whole(self, names: Iterable[str]) -> None:
        """Require that nothing which the index lists was missing in the shards.

        Raises:
            CheckpointError: something was.
        """
        if left := self.listed.keys() - set(names):
            raise self._disagreement(min(left))

    def _disagreement(self, name: str) -> CheckpointError:
        return CheckpointError(
            f"{self.shown} contradicts itself: its index and its shards disagree on {quote(name)}",
            hint=AGAIN,
        )


def is_index(path: str | Path) -> bool:
    """Tell by its name whether a file is an index of shards."""
    return _INDEX.fullmatch(Path(path).name) is not None


def stem_of(path: Path) -> str:
    """Return a file's name without its suffix; of an index, that of its shards."""
    match = _INDEX.fullmatch(path.name)
    return match["stem"] if match else path.stem


def without_shards(names: list[str]) -> list[str]:
    """Return names of files without those of shards whose index is among them."""
    indexed = {
        (m["stem"] + (m["variant"] or ""), m["kind"])
        for name in names
        if (m := _INDEX.fullmatch(name))
    }
    return [
        name
        for name in names
        if not (m := _SHARD.fullmatch(name)) or (m["stem"], m["kind"]) not in indexed
    ]


def is_one_of_several(name: str) -> bool:
    """Tell by its name whether a file is one shard of two or more."""
    match = _SHARD.fullmatch(name)
    return match is not None and int(match["count"] or 0) > 1


def refuse_single(path: Path) -> None:
    """Refuse one shard of several, which somebody took for the model.

    Raises:
        CheckpointError: the path is one.
    """
    match = _SHARD.fullmatch(path.name)
    if match and is_one_of_several(path.name) and os.path.isfile(path):
        raise CheckpointError(
            f"{quote(path)} is one of {int(match['count'])} shards of a model",
            hint=f"give its folder, or the index {match['stem']}.{match['kind']}.index.json",
        )


def files(path: Path) -> tuple[Path, ...]:
    """Return the files with the weights of a checkpoint: itself, or the shards of an index.

    Raises:
        CheckpointError: the index is damaged or not allowed, or a shard is missing.
    """
    return read(path).files if is_index(path) else (path,)


def read(path: Path, shown: str | None = None, *, start: str = "") -> Index:
    """Read an index that nobody vouches for.

    Args:
        path: of the index.
        shown: what messages call it; None: by its path.
        start: of the names of its shards.

    Raises:
        CheckpointError: it is damaged, names something that is no shard or lies elsewhere, or a
            shard is missing.
    """
    shown = shown or quote(path)
    match = _INDEX.fullmatch(path.name)
    suffix = f".{match['kind']}" if match else ".safetensors"
    listed = read_object(path, MAX_INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{quote(path)} lists no weights", hint=AGAIN)
    names = sorted({str(name) for name in listed.values()})
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{shown} has over {MAX_SHARDS} shards", hint=AGAIN)
    for name in names:
        _check_name(path.parent, name, shown, start=start, suffix=suffix)
    return Index(path, shown, tuple(path.parent / name for name in names), listed)


def _check_name(home: Path, name: str, shown: str, *, start: str, suffix: str) -> None:
    """Require that a name is of a shard which lies in the folder of its index."""
    if not name.startswith(start) or not name.endswith(suffix) or "\\" in name:
        raise CheckpointError(
            f"{shown} is refused: its index names {quote(name)}, which is no shard", hint=AGAIN
        )
    if Path(name).name != name:
        raise CheckpointError(
            f"{shown} is refused: its index names {quote(name)}, outside the folder", hint=AGAIN
        )
    if not os.path.isfile(home / name):
        raise CheckpointError(f"{shown} lacks the shard {quote(name)}", hint=AGAIN)
    folder, target = os.path.realpath(home), os.path.realpath(home / name)
    # The cache of the Hugging Face Hub keeps files beside its snapshots, and links to them.
    blobs = os.path.join(os.path.dirname(os.path.dirname(folder)), "blobs")
    if os.path.commonpath([folder, target]) != folder and os.path.dirname(target) != blobs:
        raise CheckpointError(
            f"{shown} is refused: its shard {quote(name)} is a link out of the folder",
            hint="copy the file into the folder",
        )
