"""The stream of the tokens that are not the output's, such as those of text in a joint model.

The output does not come from it: it ends where a block of the first stream reads it for the last
time, as keys and values of an attention.
"""

import torch
from torch import Tensor

from dar_probe.sites.homes import Home
from dar_probe.sites.stream_detection import (
    Frame,
    Link,
    NoStream,
    Place,
    back,
    entered,
    live_tokens,
    match_tokens,
    reads_within,
)
from dar_probe.sites.tracing import Read, Trace

LAST = 2  # blocks of the first stream, from the end, in which the last read is looked for
LEAST = 2  # blocks that a stream runs through, with that of its last read


def follow(trace: Trace, links: list[Link]) -> list[Link]:
    """Return the reads of the second stream in firing order; the last one writes nothing to it.

    Args:
        trace: of a forward.
        links: the reads of the first stream.

    Raises:
        NoStream: no block of the first stream reads another one.
    """
    homes = [link.read.home for link in links if link.read is not None]
    last = list(dict.fromkeys(home for home in reversed(homes) if home is not None))[:LAST]
    for home in last:
        live = _live_reads(trace, home)
        for read in reversed(live):
            place = _place(read, live[read], links)
            if place is not None and (found := _followed(trace, home, read, place)):
                return found
    raise NoStream(
        f"none of the last {len(last)} blocks reads tokens of another stream, to which blocks write"
    )


def _live_reads(trace: Trace, home: Home) -> dict[Read, Tensor]:
    """Return which tokens (T,) of the reads of one block make the output, in firing order.

    A branch is cut off at each of its modules: its first read makes the output by the others.
    """
    assert trace.output is not None
    reads = [read for read in trace.reads if read.home == home]
    live = {read: live_tokens(trace.output, read.cut, read.layout) for read in reads}
    for later in reversed(reads):
        cuts = [read for read in reads if read is not later and read.at <= later.at]
        if not cuts or not live[later].any() or not later.value.requires_grad:
            continue
        probe = torch.randn(later.tokens.shape, generator=torch.Generator().manual_seed(6))
        probe[:, ~live[later]] = 0
        probe = later.layout.put(later.value, probe.to(later.value.device, later.value.dtype))
        slopes = torch.autograd.grad(
            later.value, [read.cut for read in cuts], probe, retain_graph=True, allow_unused=True
        )
        for read, slope in zip(cuts, slopes, strict=True):
            if slope is not None:
                live[read] |= read.layout.take(slope)[0].any(-1).cpu()
    return live


def _place(read: Read, live: Tensor, links: list[Link]) -> Place | None:
    """Return which tokens of a read are of another stream and make the output; None: none are."""
    live, low, high = live.clone(), 0, len(live)
    for link in links:
        if link.read is None or (match := match_tokens(read, [link.read])[0]) is None:
            continue
        start = max(match.here + link.tokens.start - match.there, 0)
        stop = min(match.here + link.tokens.stop - match.there, len(live))
        if start < stop:  # a sequence of both: what is left before or behind the first stream's
            ahead = start >= len(live) - stop
            low, high = (low, min(start, high)) if ahead else (max(stop, low), high)
    live[:low], live[high:] = False, False
    return Place(Frame(live, low, high), 0) if bool(live.any()) else None


def _followed(trace: Trace, home: Home, read: Read, place: Place) -> list[Link]:
    """Return the reads of the stream that ends in a read; empty where it is none."""
    passed = next(one for one in trace.passed if one.home == home)
    try:
        own = entered(trace, reads_within(trace, passed, read, place), strict=True)
        found = back(trace, list(reversed(own)), [len(own)])
    except NoStream:
        return []
    homes = {link.read.home for link in found if link.read is not None}
    return found if len(homes) >= LEAST else []
