"""Finds the residual stream of any module by watching one forward.

Blocks are the members of module lists; readers are what reads the stream in them; whatever changes
the stream between a block and the next read is a fusion. Where there is no such stream, the states
between the blocks are all that can be measured.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dar_probe.errors import ProbeError, UsageError
from dar_probe.runtime.sharded import class_of
from dar_probe.sites import layout, operations, second_stream, stream_detection
from dar_probe.sites.autograd_entry import nothing_overwritten
from dar_probe.sites.block_lists import members, named, repeated
from dar_probe.sites.boundaries import by_block, facts, features_first, last_axis
from dar_probe.sites.cross_check import agrees, written_by
from dar_probe.sites.direct_calls import heard, is_heard
from dar_probe.sites.homes import uncalled
from dar_probe.sites.labels import kind_of
from dar_probe.sites.layout import PLAIN, Inputs, Layout
from dar_probe.sites.stream_detection import Link, NoStream
from dar_probe.sites.subject import (
    Passage,
    Reader,
    Source,
    Subject,
    View,
    offered_by_addition,
)
from dar_probe.sites.tracing import Judge, Read, Trace, is_norm, trace
from dar_probe.sites.unwrap import plain_name

S = TypeVar("S", Reader, Source)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What discovery asks the caller where one forward leaves it open.

    Attributes:
        two: returns args and kwargs of this sample and another one, which tell the axis of samples
            where it is not the first.
        judge: returns the loss of an output of this sample, which tells what of it counts.
        second: name the sites of a second stream too, such as that of text: ``Subject.second``.
    """

    two: Callable[[], Inputs] | None = None
    judge: Judge | None = None
    second: bool = False


DIRECT = (
    "blocks are called as block.forward(x), past their hooks: while it is measured the module "
    "itself is called instead, hooks of others included"
)


@nothing_overwritten()
def discover(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    blocks: str | None = None,
    readers: str | None = None,
    live_only: bool = False,
    axes: str | None = None,
    asked: Asked | None = None,
) -> Subject:
    """Name the sites of ``model`` from one forward of one sample on ``args`` and ``kwargs``.

    The model must be frozen and in eval mode.

    Args:
        model: any module.
        args: of one sample.
        kwargs: of one sample.
        blocks: patterns of the names of blocks, such as "encoder.layers.*", joined by commas; a
            star stands for one part of a name. Left out: the members of the lists of blocks.
        readers: patterns of the names of what reads the stream; left out: every norm that does,
            and every branch without one.
        live_only: measure only the tokens that the output comes from, not e.g. padding.
        axes: of the states between blocks, such as "T N D", see ``layout.parse``. Default: found.
        asked: what the caller can be asked about its samples and its loss.

    Raises:
        ProbeError: there are no blocks, or what was asked for is no pre-norm stack, or there is no
            second stream where one is asked for.
        UsageError: a pattern fits no module, or ``axes`` do not fit the states.
    """
    named_axes = None if axes is None else layout.parse(axes)
    own = set(named(model, blocks) if blocks else members(model) or repeated(model, args, kwargs))
    wanted = set(named(model, readers)) if readers else None
    asked = asked or Asked()
    look = partial(trace, model, args, kwargs, own, wanted, judge=asked.judge)
    found = look()
    if own and not found.passed and not is_heard(model):
        with heard(model):
            subject = discover(
                model, args, kwargs,
                blocks=blocks, readers=readers, live_only=live_only, axes=axes, asked=asked,
            )  # fmt: skip
        return replace(subject, direct=True, assumptions=(*subject.assumptions, DIRECT))
    how: tuple[Layout, ...] = (PLAIN,)
    if named_axes is not None and (states := _states(found)):
        how = (named_axes.of(states),)
    elif asked.two is not None and own and not _plain(found):
        how = layout.find(model, own, (args, kwargs), asked.two())
    if how[0].last != PLAIN:
        found = look(tuple(one.last for one in how))
    _require_blocks(found, own, named=blocks is not None)
    stated, unsure = None if named_axes is None else how[0], []
    try:
        links, aside = _followed(found, live_only)
    except NoStream as error:
        if readers:
            raise ProbeError(
                f"these readers read no common stream: {error}",
                hint="leave --readers out to see what is found by itself",
            ) from None
        how = (stated,) if stated else _features(found)
        called, norms = {b for b in own if not uncalled(b)}, set(filter(is_norm, model.modules()))
        begun = operations.find(model, args, kwargs, called, norms)
        told = {one.features for ones in begun.values() for one in ones} - {None}
        if stated is None and how == (PLAIN,) and told == {1}:
            how = (replace(PLAIN, features=1),)
        try:
            second = look(how, begun) if begun else found
            links, aside = _followed(second, live_only)
        except NoStream:
            if asked.second:
                raise _no_second(str(error)) from None
            return _with_blind(by_block(model, found, str(error), stated), found)
        if stated is None and len(told) != 1 and not features_first(found, found.passed):
            unsure = _states(found)[:1]
        found = second
    else:
        if how[0].features != -1:
            raise UsageError(
                f"the layout {named_axes} contradicts the norms of the blocks, which read features "
                "on the last axis of their states",
                hint="leave --layout out",
            )
    if (module := stream_detection.overwritten(found, links)) is not None:
        names = {part: plain_name(name) for name, part in model.named_modules()}
        raise ProbeError(
            f"the stream was overwritten in place after {names[module]!r} read or returned it",
            hint="the probe needs x = x + f(x), not x += f(x)",
        )
    subject = _by_sublayer(model, found, links, aside)
    if asked.second:
        subject = replace(subject, second=_second(model, found, links))
    said = [last_axis(state) for state in unsure]
    return _with_blind(replace(subject, assumptions=(*subject.assumptions, *said)), found)


def _require_blocks(found: Trace, own: set[nn.Module], *, named: bool) -> None:
    """Refuse a model without blocks that were called, or whose states hold no samples.

    Raises:
        ProbeError: it is one.
    """
    if not own or (len(found.passed) == 1 and not named):
        raise ProbeError(
            "no stack of blocks was found in the module",
            hint="the probe looks for a list of two or more blocks, or for one that runs several "
            "times; name others with --blocks",
        )
    if not found.passed:
        raise ProbeError(
            f"no block was called in the forward, of {len(own)} that the model has",
            hint="name others with --blocks",
        )
    gave = [value for passed in found.passed for value in passed.gave.values()]
    if gave and all(found.lies(value) is None for value in gave):
        raise ProbeError(
            "this stack cannot be probed: no axis of its states is known to be the samples'",
            hint=layout.HINT,
        )


def _states(found: Trace) -> list[Tensor]:
    """Return what the first block took and returned."""
    first = next((passed for passed in found.passed if passed.given), None)
    return [] if first is None else [*first.given, *first.gave.values()]


def _plain(found: Trace) -> bool:
    """Tell whether the commonest blocks take or return states with one sample on the first axis."""
    if not found.passed:
        return True
    main = found.main()
    states = [
        state
        for passed in found.passed
        if class_of(passed.home[0]) is main
        for state in (*passed.given[:1], *passed.gave.values())
    ]
    return any(map(PLAIN.fits, states)) or not states


def _features(found: Trace) -> tuple[Layout, ...]:
    """Return how the states lie, with their features where norms in the blocks read them."""
    if features_first(found, found.passed) != {True}:
        return found.layouts
    return tuple(replace(one, features=1) for one in found.layouts)


def _followed(found: Trace, live_only: bool) -> tuple[list[Link], list[nn.Module]]:
    """Return the reads of the stream, and the blocks that it does not run through."""
    links = stream_detection.follow(found, live_only=live_only)
    return links, _aside(found, links)


def _with_blind(subject: Subject, found: Trace) -> Subject:
    """Note in the facts which module of a block ran where autograd recorded nothing."""
    if not found.dark:
        return subject
    names = {module: plain_name(name) for name, module in subject.model.named_modules()}
    reason = f"{names[found.dark[0]]!r} runs without autograd (torch.no_grad) inside a block"
    return replace(subject, facts={**subject.facts, "blind": reason})


def _aside(found: Trace, links: list[Link]) -> list[nn.Module]:
    """Return the blocks that the stream does not run through, such as those of the text.

    Raises:
        NoStream: it runs through fewer than two blocks, or through less than half of those of the
            commonest kind.
    """
    on_stream = {link.read.home for link in links if link.read is not None} - {None}
    if len(on_stream) < 2:
        raise NoStream("no stream runs through two blocks")
    main = found.main()
    counted = [p.home in on_stream for p in found.passed if class_of(p.home[0]) is main]
    if 2 * sum(counted) < len(counted):
        raise NoStream(
            f"the stream that the output depends on runs through {sum(counted)} of {len(counted)} "
            f"{main.__name__}"
        )
    return [passed.home[0] for passed in found.passed if passed.home not in on_stream]


def _second(model: nn.Module, found: Trace, links: list[Link]) -> Subject:
    """Return the sites of a second stream.

    Raises:
        ProbeError: there is none.
    """
    try:
        own = second_stream.follow(found, links)
    except NoStream as error:
        raise _no_second(str(error)) from None
    blocks = {link.read.home: link.block for link in own if link.read is not None}
    aside = [passed.home[0] for passed in found.passed if passed.home not in blocks]
    subject = _by_sublayer(model, found, own, aside)
    met = next(link for link in links if link.read is not None and link.read.home in blocks)
    assert met.read is not None
    number = blocks[met.read.home]
    subject = replace(subject, facts={**subject.facts, "ahead": met.block - number})
    if number == met.block:
        return subject
    said = (
        f"blocks of the second stream are counted from its own first one: its block {number} is "
        f"block {met.block} of the first stream"
    )
    return replace(subject, assumptions=(*subject.assumptions, said))


def _no_second(why: str) -> ProbeError:
    return ProbeError(
        f"no stream of text was found beside that of the output: {why}",
        hint="blocks that read text by cross-attention have no stream of it; leave --stream out",
    )


def _by_sublayer(
    model: nn.Module, found: Trace, links: list[Link], aside: list[nn.Module]
) -> Subject:
    names = {module: plain_name(name) for name, module in model.named_modules()}
    readers: list[Reader] = []
    sources = [Source(name="embedding", kind="embedding", block=0)]
    unlike = []
    for at, link in enumerate(links):
        if link.came is not None and at and (change := _fusion(found, link, links[at - 1])):
            sources.append(change)
        if at == len(links) - 1:
            readers.append(_head(found, link))
            break
        read = link.read
        assert read is not None and read.home is not None
        following = links[at + 1]
        stop = following.read.at if following.read is not None else len(found.calls)
        called = _called(found, read, stop, following.read)
        block = names[read.home[0]]
        own_names = {m: names[m].removeprefix(f"{block}.") for m in called.values()}
        kind = kind_of(found, links[: at + 2], called, own_names)
        readers.append(
            Reader(
                name=f"block {link.block} {kind}",
                kind=kind,
                block=link.block,
                module=read.module,
                output=written_by(found, link, following, called),
                normed=read.normed,
                view=_view(link.tokens, read.value, read.layout),
                call=(read.call, found.count(read.module)),
                when="input" if read.operation is None else "operation",
                operation=read.operation,
            )
        )
        sources.append(Source(name=readers[-1].name, kind=kind, block=link.block))
        if not agrees(found, link, following, stop, called):
            unlike.append(at)
    readers, sources = numbered(readers), numbered(sources)
    first = links[0].read
    assert first is not None and first.home is not None
    return Subject(
        model=model,
        family="module",
        readers=tuple(readers),
        sources=tuple(sources),
        offered=offered_by_addition(sources),
        blocks=found.blocks,
        entrance=next(found.first_of(p)[0] for p in found.passed if p.home == first.home),
        facts=facts(model, links[-1].block - 1, first.tokens[:, links[0].tokens]),
        assumptions=tuple(
            _assumed(
                readers,
                [readers[at].name for at in unlike],
                links,
                [names[block] for block in aside],
                [names[read.module] for read in stream_detection.others(found, links)],
                found.layouts,
            )
        ),
    )


def numbered(sites: list[S]) -> list[S]:
    """Number the sites that share a name, as "block 3 mlp 1" and "block 3 mlp 2"."""
    count = Counter(site.name for site in sites)
    met: Counter[str] = Counter()
    found = []
    for site in sites:
        met[site.name] += 1
        number = f" {met[site.name]}" if count[site.name] > 1 else ""
        found.append(replace(site, name=site.name + number))
    return found


def _fusion(found: Trace, link: Link, before: Link) -> Source | None:
    """Return what changed the stream between a block and the next read, if anything did."""
    came = link.came
    assert came is not None
    if link.read is None:
        return None
    if not came.fresh and torch.equal(came.value, link.read.tokens[:, link.tokens]):
        return None
    at_head = link.read.home is None
    gave = came.passed.gave[came.item]
    return Source(
        name="head fusion" if at_head else f"block {link.block} fusion",
        kind="fusion",
        # A fusion before the head is no block's: it is counted to the last one.
        block=before.block if at_head else link.block,
        before=Passage(
            module=came.passed.module,
            when="output",
            item=came.item,
            view=_view(came.tokens, gave, came.passed.layouts[came.item]),
            call=found.call_of(came.passed),
        ),
        fresh=came.fresh,
    )


def _head(found: Trace, link: Link) -> Reader:
    if link.read is not None:
        return Reader(
            # A second stream has no head: what reads it last writes to the first one alone.
            name="head" if link.read.home is None else f"block {link.block} last read",
            kind="head",
            block=link.block,
            module=link.read.module,
            view=_view(link.tokens, link.read.value, link.read.layout),
            call=(link.read.call, found.count(link.read.module)),
        )
    assert link.came is not None
    return Reader(
        name="head",
        kind="head",
        block=link.block,
        module=link.came.passed.module,
        when="output",
        item=link.came.item,
        normed=False,
        view=_view(
            link.came.tokens,
            link.came.passed.gave[link.came.item],
            link.came.passed.layouts[link.came.item],
        ),
        call=found.call_of(link.came.passed),
    )


def _called(found: Trace, read: Read, stop: int, following: Read | None) -> dict[int, nn.Module]:
    """Return the modules of the branch that begins with ``read``, but norms, by their calls."""
    assert read.home is not None
    block, _ = read.home
    # A branch that holds its own norm began before the norm did; so may the next one have.
    inside = {
        at: module
        for at, (module, home) in enumerate(found.calls[:stop])
        if home == read.home and not is_norm(module) and module is not block
    }
    return {
        at: module
        for at, module in inside.items()
        if (at >= read.at or _holds(module, read.module))
        and (following is None or not _holds(module, following.module))
    }


def _holds(outer: nn.Module, inner: nn.Module) -> bool:
    return any(module is inner for module in outer.modules())


def _view(tokens: slice, value: Tensor, layout: Layout) -> View:
    whole = tokens.start == 0 and tokens.stop == layout.take(value).shape[1]
    return View(tokens=None if whole else tokens, layout=layout)


def _assumed(
    readers: list[Reader],
    unlike: list[str],
    links: list[Link],
    aside: list[str],
    others: list[str],
    how: tuple[Layout, ...],
) -> list[str]:
    found = []
    if len(how) > 1:
        rows = " and of ".join(str(one.rows) for one in how)
        found.append(
            f"the states between blocks are rows of {rows} to a sample by turns, such as frames "
            "and places of a video"
        )
    elif how[0] != PLAIN:
        found.append(
            f"the states between blocks are {how[0].shown}: N samples, T tokens, D features"
        )
    if others:
        many = "is 1 module" if len(others) == 1 else f"are {len(others)} modules"
        found.append(
            f"left out {many}, such as {others[0]!r}, that read the stream or something made of it "
            "(a copy, a scaled state): no readers here, what they write is part of other sources"
        )
    if aside:
        many = "is 1 block" if len(aside) == 1 else f"are {len(aside)} blocks"
        found.append(f"aside of the measured stream {many}, such as {aside[0]!r}")
    if unlike:
        many = f"{len(unlike)} of {len(readers) - 1} writes, such as that of {unlike[0]!r},"
        found.append(
            f"{many} could not be confirmed to be their branch's own output times a factor per "
            "channel: whatever else is added within the block is counted to them"
        )
    last = links[-1].read
    if any(r.view.tokens is not None for r in readers):
        found.append(
            "a sequence holds other tokens too, such as text: only those that run through all "
            "blocks are measured"
            if last is None or last.home is None
            else "a sequence holds other tokens too, such as the image's, which are left out here"
        )
    if last is None:
        found.append(
            "no reader was found behind the last block: what it returns is taken for what the head "
            "reads"
        )
    raw = [r.name for r in readers[:-1] if not r.normed]
    if raw:
        found.append(f"{len(raw)} readers, such as {raw[0]!r}, have no norm of their own")
    return found
