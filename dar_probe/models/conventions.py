"""What the files of several families tell in the same way, and what they leave to be assumed."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dar_probe.checkpoints.header import TOKENS, Header
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.files.text import quote

# What trainers call the paths and predictions of ``diffusion.flow.Flow``; "cosine" is REPA's.
PATH_NAMES = {"linear": "linear", "gvp": "gvp", "cosine": "gvp", "vp": "vp"}
PREDICTION_NAMES = {
    "velocity": "velocity", "v": "velocity", "noise": "noise", "eps": "noise",
    "epsilon": "noise", "score": "score",
}  # fmt: skip

# Settings by which trainers name what a model predicts, and of what.
OBJECTIVE_SETTINGS = frozenset(
    {"path_type", "prediction", "prediction_type", "parameterization", "predict_xstart"}
    | {"noise_schedule", "beta_schedule"}
)

HEADS = ("heads", "num_heads", "n_heads", "n_head", "num_attention_heads")  # in settings

Presets = Mapping[tuple[int, int], int]  # (width, depth) -> heads


def depth(header: Header, part: str = "blocks") -> int:
    """Return the number of blocks "part.0." to "part.N.", each with all the names of the first.

    So no file makes us build more blocks than it has.

    Raises:
        CheckpointError: there is none, or one of them lacks a name.
    """
    numbered = re.compile(rf"{re.escape(part)}\.([0-9]{{1,4}})\.(.+)", re.DOTALL)
    found = [m for m in map(numbered.fullmatch, header.shapes) if m]
    count, names = len({m[1] for m in found}), [m[2] for m in found if m[1] == "0"]
    for k in range(count):
        for name in names or ["attn.qkv.weight"]:
            if (key := f"{part}.{k}.{name}") not in header.shapes:
                raise header.unknown(key, "missing")
    return count


@dataclass(frozen=True)
class Frame:
    """What models in DiT's names have around their blocks.

    Attributes:
        width, channels, patch: D, C and the side of a patch.
        rows: of the label table; 0 without labels.
        side: of the square input.
        learn_sigma: the head has variances beside its outputs.
    """

    width: int
    channels: int
    patch: int
    rows: int
    side: int
    learn_sigma: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one sample, (C, h, w)."""
        return self.channels, self.side, self.side


def frame(header: Header, *, labelled: bool = True) -> Frame:
    """Read the sizes around the blocks of a model in DiT's names, from one shape each.

    Args:
        header: the file's header.
        labelled: there is a label table; without one ``rows`` is 0.

    Raises:
        CheckpointError: a name is missing or misshapen, or the tokens are no square grid.
    """
    width, channels, patch, _ = header.shape("x_embedder.proj.weight", 4)
    rows = header.shape("y_embedder.embedding_table.weight", 2)[0] if labelled else 0
    outputs = patch * patch * channels
    return Frame(
        width=width,
        channels=channels,
        patch=patch,
        rows=rows,
        side=patch * side(header),
        learn_sigma=learned_sigma(header, "final_layer.linear.bias", outputs),
    )


def side(header: Header, extras: int = 0) -> int:
    """Return the side of the square grid of tokens in pos_embed, beside ``extras`` others."""
    _, tokens, _ = header.shape("pos_embed", 3)
    found = math.isqrt(max(tokens - extras, 0))
    if not found or found * found != tokens - extras:
        how = f"{extras} + {max(tokens - extras, 0)}" if extras else f"{tokens} of them"
        for key in header.shapes:
            if any(re.search(mark, key) for mark in TOKENS):
                raise header.unexpected(key)
        raise CheckpointError(
            f"{header.shown} has no square grid of tokens: 'pos_embed' has {how}",
            hint="only models of square images are supported yet",
        )
    return found


def learned_sigma(header: Header, key: str, plain: int) -> bool:
    """Tell whether the head's bias ``key`` has variances beside its ``plain`` outputs."""
    (outputs,) = header.shape(key, 1)
    if outputs not in (plain, 2 * plain):
        raise header.misshapen(key)
    return outputs == 2 * plain


def heads(
    header: Header,
    asked: int | None,
    *,
    width: int,
    depth: int = 0,
    shaped: int | None = None,
    presets: Presets | None = None,
) -> int:
    """Return the heads: from shapes, the user, the settings, or the table of presets.

    Args:
        header: the file's header.
        asked: the heads that the user asks for.
        width: the model's width, which the heads divide.
        depth: the model's depth, to look up presets.
        shaped: the heads, where the shape of a weight tells them.
        presets: the family's presets.
    """
    if asked is not None and (asked < 1 or width % asked):
        why = f"--heads {asked} does not divide the width {width} of {header.shown}"
        raise UsageError(why, hint="one head is width / heads wide, 64 or 72 in the presets")
    told = header.told(*HEADS) if shaped is None else None
    known = shaped if shaped is not None else told if is_count(told) else None
    if asked is not None:
        if known not in (None, asked):
            it = f"it has {known}" if shaped is not None else f"it was trained with {known}"
            why = f"--heads {asked} contradicts {header.shown}: {it}"
            raise UsageError(why, hint="leave --heads out")
        return asked
    if shaped is not None:
        return shaped
    if told is not None:
        if known is None or width % known:
            why = (
                f"{header.shown} names {quote(told, 40)} heads, which do not fit its width {width}"
            )
            raise CheckpointError(why, hint="give the right number with --heads")
        return known
    if (width, depth) not in (presets or {}):
        why = f"and no preset has width {width} and depth {depth}"
        raise CheckpointError(
            f"{header.shown} does not tell its heads, {why}", hint="give the number with --heads"
        )
    header.assumptions.append(f"heads from the preset table for width {width}, depth {depth}")
    return presets[width, depth]  # type: ignore[index]


def heads_of_size(header: Header, key: str, width: int) -> int:
    """Return the heads of a model in which the last size of ``key`` is that of one head."""
    size = header.shapes[key][-1]
    if width % size:
        raise header.misshapen(key)
    return width // size


def check_heads(header: Header, key: str, heads: int, width: int) -> int:
    """Return the heads that the shape of ``key`` tells, if they divide the width."""
    if width % heads:
        raise header.misshapen(key)
    return heads


def classes(header: Header, rows: int, *, dropped: bool = True) -> int:
    """Return the number of classes; one row of the label table more stands for dropped labels.

    Args:
        header: the file's header.
        rows: number of rows in the label table.
        dropped: the family has that row where nothing tells.
    """
    told: Any = header.told("num_classes")
    shares = [header.told(name) for name in ("class_dropout_prob", "cfg_prob")]  # SiT, REPA
    share = next((value for value in shares if isinstance(value, int | float)), None)
    if not is_count(told) and share is None:
        header.assumptions.append(
            f"the last of {rows} rows in the label table is taken for the dropped labels"
            if dropped
            else f"all {rows} rows in the label table are taken for classes"
        )
        share = float(dropped)
    found: int = told if is_count(told) else rows - (share != 0)
    if found < 1 or rows - found not in (0, 1):
        raise header.contradiction(f"{found} classes, and a label table of {rows} rows")
    return found


def flow(header: Header, clock: str) -> str | None:
    """Return the objective that the settings name by a path and a prediction; None if by neither.

    Args:
        header: the file's header; what names nothing known is assumed to be SiT's own.
        clock: "sit", "repa" or "meanflow"; of "sit" a prediction "v", as REPA calls it, makes
            "repa".
    """
    path, prediction = header.told("path_type"), header.told("prediction")
    if path is None and prediction is None:
        return None
    if clock == "sit" and str(prediction).lower() == "v":
        header.assumptions.append(
            "the settings name the prediction 'v': read as REPA's, time runs t = s; --objective "
            "overrides"
        )
        clock = "repa"
    named = (
        PATH_NAMES.get(str(path or "linear").lower()),
        PREDICTION_NAMES.get(str(prediction or "velocity").lower()),
    )
    if None in named:
        header.assumptions.append(
            f"the settings name path_type {quote(path, 40)} and prediction {quote(prediction, 40)}:"
            " read as a linear path and velocity all the same; --objective overrides"
        )
        return clock
    if named == ("linear", "velocity"):
        return clock
    header.assumptions.append(
        f"the settings name path_type {quote(path, 40)} and prediction {quote(prediction, 40)}: "
        f"the objective is {clock}:{named[0]}:{named[1]}; --objective overrides"
    )
    return f"{clock}:{named[0]}:{named[1]}"


def is_count(value: Any) -> bool:
    """Tell whether a setting is a whole number above zero."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
