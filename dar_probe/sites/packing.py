"""What a module returns: one tensor, or several in a tuple, a list, a dict or a dataclass."""

import copy
from dataclasses import fields, is_dataclass
from typing import Any

Key = int | str | None  # position or name of an element; None for the output itself
Item = Key | tuple[Key, ...]  # of an element within elements, the way to it


def leaves(output: Any) -> dict[Item, Any]:
    """Return what is packed in an output, in its elements too, by the way to it."""
    found: dict[Item, Any] = {}
    for key, part in elements(output).items():
        inner = {} if key is None else leaves(part)
        packed = inner and None not in inner
        found |= (
            {(key, *_way(item)): leaf for item, leaf in inner.items()} if packed else {key: part}
        )
    return found


def elements(output: Any) -> dict[Key, Any]:
    """Return the parts of an output by position or name; a lone one by None."""
    if isinstance(output, dict):
        return {key: value for key, value in output.items() if isinstance(key, str)}
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    if is_dataclass(output) and not isinstance(output, type):
        return {part.name: getattr(output, part.name) for part in fields(output)}
    return {None: output}


def element(output: Any, item: Item) -> Any:
    """Return one part of an output."""
    if item is None:
        return output
    if isinstance(item, tuple):
        for key in item:
            output = element(output, key)
        return output
    if isinstance(item, str) and not isinstance(output, dict):
        return getattr(output, item)
    return output[item]


def replaced(output: Any, item: Item, value: Any) -> Any:
    """Return a packed output of the same kind with one part replaced."""
    if isinstance(item, tuple):
        key, *rest = item
        inner = element(output, key)
        return replaced(output, key, replaced(inner, tuple(rest), value) if rest else value)
    if isinstance(item, str):
        made = copy.copy(output)
        if isinstance(made, dict):
            made[item] = value
        else:
            object.__setattr__(made, item, value)  # a frozen dataclass too: it is our copy
        return made
    assert item is not None
    parts = (*output[:item], value, *output[item + 1 :])
    if hasattr(output, "_fields"):  # a namedtuple takes its parts one by one
        return type(output)(*parts)
    return type(output)(parts)


def _way(item: Item) -> tuple[Key, ...]:
    return item if isinstance(item, tuple) else (item,)
