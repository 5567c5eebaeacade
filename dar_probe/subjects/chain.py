"""Which reads of a traced forward read one and the same residual stream.

With every branch cut off, what a block hands on depends on what is read in it with slope exactly
one, token by token: it is that state plus what was written. Autograd says so with a random vector,
whose rows also tell which token became which. Names of modules play no part.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dar_probe.subjects.traced import Passed, Read, Trace


class NoStream(Exception):
    """Why what was traced is no pre-norm stack, in half a sentence."""


@dataclass(frozen=True, kw_only=True)
class Exit:
    """What one call of a block hands on to the stream.

    Attributes:
        passed, item: the call, and which element where its output is a tuple.
        tokens: the measured tokens in it.
        fresh: what follows has another shape.
    """

    passed: Passed
    item: int | None
    tokens: slice
    fresh: bool

    @property
    def value(self) -> Tensor:
        """The measured tokens (1, T, D)."""
        return self.passed.gave[self.item][:, self.tokens]


@dataclass(frozen=True, kw_only=True)
class Link:
    """One read of the stream.

    Attributes:
        read: the module that reads; None for a head that no module reads.
        tokens: the measured tokens in what it reads.
        block: from 1; one more than all blocks for the head.
        came: what the block before handed on, where this is the first read of a block.
    """

    read: Read | None
    tokens: slice
    block: int
    came: Exit | None


@dataclass
class _Frame:
    """Tokens of a stretch of the stream, counted as its last reader counts them.

    Attributes:
        live: which of them the output depends on, as far as is known (T,) bool.
        low, high: those that every tensor of the stretch holds: the measured ones.
    """

    live: Tensor
    low: int
    high: int

    def holds(self, start: int, count: int) -> bool:
        return bool(self.live[max(start, 0) : max(start + count, 0)].any())

    def narrow(self, start: int, count: int) -> None:
        self.low, self.high = max(self.low, start), min(self.high, start + count)


@dataclass(frozen=True)
class _Place:
    """A tensor of the stream: its token i is token i + offset of the frame."""

    frame: _Frame
    offset: int

    def tokens(self) -> slice:
        return slice(self.frame.low - self.offset, self.frame.high - self.offset)


@dataclass(frozen=True)
class _Step:
    read: Read | None
    place: _Place
    came: tuple[Passed, int | None, _Place, bool] | None = None


def follow(trace: Trace, *, live_only: bool = False) -> list[Link]:
    """Return the reads of the stream that the output depends on, in firing order, the head last.

    With ``live_only`` the measured tokens are those from the first to the last one that the output
    depends on by the head; else all that run through the whole stream.

    Raises:
        NoStream: the model is no pre-norm stack.
    """
    if trace.output is None or not trace.output.requires_grad:
        raise NoStream("the output does not depend on the blocks by autograd")
    steps = [_head(trace)]  # the last step first
    if live_only:
        frame = steps[0].place.frame
        live = torch.nonzero(frame.live)[:, 0]
        frame.narrow(int(live[0]), int(live[-1] - live[0]) + 1)
    ends = [1]  # how many steps each block has, the head's first
    while (came := steps[-1].came) is not None:
        own = _block(trace, *came[:3])
        first = own[0]
        assert first.read is not None
        entered = next(p.entered for p in trace.passed if p.home == first.read.home)
        own[0] = replace(first, came=_before(trace, first.read.value, first.place, entered))
        steps += reversed(own)
        ends.append(len(own))
    steps.reverse()
    blocks = [k for k, count in enumerate(reversed(ends), 1) for _ in range(count)]
    return [_link(step, block) for step, block in zip(steps, blocks, strict=True)]


def _link(step: _Step, block: int) -> Link:
    came = None
    if step.came is not None:
        passed, item, place, fresh = step.came
        came = Exit(passed=passed, item=item, tokens=place.tokens(), fresh=fresh)
    return Link(read=step.read, tokens=step.place.tokens(), block=block, came=came)


def _head(trace: Trace) -> _Step:
    """Find the norm that reads the stream after the last block, or else the last block's output."""
    last = max(passed.left for passed in trace.passed)
    assert trace.output is not None
    for read in trace.reads:
        if read.home is not None or read.at < last:
            continue
        live = _live(trace.output, read.cut)
        place = _Place(_Frame(live, 0, len(live)), 0)
        if live.any() and (came := _before(trace, read.value, place, last, strict=True)):
            return _Step(read, place, came)
    end = max(trace.passed, key=lambda passed: passed.left)
    lives = {item: _live(trace.output, value) for item, value in end.gave.items()}
    found = [(item, live) for item, live in lives.items() if live.any()]
    if len(found) != 1:
        raise NoStream("the output depends on no state, or on several, of the last block")
    item, live = found[0]
    place = _Place(_Frame(live, 0, len(live)), 0)
    return _Step(None, place, (end, item, place, False))


def _block(trace: Trace, passed: Passed, item: int | None, place: _Place) -> list[_Step]:
    """Return the reads within one call of a block that its output is the sum of, in order."""
    anchor = passed.gave[item]
    reads = [read for read in trace.reads if read.home == passed.home]
    steps: list[_Step] = []
    for read, match in zip(reads, match_tokens(anchor, [r.value for r in reads]), strict=True):
        if match is None or not place.frame.holds(match.here + place.offset, match.count):
            continue
        if steps and steps[-1].read is not None and steps[-1].read.value is read.value:
            raise NoStream(
                "two modules read the same state (parallel branches, each with its own norm)"
            )
        start = match.here + place.offset
        place.frame.narrow(start, match.count)
        steps.append(_Step(read, _Place(place.frame, start - match.there)))
    if not steps:
        name = type(passed.home[0]).__name__
        raise NoStream(f"a {name} hands on no state that a norm in it reads, plus what it writes")
    return steps


def _before(
    trace: Trace, value: Tensor, place: _Place, entered: int, *, strict: bool = False
) -> tuple[Passed, int | None, _Place, bool] | None:
    """Return what the block before ``value`` was read handed on: call, element, place, fresh.

    The stream is handed on as it is, or with something added. Where it is rewritten instead, what
    entered the block is taken for the old stream, unless ``strict``.
    """
    earlier = [passed for passed in reversed(trace.passed) if passed.left <= entered]
    for passed in earlier:
        items = list(passed.gave)
        matches = match_tokens(value, [passed.gave[item] for item in items])
        for item, match in zip(items, matches, strict=True):
            if match is None:
                continue
            start = match.here + place.offset
            if place.frame.holds(start, match.count):
                place.frame.narrow(start, match.count)
                return passed, item, _Place(place.frame, start - match.there), False
    if strict:
        return None
    given = next((p.given[0] for p in trace.passed if p.entered == entered and p.given), None)
    for passed in earlier:
        for item, gave in passed.gave.items():
            if gave is not given:
                continue
            if gave.shape == value.shape:
                return passed, item, place, False
            tokens = gave.shape[1]
            frame = _Frame(torch.ones(tokens, dtype=torch.bool), 0, tokens)
            return passed, item, _Place(frame, 0), True
    return None


@dataclass(frozen=True)
class Match:
    """Tokens ``there``, there + 1, ... of an earlier tensor became ``here``, here + 1, ..."""

    here: int
    there: int
    count: int


def match_tokens(later: Tensor, earlier: list[Tensor]) -> list[Match | None]:
    """Tell for each of ``earlier`` which tokens went into ``later`` with slope exactly one.

    Tensors are (1, T, D). None where no token did, or where those that did are no stretch.
    """
    usable = [v for v in earlier if v.requires_grad]
    if not usable or not later.requires_grad:
        return [None] * len(earlier)
    probe = torch.randn(later.shape, generator=torch.Generator().manual_seed(0))
    probe = probe.to(later.device, later.dtype)
    slopes = iter(torch.autograd.grad(later, usable, probe, retain_graph=True, allow_unused=True))
    return [_match(probe[0], next(slopes)) if v.requires_grad else None for v in earlier]


def _match(probe: Tensor, slope: Tensor | None) -> Match | None:
    """Compare rows of the slope with those of the probe; other rows are tokens of other streams."""
    if slope is None or slope.shape[0] != 1 or slope.shape[2] != probe.shape[1]:
        return None
    same = (slope[0, :, None, 0] == probe[None, :, 0]) & slope[0, :, None, 0].bool()
    there, here = torch.nonzero(same, as_tuple=True)
    if not len(there):
        return None
    exact = (slope[0, there] == probe[here]).all(-1)
    there, here, count = there[exact], here[exact], int(exact.sum())
    steps = torch.arange(count, device=there.device)
    if not count or not (
        torch.equal(there, there[0] + steps) and torch.equal(here, here[0] + steps)
    ):
        return None
    return Match(int(here[0]), int(there[0]), count)


def _live(output: Tensor, state: Tensor) -> Tensor:
    """Return which tokens of ``state`` (1, T, D) the output depends on: (T,) bool."""
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad(
        output, state, probe.to(output.device, output.dtype), retain_graph=True, allow_unused=True
    )
    if grad is None:
        return torch.zeros(state.shape[1], dtype=torch.bool)
    return grad[0].any(-1).cpu()
