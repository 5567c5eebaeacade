"""Which reads of a traced forward read one and the same residual stream.

With every branch cut off, what a block hands on depends on what is read in it with slope exactly
one, token by token: it is that state plus what was written. Autograd says so with a random vector,
whose rows also tell which token became which. Names of modules play no part.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dar_probe.runtime.sharded import class_of
from dar_probe.sites.layout import Layout
from dar_probe.sites.packing import Item
from dar_probe.sites.tracing import Passed, Read, State, Trace


class NoStream(Exception):
    """Why what was traced is no pre-norm stack, in half a sentence."""


@dataclass(frozen=True, kw_only=True)
class Exit:
    """What one call of a block hands on to the stream.

    Attributes:
        passed, item: the call, and which element where its output is packed.
        tokens: the measured tokens in it.
        fresh: what follows has another shape.
    """

    passed: Passed
    item: Item
    tokens: slice
    fresh: bool

    @property
    def value(self) -> Tensor:
        """The measured tokens (1, T, D)."""
        return self.passed.layouts[self.item].take(self.passed.gave[self.item])[:, self.tokens]


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
class Frame:
    """Tokens of a stretch of the stream, counted as its last reader counts them.

    Attributes:
        live: which of them the output depends on, as far as is known (T,) bool.
        low, high: those that every tensor of the stretch holds: the measured ones.
    """

    live: Tensor
    low: int
    high: int

    def holds(self, start: int, count: int) -> bool:
        """Tell whether the output depends on one of so many tokens from ``start`` on."""
        return bool(self.live[max(start, 0) : max(start + count, 0)].any())

    def narrow(self, start: int, count: int) -> None:
        """Measure no other tokens than so many from ``start`` on."""
        self.low, self.high = max(self.low, start), min(self.high, start + count)


@dataclass(frozen=True)
class Place:
    """A tensor of the stream: its token i is token i + offset of the frame."""

    frame: Frame
    offset: int

    def tokens(self) -> slice:
        """Return which tokens of the tensor are measured."""
        return slice(self.frame.low - self.offset, self.frame.high - self.offset)


@dataclass(frozen=True)
class Step:
    """One read of the stream while it is followed back, and what the block before handed on."""

    read: Read | None
    place: Place
    came: tuple[Passed, Item, Place, bool] | None = None
    added: bool = False  # what came is added to the stream outside of the block


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
    return back(trace, steps, [1])


def back(trace: Trace, steps: list[Step], ends: list[int]) -> list[Link]:
    """Return the reads of a stream in firing order, given the last ones.

    Args:
        trace: of a forward.
        steps: what reads the stream at its end, the last one first.
        ends: how many of these steps each block has, the last block first; a head counts as one.

    Raises:
        NoStream: a block hands on no state plus what it writes.
    """
    steps, ends = list(steps), list(ends)
    while (came := steps[-1].came) is not None:
        passed, item, place, _ = came
        own = reads_within(trace, passed, passed.states()[item], place)
        last = steps[-1]
        if not own and last.read is not None:
            # The block may return what it writes, and the model adds it to the stream.
            if own := reads_within(trace, passed, last.read, last.place):
                steps[-1] = replace(last, added=True)
        if not own:
            name = class_of(passed.home[0]).__name__
            raise NoStream(
                f"a {name} hands on no state that a norm in it reads, plus what it writes"
            )
        steps += reversed(entered(trace, own))
        ends.append(len(own))
    steps.reverse()
    blocks = [k for k, count in enumerate(reversed(ends), 1) for _ in range(count)]
    return [_link(step, block) for step, block in zip(steps, blocks, strict=True)]


def entered(trace: Trace, own: list[Step], *, strict: bool = False) -> list[Step]:
    """Return the reads within a block, the first of which tells where the stream came from.

    With ``strict`` it came as it is, neither rewritten nor scaled between the blocks.
    """
    first = own[0]
    assert first.read is not None
    at = next(p.entered for p in trace.passed if p.home == first.read.home)
    return [
        replace(first, came=handed_on(trace, first.read, first.place, at, strict=strict)),
        *own[1:],
    ]


def others(trace: Trace, links: list[Link]) -> list[Read]:
    """Return the reads of the stream, or of a function of it, that are none of the links'.

    Such are norms that get a copy, what follows a norm that is no module, blocks outside of all
    lists, and the norms of more heads.
    """
    own = [link.read for link in links if link.read is not None]
    entered = next(passed.given[:1] for passed in trace.passed if passed.home == own[0].home)
    begun = [read for read in trace.reads if read.home == own[0].home and read.at < own[0].at]
    same = [one for one in entered if one.shape == own[0].value.shape]  # no condition
    taken = [one for one in same if _leads(own[0].value, [one], begun)]
    found = []
    for read in trace.reads:
        before = [(link, r) for link in links if (r := link.read) is not None and r.at < read.at]
        if any(read is r for r in own):
            continue
        if not before:  # what the first block does before the stream is first read as it is
            first = read.home == own[0].home
            found += [read for value in taken if first and depends(read.value, value)]
            continue
        link, last = before[-1]
        if link is links[-1]:
            if last.home is not None:
                continue  # of a second stream nothing is made behind its last read
            # Nothing is cut behind the head: does the stream come here by another way as well?
            if depends(read.value, last.value, (last.layout, link.tokens), besides=last.cut):
                found.append(read)
            continue
        (match,) = match_tokens(read, [last])
        if match is not None:  # it may read nothing but other tokens of the same sequence
            if match.there < link.tokens.stop and match.there + match.count > link.tokens.start:
                found.append(read)
        elif depends(read.value, last.value, (last.layout, link.tokens)):
            found.append(read)
    return found


def overwritten(trace: Trace, links: list[Link]) -> nn.Module | None:
    """Return a module whose state of the stream was overwritten in place, if there is one."""
    for link in links:
        came = link.came
        if came is not None:
            passed = came.passed
            if passed.gave[came.item]._version != passed.versions[came.item]:
                return passed.module
        if link.read is not None and link.read.value._version != link.read.version:
            return link.read.module
    return None


def returns_what_is_added(passed: Passed, state: State, following: State) -> bool:
    """Tell whether a block's output is added to the state that it got, outside of the block."""

    def holds(later: State) -> bool:
        return match_tokens(later, [state])[0] is not None

    return holds(following) and not any(map(holds, passed.states().values()))


def comes_from(trace: Trace, later: Tensor, passed: Passed) -> bool:
    """Tell whether a tensor depends on what a call of a block returned, by modules between too."""
    between = [read for read in trace.reads if read.home is None and read.at >= passed.left]
    return _leads(later, list(passed.gave.values()), between)


def _leads(later: Tensor, goals: list[Tensor], between: list[Read]) -> bool:
    """Tell whether a tensor depends on one of the goals, if need be by what modules read."""
    asked = [later]
    while asked:
        value = asked.pop()
        if any(value is goal or depends(value, goal) for goal in goals):
            return True
        through = [read for read in between if depends(value, read.cut)]
        between = [read for read in between if read not in through]
        asked += [read.value for read in through]
    return False


def depends(
    later: Tensor,
    earlier: Tensor,
    part: tuple[Layout, slice] | None = None,
    *,
    besides: Tensor | None = None,
) -> bool:
    """Tell whether autograd leads from one tensor back to an earlier one, or to tokens of it.

    ``part`` is how the earlier one lies, and which of its tokens count; None: all of it does.
    ``besides`` is a view of the earlier one, and what comes by it does not count.
    """
    if not later.requires_grad or not earlier.requires_grad:
        return False
    probe = torch.randn(later.shape, generator=torch.Generator().manual_seed(2))
    slope, by_view = torch.autograd.grad(
        later,
        [earlier, earlier if besides is None else besides],
        probe.to(later.device, later.dtype),
        retain_graph=True,
        allow_unused=True,
    )
    if slope is None:
        return False
    if besides is not None and by_view is not None:
        slope = slope - by_view
    if part is not None:
        layout, tokens = part
        slope = layout.take(slope)[:, tokens]
    return bool(slope.any())


def _link(step: Step, block: int) -> Link:
    came = None
    if step.came is not None and not step.added:
        passed, item, place, fresh = step.came
        came = Exit(passed=passed, item=item, tokens=place.tokens(), fresh=fresh)
    return Link(read=step.read, tokens=step.place.tokens(), block=block, came=came)


def _head(trace: Trace) -> Step:
    """Find the norm that reads the stream after the last block, or else the last block's output."""
    last = max(passed.left for passed in trace.passed)
    end = max(trace.passed, key=lambda passed: passed.left)
    assert trace.output is not None
    after = [read for read in trace.reads if read.home is None and read.at >= last]
    states = [*(State(read.cut, read.layout) for read in after), *end.states().values()]
    # A head that starts from zero hides the states from the output, but not that it reads them.
    silent = not any(bool(live_tokens(trace.output, *state).any()) for state in states)
    for read in after:
        live = live_tokens(trace.output, read.cut, read.layout, silent=silent)
        place = Place(Frame(live, 0, len(live)), 0)
        if live.any() and (came := handed_on(trace, read, place, last, strict=True)):
            return Step(read, place, came)
    lives = {
        item: live_tokens(trace.output, gave, layout, silent=silent)
        for item, (gave, layout) in end.states().items()
    }
    found = [(item, live) for item, live in lives.items() if live.any()]
    if len(found) != 1:
        raise NoStream("the output depends on no state, or on several, of the last block")
    item, live = found[0]
    place = Place(Frame(live, 0, len(live)), 0)
    return Step(None, place, (end, item, place, False))


def reads_within(trace: Trace, passed: Passed, anchor: State | Read, place: Place) -> list[Step]:
    """Return the reads within one call of a block that ``anchor`` is the sum of, in order.

    ``place`` is that of the anchor: what the block hands on, or what is read after it.
    """
    reads = [read for read in trace.reads if read.home == passed.home]
    steps: list[Step] = []
    for read, match in zip(reads, match_tokens(anchor, reads), strict=True):
        if match is None or not place.frame.holds(match.here + place.offset, match.count):
            continue
        if any(step.read is not None and step.read.value is read.value for step in steps):
            raise NoStream(
                "two modules read the same state (parallel branches, each with its own norm)"
            )
        if steps and not _holds_what_came(read, steps[-1]):
            raise NoStream(
                "a module reads a state without what was written last (parallel branches)"
            )
        start = match.here + place.offset
        place.frame.narrow(start, match.count)
        steps.append(Step(read, Place(place.frame, start - match.there)))
    return steps


def _holds_what_came(read: Read, before: Step) -> bool:
    assert before.read is not None
    return match_tokens(read, [before.read])[0] is not None


def handed_on(
    trace: Trace, read: Read, place: Place, entered: int, *, strict: bool = False
) -> tuple[Passed, Item, Place, bool] | None:
    """Return what the block before ``read`` handed on: call, element, place, fresh.

    The stream is handed on as it is, or with something added; or it goes around the block as well,
    such as by a mask that keeps some tokens from it. Where it is rewritten instead, what entered
    the block is taken for the old stream, or the only state that went into the new one, unless
    ``strict``.
    """
    earlier = [passed for passed in reversed(trace.passed) if passed.left <= entered]
    for passed in earlier:
        states = passed.states()
        matches = match_tokens(read, list(states.values()))
        for item, match in zip(states, matches, strict=True):
            if match is None:
                continue
            start = match.here + place.offset
            if place.frame.holds(start, match.count):
                place.frame.narrow(start, match.count)
                return passed, item, Place(place.frame, start - match.there), False
    for passed in earlier:
        inside = [one for one in trace.reads if one.home == passed.home]
        around = [match.count for match in match_tokens(read, inside) if match is not None]
        same = [i for i, one in passed.states().items() if one.value.shape == read.value.shape]
        if same and read.tokens.shape[1] in around:
            return passed, same[0], place, False
    if strict:
        return None
    given = next((p.given[0] for p in trace.passed if p.entered == entered and p.given), None)
    for passed in earlier:
        for item, (gave, layout) in passed.states().items():
            if gave is not given:
                continue
            if gave.shape == read.value.shape:
                _check_order(passed, State(gave, layout), read)
                return passed, item, place, False
            tokens = layout.take(gave).shape[1]
            frame = Frame(torch.ones(tokens, dtype=torch.bool), 0, tokens)
            return passed, item, Place(frame, 0), True
    for passed in earlier:  # the model itself may scale or mix the stream between two blocks
        led = [
            item
            for item, (gave, _) in passed.states().items()
            if gave.shape == read.value.shape and depends(read.value, gave)
        ]
        if len(led) == 1:
            _check_order(passed, passed.states()[led[0]], read)
            return passed, led[0], place, False
        if led:
            return None
    return None


def _check_order(passed: Passed, state: State, read: Read) -> None:
    """Refuse tokens at other places: no token of the old stream is that of the new one."""
    if reordered(State(read.value, read.layout), state):
        kind = class_of(passed.home[0]).__name__
        raise NoStream(f"tokens change their places behind a {kind}")


@dataclass(frozen=True)
class Match:
    """Tokens ``there``, there + 1, ... of an earlier tensor became ``here``, here + 1, ..."""

    here: int
    there: int
    count: int


def match_tokens(later: State | Read, earlier: Sequence[State | Read]) -> list[Match | None]:
    """Tell for each of ``earlier`` which tokens went into ``later`` with slope exactly one.

    None where no token did, or where those that did are no stretch.
    """
    value = later.value
    usable = [one.value for one in earlier if one.value.requires_grad]
    if not usable or not value.requires_grad or not later.layout.fits(value):
        return [None] * len(earlier)
    probe = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    probe = probe.to(value.device, value.dtype)
    slopes = iter(torch.autograd.grad(value, usable, probe, retain_graph=True, allow_unused=True))
    rows = later.layout.take(probe)[0]
    return [
        _match(rows, next(slopes), one.layout) if one.value.requires_grad else None
        for one in earlier
    ]


def _match(probe: Tensor, slope: Tensor | None, layout: Layout) -> Match | None:
    """Compare rows of the slope with those of the probe; other rows are tokens of other streams."""
    if slope is None or not layout.fits(slope) or slope.shape[layout.features] != probe.shape[1]:
        return None
    there, here = _same_rows(layout.take(slope)[0], probe)
    steps = torch.arange(len(there), device=there.device)
    if not len(there) or not (
        torch.equal(there, there[0] + steps) and torch.equal(here, here[0] + steps)
    ):
        return None
    return Match(int(here[0]), int(there[0]), len(there))


def _same_rows(slope: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """Return which rows of (T, D) are which of another tensor, rows of zeros aside."""
    same = (slope[:, None, 0] == probe[None, :, 0]) & slope[:, None, 0].bool()
    there, here = torch.nonzero(same, as_tuple=True)
    exact = (slope[there] == probe[here]).all(-1)
    return there[exact], here[exact]


def reordered(later: State, earlier: State) -> bool:
    """Tell whether all tokens of a state became tokens of a later one, at other places."""
    value, before = later.value, earlier.value
    if not (value.requires_grad and before.requires_grad) or value.shape != before.shape:
        return False
    probe = torch.randn(value.shape, generator=torch.Generator().manual_seed(5))
    probe = probe.to(value.device, value.dtype)
    (slope,) = torch.autograd.grad(value, before, probe, retain_graph=True, allow_unused=True)
    if slope is None:
        return False
    rows = later.layout.take(probe)[0]
    there, here = _same_rows(earlier.layout.take(slope)[0], rows)
    return len(there) == len(rows) and not torch.equal(there, here)


def features_first(state: Tensor, reads: list[Tensor], layout: Layout) -> bool | None:
    """Tell which axis of a state (1, ...) holds its features, by what norms read of it.

    Norms have their features last, and read the state as it is, or with its axes moved.

    Args:
        state: what a block takes.
        reads: what the norms in it read, (1, ..., D).
        layout: of both, but for the features of the state.

    Returns:
        True for (1, D, ...), False for (1, ..., D), None where no norm tells, or both.
    """
    found = set()
    for read in reads:
        if not (read.requires_grad and state.requires_grad) or read.numel() != state.numel():
            continue
        probe = torch.randn(read.shape, generator=torch.Generator().manual_seed(3))
        probe = probe.to(read.device, read.dtype)
        (slope,) = torch.autograd.grad(read, state, probe, retain_graph=True, allow_unused=True)
        if slope is None:
            continue
        rows = layout.take(probe)
        for first in (False, True):
            own = replace(layout, features=1 if first else -1).take(slope)
            if own.shape == rows.shape and torch.equal(own, rows):
                found.add(first)
    return found.pop() if len(found) == 1 else None


def live_tokens(output: Tensor, state: Tensor, layout: Layout, *, silent: bool = False) -> Tensor:
    """Return which tokens of ``state`` the output depends on: (T,) bool.

    With ``silent`` those are all where there is any path, even one that multiplies by zero.
    """
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad(
        output, state, probe.to(output.device, output.dtype), retain_graph=True, allow_unused=True
    )
    count = layout.take(state).shape[1]
    if grad is None:
        return torch.zeros(count, dtype=torch.bool)
    if silent:
        return torch.ones(count, dtype=torch.bool)
    return layout.take(grad)[0].any(-1).cpu()
