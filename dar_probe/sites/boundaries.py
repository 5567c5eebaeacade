"""The states between blocks: all that can be measured where there is no pre-norm stack."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from dar_probe.errors import ProbeError, UsageError
from dar_probe.runtime.sharded import class_of
from dar_probe.sites import stream_detection
from dar_probe.sites.layout import HINT, PLAIN, Layout
from dar_probe.sites.subject import Reader, Source, Subject, View
from dar_probe.sites.tracing import Passed, State, Trace


def by_block(model: nn.Module, found: Trace, why: str, stated: Layout | None = None) -> Subject:
    """Name the states between blocks of the commonest kind: all there is without a stream.

    ``stated`` is the layout that the user names.
    """
    main = found.main()
    passed = [p for p in found.passed if class_of(p.home[0]) is main]
    last = passed[-1]
    item = next(iter(last.gave), None)
    taken = all(p.given and found.layout.fits(p.given[0]) for p in passed)
    if len(passed) < 2 or not taken or not last.gave:
        raise ProbeError(
            f"nothing can be measured between the blocks: {why}",
            hint="the probe needs two or more blocks that take, and return, a state (N, T, D)",
        )
    _check_linked(found, passed, why)
    view, told = _layout(found, passed, stated)
    for call, following in pairwise(passed):
        if stream_detection.reordered(
            State(following.given[0], view.layout), State(call.given[0], view.layout)
        ):
            raise ProbeError(
                "nothing can be compared between the blocks: tokens change their places from a "
                f"{class_of(call.home[0]).__name__} to the next block",
                hint="let the blocks hand on tokens in one order, and reorder them within",
            )
    begins = [found.first_of(p) for p in passed]
    readers = [
        Reader(
            name=f"block {k}",
            kind="block",
            block=k,
            module=module,
            normed=False,
            view=view,
            call=call,
        )
        for k, (module, call) in enumerate(begins, 1)
    ]
    head = Reader(
        name="head",
        kind="head",
        block=len(passed) + 1,
        module=last.module,
        when="output",
        item=item,
        normed=False,
        view=view,
        call=found.call_of(last),
    )
    sources = [
        Source(name="embedding", kind="embedding", block=0),
        *(Source(name=r.name, kind="block", block=r.block) for r in readers),
    ]
    return Subject(
        model=model,
        family="module",
        granularity="block",
        readers=(*readers, head),
        sources=tuple(sources),
        offered=((),) * (len(readers) + 1),
        blocks=found.blocks,
        entrance=begins[0][0],
        facts={
            **facts(model, len(passed), view.take(passed[0].given[0])),
            "routing": "none",
            "routing_title": "no pre-norm stack",
        },
        assumptions=(
            f"no pre-norm stack: {why}; RMS, gradient and cosine of the states between blocks are "
            "measured, gates, routes and writes are not measurable",
            *told,
        ),
    )


def _layout(found: Trace, passed: list[Passed], stated: Layout | None) -> tuple[View, list[str]]:
    """Return which axis of the states holds features, and what had to be assumed for it.

    Raises:
        ProbeError: norms in different blocks tell different axes.
        UsageError: they contradict the layout that the user states.
    """
    told = features_first(found, passed)
    if len(told) > 1:
        raise ProbeError("the blocks have their features on different axes", hint=HINT)
    state = passed[-1].given[0]
    if told:
        first = told.pop()
        layout = replace(found.layout, features=1 if first else -1)
        axes = "second" if first else "last"
        if stated is not None and stated != layout:
            raise UsageError(
                f"the layout contradicts the norms of the blocks, which read features on the {axes}"
                " axis of their states",
                hint="leave --layout out",
            )
        said = f"features are on the {axes} axis of the states, as the norms have them"
        plain = layout == PLAIN and state.ndim == 3
        return View(layout=layout), [] if plain else [said]
    if stated is not None:
        return View(layout=stated), []
    return View(layout=found.layout), [last_axis(state)]


def last_axis(state: Tensor) -> str:
    """Return the sentence that the features are taken to be on the last axis of a state."""
    return (
        f"no norm tells the axis of the features: the last one of {tuple(state.shape)} is taken; "
        "--layout names another"
    )


def features_first(found: Trace, passed: list[Passed]) -> set[bool]:
    """Return whether states are (1, D, ...), as the norms in the blocks tell; empty: none does."""
    told = set()
    for call in passed:
        reads = [read.value for read in found.reads if read.home == call.home and read.normed]
        if call.given and found.layout.fits(call.given[0]):
            told.add(stream_detection.features_first(call.given[0], reads, found.layout))
    return {first for first in told if first is not None}


def _check_linked(found: Trace, passed: list[Passed], why: str) -> None:
    """Require that every block takes what the one before returned, all of one shape.

    Raises:
        ProbeError: one does not.
    """
    for call, following in pairwise(passed):
        state, after = call.given[0], following.given[0]
        kind = class_of(call.home[0]).__name__
        if not stream_detection.comes_from(found, after, call):
            raise ProbeError(
                f"nothing can be measured between the blocks: {why}, and what a {kind} takes first "
                "does not come from the one before",
                hint="a block's first tensor must be the state; name blocks of one stack with "
                "--blocks",
            )
        layout = found.layout
        if stream_detection.returns_what_is_added(call, State(state, layout), State(after, layout)):
            raise ProbeError(
                f"nothing can be measured between the blocks: {why}, and what it returns is added "
                "to the stream outside of it",
                hint="let each block return x + f(norm(x)), or end in a norm",
            )
        if _adds_up(found, call, following):
            raise ProbeError(
                f"nothing can be measured between the blocks: {why}, and a "
                f"{class_of(following.home[0]).__name__} adds up two states that the block before "
                "handed on: the stream is their sum, which stands nowhere",
                hint="add them before the norm: norm(x + residual), not norm(x, residual)",
            )
    shapes = {call.given[0].shape for call in passed}
    shapes.add(next(iter(passed[-1].gave.values())).shape)
    if len(shapes) > 1:
        raise ProbeError(
            f"nothing can be compared between the blocks: {why}, and states change their shape",
            hint="name blocks of one shape with --blocks",
        )


def _adds_up(found: Trace, call: Passed, following: Passed) -> bool:
    """Tell whether a block returns the sum, and more, of two states that the one before gave."""
    states = [v for v in following.given if any(v is gave for gave in call.gave.values())]
    # A norm that adds up by itself is cut off where it begins.
    forms = [
        [value, *(r.cut for r in found.reads if r.value is value and r.home == following.home)]
        for value in states
    ]
    for state in following.states().values():
        met = [
            stream_detection.match_tokens(state, [State(v, state.layout) for v in same])
            for same in forms
        ]
        if sum(any(match is not None for match in matches) for matches in met) > 1:
            return True
    return False


def facts(model: nn.Module, depth: int, state: Tensor) -> dict[str, Any]:
    """Return what the manifest says of a module; ``state`` is (1, T, D)."""
    return {
        "family": "module",
        "routing": "residual",
        "query": None,
        "chunk_size": None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "depth": depth,
        "width": state.shape[2],
        "heads": None,
        "tokens": state.shape[1],
    }
