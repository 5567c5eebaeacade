"""Every model that lies in a file's content, by its structure, and which of them are averages."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dar_probe.checkpoints.folders import AVERAGES
from dar_probe.errors import CheckpointError
from dar_probe.files.text import quote

DEEP = 8  # dicts within dicts, beyond which nobody looks
# Lists of blocks of the families that are read; other models may lie in the same file.
FAMILIAR = frozenset(
    {"blocks", "in_blocks", "en_inblocks", "encoder_level_1"}
    | {"double_blocks", "joint_blocks", "double_layers", "noise_refiner", "double_stream_blocks"}
)
RAW = frozenset({"online", "raw", "current"})
COUNTED = "n_averaged"  # what torch.optim.swa_utils.AveragedModel counts beside its weights
FIXED = ("pos_embed", "freqs", "relative_position_index")  # tables that may not be trained
SHADOW = "shadow_params"  # of torch_ema, and of EMAModel of diffusers: a list without names


@dataclass(frozen=True, kw_only=True)
class Group:
    """The tensors of one model in a file.

    Attributes:
        path: where they are, part by part of nested dicts and of prefixes of names.
        state: by their names behind that path.
        average: whether they are an average over training.
    """

    path: tuple[str, ...]
    state: dict[str, Any]
    average: bool

    @property
    def shown(self) -> str:
        """The path, as messages have it."""
        return quote(".".join(self.path), 60) if self.path else "one unnamed state dict"


@dataclass
class _Node:
    """The names of a file as a tree: a name's parts are its path."""

    parts: dict[str, "_Node"] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)  # of the tensors below, from the top
    weighs: bool = False  # one of these is called "weight"

    def put(self, path: tuple[str, ...], name: str) -> None:
        node = self
        node.names.append(name)
        node.weighs |= path[-1] == "weight"
        for part in path:
            node = node.parts.setdefault(part, _Node())
            node.names.append(name)
            node.weighs |= path[-1] == "weight"

    def lists(self) -> set[str]:
        """Return which parts hold a numbered list with weights in it."""
        return {
            name
            for name, part in self.parts.items()
            if part.weighs and part.parts and all(key.isdecimal() for key in part.parts)
        }


def groups(content: Any, shown: str) -> list[Group]:
    """Return every model in a file: what has a numbered list of parts with weights.

    Where some have the lists of a known family, these alone.

    Args:
        content: of an untrusted file; only dicts with names as keys are entered.
        shown: the file, for messages.

    Raises:
        CheckpointError: a list of averaged weights fits no model beside it.
    """
    tensors: dict[str, Tensor] = {}
    tree = _Node()
    shadows = []
    for path, value in _walk(content, (), DEEP):
        if isinstance(value, list):
            shadows.append((path, value))
            continue
        name = ".".join(path)
        if name in tensors:
            return []  # two ways to write one name: the plain reader says so
        tensors[name] = value
        tree.put(tuple(name.split(".")), name)
    found = list(_roots(tree, ()))
    familiar = [one for one in found if one[1].lists() & FAMILIAR]
    averaged = {path for path, node in _nodes(tree, ()) if COUNTED in node.parts}
    made = []
    for path, node in familiar or found:
        length = sum(len(part) + 1 for part in path)
        made.append(
            Group(
                path=path,
                state={name[length:]: tensors[name] for name in node.names},
                average=_is_average(path) or any(path[: len(p)] == p for p in averaged),
            )
        )
    raws = [group for group in made if not group.average]
    for path, values in shadows if raws else ():
        made.append(Group(path=path, state=_named(values, raws[0], shown), average=True))
    return made


def _walk(value: Any, path: tuple[str, ...], deep: int) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict) and deep:
        for key, item in dict.items(value):
            if isinstance(key, str) and key == SHADOW and isinstance(item, list):
                yield (*path, key), item
            elif isinstance(key, str) and key:
                yield from _walk(item, (*path, key), deep - 1)


def _nodes(node: _Node, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], _Node]]:
    yield path, node
    if not node.lists():
        for name, part in node.parts.items():
            if part.weighs:
                yield from _nodes(part, (*path, name))


def _roots(node: _Node, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], _Node]]:
    """Yield the topmost nodes that hold a list of parts and something beside it."""
    for at, one in _nodes(node, path):
        if one.lists() and len(one.parts) > 1:
            yield at, one


def _is_average(path: tuple[str, ...]) -> bool:
    words = [set(re.split(r"[^a-z]+", part.lower())) for part in path]  # "ema2" is an ema
    return any(AVERAGES & one for one in words) and not any(RAW & one for one in words)


def _named(values: list[Any], raw: Group, shown: str) -> dict[str, Any]:
    """Give a list of averaged tensors the names of the model beside it, in its order.

    Tables of positions are not trained in most models: they have no average, and keep their values.

    Raises:
        CheckpointError: the shapes do not tell which is which.
    """
    state = dict(raw.state)
    shapes = [tuple(v.shape) for v in values if isinstance(v, Tensor)]
    left, skipped, fixed = list(values), [], True
    for name, value in raw.state.items():
        if left and isinstance(left[0], Tensor) and left[0].shape == value.shape:
            state[name] = left.pop(0)
        else:
            skipped.append(tuple(value.shape))
            fixed &= any(word in name for word in FIXED)
    if not fixed or left or len(shapes) < len(values) or any(shape in shapes for shape in skipped):
        raise CheckpointError(
            f"{shown} has an average without names ({len(values)} {SHADOW}) that does not fit the "
            f"{len(raw.state)} weights beside it",
            hint="copy it into the model (ema.copy_to(model.parameters())) and save its state dict",
        )
    return state
