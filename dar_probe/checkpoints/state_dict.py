"""Which state dict of a file is taken, and the plain names of what is in it."""

import itertools
import re
from typing import Any, Literal

from torch import Tensor

from dar_probe.errors import CheckpointError
from dar_probe.files.text import quote

Weights = Literal["auto", "ema", "model"]

SAVE = "save the plain weights again: torch.save(model.state_dict(), FILE)"

# What wrappers add to a key: torch.compile, DeepSpeed, activation checkpointing and FSDP anywhere;
# DDP and training frameworks at the front.
_INNER = {"_orig_mod", "_forward_module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
_OUTER = {"module", "model"}


def choose(content: Any, weights: Weights, shown: str) -> tuple[str, dict[Any, Any]]:
    """Return which state dict of a file's content is taken, and it, still unchecked.

    Raises:
        CheckpointError: there is none, or not the one that was asked for.
    """
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{shown} holds a {type(content).__name__}, not a state dict",
            hint=SAVE,
        )
    content = plain(content)
    sets = [name for name in ("ema", "model") if isinstance(content.get(name), dict)]
    if sets:
        label = sets[0] if weights == "auto" else weights
        if label in sets:
            return label, plain(content[label])
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


def plain(found: dict[Any, Any]) -> dict[Any, Any]:
    """Return the items of a dict from a file, which may bring attributes called items or get."""
    return dict(dict.items(found))


def _key(key: Any) -> str:
    return quote(key, 40) if isinstance(key, str) else f"a key of type {type(key).__name__}"


def plain_names(found: dict[Any, Any], shown: str) -> dict[str, Any]:
    """Return the values under their names in the bare model.

    REPA's first releases kept the blocks after the aligned depth in a second list.

    Raises:
        CheckpointError: a key is no name, or two become one.
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
