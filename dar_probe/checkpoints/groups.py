"""Every model that lies in a file's content, by its structure, and which of them are averages."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from dar_probe.checkpoints.folders import AVERAGES, is_average
from dar_probe.errors import CheckpointError
from dar_probe.files.text import quote

DEEP = 8  # dicts and lists within each other, beyond which nobody looks
# Steps that are looked at, three for what is no number: no pickle has more that is no repetition.
MOST = 150_000
# Lists of blocks of the families that are read; other models may lie in the same file.
FAMILIAR = frozenset(
    {"blocks", "in_blocks", "en_inblocks", "encoder_level_1"}
    | {"double_blocks", "joint_blocks", "double_layers", "noise_refiner", "double_stream_blocks"}
)
COUNTED = "n_averaged"  # what torch.optim.swa_utils.AveragedModel counts beside its weights
FIXED = ("pos_embed", "freqs", "relative_position_index")  # tables that may not be trained
SHADOW = "shadow_params"  # of torch_ema, and of EMAModel of diffusers: a list without names
# What Lightning's WeightAveraging keeps beside the averaged weights, which it calls "state_dict".
AVERAGING = "averaging_state"


@dataclass(frozen=True, kw_only=True)
class Group:
    """The tensors of one model in a file.

    Attributes:
        path: where they are, part by part of nested dicts and of prefixes of names.
        state: by their names behind that path.
        average: whether they are an average over training.
        lent: names of tables that the average lacks, and that are those of the raw weights.
        unnamed: its tensors lay in a list, and took the names of the raw weights in their order.
    """

    path: tuple[str, ...]
    state: dict[str, Any]
    average: bool
    lent: tuple[str, ...] = ()
    unnamed: bool = False

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


def groups(content: Any, shown: str, *, averages: bool = True) -> list[Group]:
    """Return every model in a file: what has a numbered list of parts with weights.

    Where some have the lists of a known family, these alone.

    Args:
        content: of an untrusted file; lists are entered, and dicts with names or numbers as keys.
        shown: the file, for messages.
        averages: averages without names are wanted as well.

    Raises:
        CheckpointError: a list of averaged weights fits no model beside it, or the content refers
            to itself without end.
    """
    tensors: dict[str, Tensor] = {}
    tree = _Node()
    shadows, averaged = [], set()
    for path, value in _walk(content, shown):
        if isinstance(value, list):
            shadows.append((path, value))
            continue
        if path[-1:] == ("",):
            continue
        name = ".".join(path)
        if name in tensors:
            return []  # two ways to write one name: the plain reader says so
        tensors[name] = value
        # A dict's name may have a dot of its own, as "ema_0.9999" has.
        parts = (*path[:-1], *"".join(path[-1:]).split("."))
        tree.put(parts, name)
        if parts[-1] == COUNTED:
            averaged.add(parts[:-1])
    averaged |= {(*path[:-1], "state_dict") for path in averaged if path[-1:] == (AVERAGING,)}
    found = list(_roots(tree, ()))
    familiar = [one for one in found if one[1].lists() & FAMILIAR]
    made = []
    for path, node in familiar or found:
        length = sum(len(part) + 1 for part in path)
        inner = {n for at, one in found if at[: len(path)] == path != at for n in one.names}
        made.append(
            Group(
                path=path,
                state={name[length:]: tensors[name] for name in node.names if name not in inner},
                average=is_average(*path) or any(path[: len(p)] == p for p in averaged),
            )
        )
    raws = [group for group in made if not group.average]
    for path, values in shadows if raws and averages else ():
        if 2 * _count(values) < _count(raws[0].state.values()):
            continue  # averages of something else, such as losses
        state = _named(values, raws[0], shown, path[-1])
        lent = tuple(name for name, value in state.items() if value is raws[0].state[name])
        made.append(Group(path=path, state=state, average=True, lent=lent, unnamed=True))
    made = [_with_tables(group, raws) if group.average else group for group in made]
    return _with_squashed(made, tensors)


def _with_tables(average: Group, raws: list[Group]) -> Group:
    """Return an average of what is trained with the tables of the model beside it."""
    for raw in raws:
        missing = {name: value for name, value in raw.state.items() if name not in average.state}
        alike = all(
            name in raw.state and raw.state[name].shape == value.shape
            for name, value in average.state.items()
        )
        if alike and all(any(word in name for word in FIXED) for name in missing):
            state = {**average.state, **missing}
            return replace(average, state=state, lent=tuple(missing))
    return average


def _with_squashed(made: list[Group], tensors: dict[str, Tensor]) -> list[Group]:
    """Add averages whose names are those of the raw weights without dots, or with _ for them.

    So write those who keep an average as buffers of a module: latent-diffusion's LitEma
    ("model_ema.blocks0attnqkvweight") and OpenMMLab's hooks ("ema_blocks_0_attn_qkv_weight").
    """
    known = {_squashed(name): name for name in tensors}
    found = []
    for raw in [group for group in made if not group.average]:
        own = [name for name in raw.state if not is_average(name.partition(".")[0])]
        trained = [name for name in own if not any(word in name for word in FIXED)]
        if not trained:
            continue
        names = [_squashed(name) for name in trained]
        longest = max(trained, key=len)
        anchor = _squashed(longest)
        ends = [k for k, n in known.items() if k.endswith(anchor) and not n.endswith(longest)]
        for prefix in (key.removesuffix(anchor) for key in ends):
            first = known[prefix + anchor]
            word = next((m for m in re.finditer(r"[a-z]+", first) if m[0] in AVERAGES), None)
            # The first name that lacks ends the look at a prefix: a file may have many of them.
            whole = all(prefix + name in known for name in names)
            if word is None or not whole or not is_average(first[: word.end()]):
                continue
            state = {
                name: tensors[known[prefix + _squashed(name)]]
                for name in own
                if prefix + _squashed(name) in known
            }
            if any(value.shape != raw.state[name].shape for name, value in state.items()):
                continue
            average = Group(path=tuple(first[: word.end()].split(".")), state=state, average=True)
            found.append(
                _with_tables(average, [replace(raw, state={n: raw.state[n] for n in own})])
            )
            # What is kept beside the average's names, such as its decay, is none of the model's.
            for name in raw.state.keys() - set(own):
                del raw.state[name]
    return [*made, *found]


def _count(values: Iterable[Any]) -> int:
    return sum(value.numel() for value in values if isinstance(value, Tensor))


def _squashed(name: str) -> str:
    return name.replace(".", "").replace("_", "")


def called_averages(content: Any, shown: str) -> dict[str, int]:
    """Return how many numbers a file calls an average, by place."""
    counts: dict[str, int] = {}
    for path, value in _walk(content, shown):
        at = next((i for i, part in enumerate(path, 1) if is_average(part)), 0)
        if at and isinstance(value, Tensor):
            place = ".".join(path[:at]).partition("[")[0]
            counts[place] = counts.get(place, 0) + value.numel()
    return counts


def _walk(content: Any, shown: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every tensor of a file with its path, "" for its place in a list; and averaged lists.

    Raises:
        CheckpointError: there is no end to them.
    """
    room = MOST

    def numbered(path: tuple[str, ...], at: int) -> tuple[str, ...]:
        return (*path[:-1], f"{''.join(path[-1:])}[{at}]")

    def walk(value: Any, path: tuple[str, ...], deep: int) -> Iterator[tuple[tuple[str, ...], Any]]:
        nonlocal room
        room -= 3 if isinstance(value, Tensor | dict | list | tuple) else 1
        if room < 0:
            raise CheckpointError(
                f"{shown} is refused: its dicts and lists hold each other without end",
                hint="save the weights alone: torch.save(model.state_dict(), FILE)",
            )
        if isinstance(value, Tensor):
            yield path, value
        elif isinstance(value, dict) and deep:
            for name, items in _of_parameters(value).items():
                yield (*path, name), items
            for key, item in dict.items(value):
                if isinstance(key, str) and key:
                    yield from walk(item, (*path, key), deep - 1)
                elif type(key) is int and path:  # of a parameter, in an optimizer's state
                    yield from walk(item, numbered(path, key), deep - 1)
        elif isinstance(value, list | tuple) and deep:
            items = list(value)
            averaged = path and (path[-1] == SHADOW or is_average(path[-1]))
            kinds = {str if isinstance(item, str) else isinstance(item, Tensor) for item in items}
            if averaged and True in kinds and str not in kinds:  # a name and a tensor are a pair
                yield path, items
            for i, item in enumerate(items):
                alone = isinstance(item, Tensor)
                yield from walk(item, (*path, "") if alone else numbered(path, i), deep - 1)

    yield from walk(content, (), DEEP)


def _of_parameters(state: dict[Any, Any]) -> dict[str, list[Any]]:
    """Return the averages that an optimizer keeps of each of its numbered parameters, by name.

    So does the EMA of LSGM, and of those who took it over: state[i]["ema"].
    """
    found: dict[str, list[Any]] = {}
    numbers = [key for key in state if type(key) is int and isinstance(state[key], dict)]
    for number in sorted(numbers):
        for name, value in dict.items(state[number]):
            if isinstance(name, str) and isinstance(value, Tensor) and is_average(name):
                found.setdefault(name, []).append(value)
    return found


def _nodes(node: _Node, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], _Node]]:
    yield path, node
    listed = node.lists()
    for name, part in node.parts.items():
        # Beside a model's own lists only an average of it may lie.
        if part.weighs and (not listed or is_average(name)):
            yield from _nodes(part, (*path, name))


def _roots(node: _Node, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], _Node]]:
    """Yield the topmost nodes that hold a list of parts and something beside it."""
    for at, one in _nodes(node, path):
        if one.lists() and len(one.parts) > 1:
            yield at, one


def _named(values: list[Any], raw: Group, shown: str, called: str) -> dict[str, Any]:
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
            f"{shown} has an average without names ({len(values)} in {quote(called, 40)}) that "
            f"does not fit the {len(raw.state)} weights beside it",
            hint="copy it into the model (ema.copy_to(model.parameters())) and save its state "
            "dict; --weights model takes the raw weights",
        )
    return state
