"""Which axes of a tensor hold samples, tokens and features: named, or found by two forwards."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dar_probe.errors import ProbeError, UsageError
from dar_probe.sites.homes import uncalled
from dar_probe.sites.hooks import hooked
from dar_probe.sites.packing import elements

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

EXAMPLES = 'such as "T N D", "N D H W" or "(N T) D"'
HINT = f"name the axes with --layout: N samples, D features, all others tokens, {EXAMPLES}"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which axes of a tensor are what; all that are not named hold tokens.

    Attributes:
        samples: the axis of the N samples.
        features: the axis of the D features; -1 is the last one.
        rows: on that of the samples lie so many tokens of each; None: it holds nothing else.
        inner: neighbours on such a shared axis are samples, not tokens: (T N), not (N T).
        across: the tokens of the shared axis are counted before those of the others: states
            (N F) T D have one row for each frame of a video, and those (N T) F D that come after
            them have one for each place in it; their tokens are the same where these are counted
            across.
    """

    samples: int = 0
    features: int = -1
    rows: int | None = None
    inner: bool = False
    across: bool = False

    def take(self, value: Tensor) -> Tensor:
        """Return a tensor as tokens (N, T, D); a view where the axes allow it."""
        value = self._moved(value)
        if self.across:
            value = value.movedim(1, -2)
        return value if value.ndim <= 3 else value.flatten(1, -2)

    def put(self, value: Tensor, part: Tensor) -> Tensor:
        """Return ``part`` (N, T, D) in the shape of ``value``."""
        moved = self._moved(value)
        if self.across:
            part = part.reshape(moved.movedim(1, -2).shape).movedim(-2, 1)
        moved = part.reshape(moved.shape)
        return moved.movedim((0, -1), self._axes).reshape(value.shape)

    def fits(self, value: Tensor) -> bool:
        """Tell whether a tensor made of one sample can lie so."""
        if value.ndim < (3 if self.rows is None else 2) or self.samples >= value.ndim - 1:
            return False
        return value.shape[self.samples] == (self.rows or 1)

    @property
    def last(self) -> "Layout":
        """The same with its features on the last axis, where norms read them."""
        return replace(self, features=-1)

    @property
    def shown(self) -> str:
        """The order of the axes in letters, for one of the first block."""
        tail = "D ..." if self.features == 1 else "... D"
        if self.rows is not None:
            return f"(T N) {tail}" if self.inner else f"(N T) {tail}"
        return {0: f"N {tail}", 1: f"T N {tail}"}.get(self.samples, "... N D")

    @property
    def _axes(self) -> tuple[int, int]:
        """Where samples and features are once a shared axis is two."""
        split = self.rows is not None
        features = self.features + (split and self.features > self.samples)
        return self.samples + (split and self.inner), features

    def _moved(self, value: Tensor) -> Tensor:
        if self.rows is not None:
            sizes = (self.rows, -1) if self.inner else (-1, self.rows)
            value = _split(value, self.samples, sizes)
        return value if self._axes == (0, -1) else value.movedim(self._axes, (0, -1))


PLAIN = Layout()


@dataclass(frozen=True)
class Named:
    """The axes that a user names, part by part: ("T",), ("N",), ("D",) for "T N D"."""

    parts: tuple[tuple[str, ...], ...]

    def of(self, states: Sequence[Tensor]) -> Layout:
        """Return the layout of the state among what a block took of one sample, and returned.

        Raises:
            UsageError: all of these have other axes.
        """
        at = next(i for i, part in enumerate(self.parts) if "N" in part)
        features = self.parts.index(("D",))
        shared = self.parts[at]
        fitting = [
            state
            for state in states
            if state.ndim == len(self.parts) and (shared != ("N",) or state.shape[at] == 1)
        ]
        if not fitting:
            raise UsageError(
                f"the layout {self} does not fit the states between blocks, which are "
                f"{tuple(states[0].shape)} for one sample",
                hint="leave --layout out to see what is found by itself",
            )
        state = fitting[0]
        return Layout(
            samples=at,
            features=-1 if features == len(self.parts) - 1 else features,
            rows=None if shared == ("N",) else state.shape[at],
            inner=shared[-1] == "N" and len(shared) > 1,
        )

    def __str__(self) -> str:
        words = (" ".join(part) for part in self.parts)
        return " ".join(f"({word})" if " " in word else word for word in words)


def parse(text: str) -> Named:
    """Read a layout such as "T N D", "N D H W" or "(N T) D"; D may be called C.

    Raises:
        UsageError: it does not name one axis of samples, one of features, and tokens.
    """
    found = re.findall(r"\(([^()]*)\)|([A-Za-z]\w*)", text)
    parts = tuple(
        tuple(word.upper() for word in (shared or alone).split()) for shared, alone in found
    )
    names = [name for part in parts for name in part]
    if "D" not in names:
        parts = tuple(tuple("D" if name == "C" else name for name in part) for part in parts)
        names = [name for part in parts for name in part]
    left = re.sub(r"\([\w\s]*\)|\w+|\s+", "", text)
    once = len(set(names)) == len(names) and "N" in names and ("D",) in parts
    if left or not once or len(names) < 3 or any(len(p) > 1 and "N" not in p for p in parts):
        raise UsageError(
            f"{text!r} is no layout of axes",
            hint=f"N stands for samples, D (or C) for features, all other letters for tokens, "
            f"{EXAMPLES}; an axis that samples and tokens share stands in brackets",
        )
    shared = next(part for part in parts if "N" in part)
    if "N" not in (shared[0], shared[-1]):
        raise UsageError(f"in the layout {text!r} samples are neither outermost nor innermost")
    if "N" in parts[-1]:
        raise UsageError(
            f"in the layout {text!r} samples are on the last axis, where they cannot be measured",
            hint="let the blocks take their states with samples on another axis",
        )
    return Named(parts)


@torch.no_grad()
def find(model: nn.Module, blocks: set[nn.Module], one: Inputs, two: Inputs) -> tuple[Layout, ...]:
    """Return how the states that blocks return lie, by which axis is twice as long for two samples.

    Those are two layouts where rows of a video are frames for some blocks and places for others;
    the first is that of the first block.

    Args:
        model: in eval mode.
        blocks: the modules that count as blocks.
        one: inputs of sample 0.
        two: inputs of samples 0 and 1.

    Raises:
        ProbeError: the states do not tell.
    """
    single, double = _states(model, blocks, one), _states(model, blocks, two)
    if len(single) != len(double) or not single:
        raise ProbeError("the module runs other blocks for two samples than for one", hint=HINT)
    told = [_compared(state, other) for state, other in zip(single, double, strict=True)]
    found = list(dict.fromkeys(told))
    first, second = found[0], found[-1]
    if first is not None and second is not None and _turn(single[0], first, second, len(found)):
        return first, replace(second, across=True)
    if first is None or len(found) > 1:
        sizes = f"{tuple(single[0].shape)} for one sample and {tuple(double[0].shape)} for two"
        raise ProbeError(
            f"no axis of the states between the blocks is known to be the samples': {sizes}",
            hint=HINT,
        )
    return (first,)


def _turn(state: Tensor, first: Layout, second: Layout, count: int) -> bool:
    """Tell whether rows of one layout are places in those of the other, as in (K, T / K, D)."""
    rows = first.rows, second.rows
    alike = all(one == Layout(rows=one.rows, inner=one.inner) for one in (first, second))
    return count == 2 and alike and tuple(state.shape[:-1]) == rows


def _states(model: nn.Module, blocks: set[nn.Module], inputs: Inputs) -> list[Tensor]:
    found: list[Tensor] = []

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        states = (v for v in elements(output).values() if isinstance(v, Tensor))
        if (state := next(states, None)) is not None:
            found.append(state.clone())

    called = [m for block in blocks for m in (block.children() if uncalled(block) else (block,))]
    with hooked() as handles:
        handles.extend(module.register_forward_hook(leave) for module in called)
        model(*inputs[0], **inputs[1])
    return found


def _compared(one: Tensor, two: Tensor) -> Layout | None:
    """Return the layout of a state of one sample, given that of two; None where it is not told."""
    if one.ndim != two.ndim:
        return None
    longer = [axis for axis in range(one.ndim) if two.shape[axis] != one.shape[axis]]
    if len(longer) != 1 or two.shape[longer[0]] != 2 * one.shape[longer[0]]:
        return None
    axis, rows = longer[0], one.shape[longer[0]]
    if axis == one.ndim - 1:
        return None  # features: no norm reads states that hold samples there
    if rows == 1:
        return Layout(samples=axis)
    halves = _split(two, axis, (2, rows)).select(axis, 0)
    turns = _split(two, axis, (rows, 2)).select(axis + 1, 0)
    outer, inner = _close(halves, one), _close(turns, one)
    return None if outer == inner else Layout(samples=axis, rows=rows, inner=inner)


def _split(value: Tensor, axis: int, sizes: tuple[int, int]) -> Tensor:
    """Return a tensor with one axis made two, as ``Tensor.unflatten`` does, which has no types."""
    return value.reshape(*value.shape[:axis], *sizes, *value.shape[axis + 1 :])


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-2 * expected.norm())
