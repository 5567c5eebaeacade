"""Which state dict of a file is taken, and the plain names of what is in it."""

import itertools
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from dar_probe.checkpoints.groups import SHADOW, Group, called_averages, groups
from dar_probe.errors import CheckpointError
from dar_probe.files.text import quote

Weights = Literal["auto", "ema", "model"]

SAVE = "save the plain weights again: torch.save(model.state_dict(), FILE)"

# Which of several models is the one that was trained.
USUAL = frozenset(
    {"model", "net", "module", "state_dict", "model_state_dict", "generator", "student", "ema"}
)
OPTIMISER = frozenset({"state", "param_groups"})  # what torch.optim has in its state dict
# What wrappers add to a key: torch.compile, DeepSpeed, activation checkpointing and FSDP anywhere;
# DDP and training frameworks at the front.
_INNER = {"_orig_mod", "_forward_module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
_OUTER = {"module", "model"}
FLAT = "_flat_param"


class Chosen(NamedTuple):
    """The weights that are taken of a file.

    Attributes:
        label: "ema", "model", or "flat" where the file is one state dict.
        state: the weights, still unchecked.
        note: what was chosen among what, in a sentence; empty where nothing is to be said.
    """

    label: str
    state: dict[Any, Any]
    note: str = ""


def choose(
    content: Any, weights: Weights, shown: str, beside: Mapping[str, int] | None = None
) -> Chosen:
    """Return which weights of a file's content are taken.

    Models are found by their structure, under whatever names they lie; an average is preferred.
    ``beside`` is how many numbers the file calls an average besides its content, by place.

    Raises:
        CheckpointError: there is none, or not the one that was asked for, or several that nothing
            tells apart.
    """
    chosen = _choose(content, weights, shown)
    if weights == "auto" and chosen.label != "ema":
        _refuse_unread({**called_averages(content, shown), **(beside or {})}, chosen, shown)
    return chosen


def _choose(content: Any, weights: Weights, shown: str) -> Chosen:
    found = groups(content, shown, averages=weights != "model")
    flat = isinstance(content, dict) and any(isinstance(v, Tensor) for v in plain(content).values())
    if flat and len(found) == 1 and not found[0].average and weights == "auto":
        if not set(found[0].path) <= _INNER | _OUTER:
            note = f"the weights under {found[0].shown} of the file"
            return Chosen("flat", found[0].state, note)
    elif found:
        return _of_groups(found, weights, shown)
    return Chosen(*_by_name(content, weights, shown))


def _refuse_unread(averages: Mapping[str, int], raw: Chosen, shown: str) -> None:
    """Refuse raw weights that are taken for want of an average, where there seems to be one.

    Raises:
        CheckpointError: something else in the file is called an average, and large enough.
    """
    size = sum(value.numel() for value in raw.state.values() if isinstance(value, Tensor))
    large = [place for place, count in averages.items() if 2 * count >= size]
    if size and large:
        raise CheckpointError(
            f"{shown} has an average under {quote(large[0], 60)}, but not as a state dict",
            hint="--weights model takes the raw weights beside it; for the average, give its "
            "tensors the names of the model's and save them: torch.save(state_dict, FILE)",
        )


def _of_groups(found: list[Group], weights: Weights, shown: str) -> Chosen:
    averages = [group for group in found if group.average]
    raws = [group for group in found if not group.average]
    pool = averages if weights == "ema" or (weights == "auto" and averages) else raws
    if not pool:
        raise CheckpointError(
            f"{shown} holds no {weights} weights, but {_listed(found, bool(averages))}",
            hint="leave the choice of weights out",
        )
    least = min(len(group.path) for group in pool)
    nearest = _first([group for group in pool if len(group.path) == least])
    named = [group for group in nearest if group.path and group.path[-1] in USUAL]
    if len(nearest) > 1 and len(named) != 1:
        raise CheckpointError(
            f"{shown} holds several models, {_listed(nearest, bool(averages))}",
            hint="save the weights of one of them: torch.save(model.state_dict(), FILE)",
        )
    taken = (named if len(nearest) > 1 else nearest)[0]
    label = "ema" if taken.average else "model"
    others = [group for group in found if group is not taken]
    usual = {("ema",), ("model",)}
    plain_pair = {group.path for group in found} <= usual
    if plain_pair and not taken.lent and not taken.unnamed:
        return Chosen(label, taken.state)
    what = "average" if taken.average else "raw weights" if averages else "weights"
    rest = f"; beside it lie {_listed(others, bool(averages))}" if others else ""
    alone = "" if averages else "; nothing in it is called an average"
    lent = f"; it lacks {', '.join(map(_key, taken.lent[:3]))}, taken from the raw weights"
    order = "; its list has no names, and takes those of the raw weights in their order"
    said = (
        f"the {what} {taken.shown} of the file{rest}{alone}{lent if taken.lent else ''}"
        f"{order if taken.unnamed else ''}"
    )
    return Chosen(label, taken.state, said)


def _first(found: list[Group]) -> list[Group]:
    """Return the first of numbered averages alone: JiT samples from ema1 and keeps an ema2."""
    names = [".".join(group.path) for group in found]
    firsts = [i for i, name in enumerate(names) if re.search(r"ema1\b", name)]
    alike = len({re.sub(r"ema\d\b", "ema", name) for name in names}) == 1
    return [found[firsts[0]]] if alike and len(firsts) == 1 else found


def _listed(found: list[Group], told: bool) -> str:
    """Name groups; what they are is ``told`` where some in the file are averages."""
    return " and ".join(
        group.shown + f" ({'average' if group.average else 'raw'})" * told for group in found[:5]
    )


def _by_name(content: Any, weights: Weights, shown: str) -> tuple[str, dict[Any, Any]]:
    """Return the state dict called "ema" or "model", or the file itself."""
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
    if isinstance(content.get(SHADOW), list):
        raise CheckpointError(
            f"{shown} is an average without names ({len(content[SHADOW])} {SHADOW}), and the model "
            "that it is of is not in it",
            hint="copy it into the model (ema.copy_to(model.parameters())) and save its state dict",
        )
    if OPTIMISER <= content.keys():
        raise CheckpointError(
            f"{shown} is the state of an optimizer, without the weights that it trains",
            hint="give the model's own file, which trainers write beside it",
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

    REPA's first releases kept the blocks after the aligned depth in a second list, which in
    MaskDiT is a decoder of its own.

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
        if parts[-1] == FLAT:
            raise CheckpointError(
                f"{shown} holds flat parameters of FSDP ({quote(key, 60)}), which have no shapes",
                hint="save a full state dict: with FSDP.state_dict_type(model, "
                "StateDictType.FULL_STATE_DICT): torch.save(model.state_dict(), FILE)",
            )
        if name in state:
            raise CheckpointError(
                f"{shown} has {quote(name)} twice, under different prefixes", hint=SAVE
            )
        state[name] = value
    first = re.compile(r"blocks\.([0-9]{1,4})\.")
    later = re.compile(r"decoder_blocks\.([0-9]{1,4})\.")
    if "decoder_pos_embed" in state or not any(later.match(key) for key in state):
        return state
    offset = 1 + max((int(m[1]) for m in map(first.match, state) if m), default=-1)
    return {
        later.sub(lambda m: f"blocks.{int(m[1]) + offset}.", key, count=1): value
        for key, value in state.items()
    }
