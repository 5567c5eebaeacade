"""What a sublayer is called: by what its branch does, and by words where that leaves it open."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dar_probe.runtime.sharded import class_of
from dar_probe.sites.stream_detection import Link, depends
from dar_probe.sites.tracing import Read, Trace

BESIDE = ("norm", "drop", "layernorm", "ln_", "scale", "gate")  # what serves an attention
CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d


def kind_of(
    found: Trace, links: Sequence[Link], called: dict[int, nn.Module], names: dict[nn.Module, str]
) -> str:
    """Return "attention", "cross_attention", "mlp", "parallel", or "mixer".

    A mixer carries something from token to token and is no attention, by name or by the function
    that it calls, as in Mamba. What convolutions carry to neighbours alone makes no mixer of an
    MLP.

    Args:
        found: the traced forward.
        links: the reads of the stream up to that of the sublayer, and the one after it.
        called: the modules of the branch by their calls.
        names: theirs, within the block.
    """
    aside = _aside(found, links[-2], links[-1])
    beside = {part for at in aside if at in called for part in called[at].modules()}
    called = {at: module for at, module in called.items() if module not in beside}
    text = {at: f"{names[m]} {class_of(m).__name__}".lower() for at, m in called.items()}
    attention = [at for at, words in text.items() if "attention" in words or "attn" in words]
    if not attention:
        kind = _attended(found, links[-2], links[-1])
        if kind is None:
            near = _reached([m for m in called.values() if isinstance(m, CONVOLUTIONS)])
            return "mixer" if _mixes(found, links[-2], links[-1], near) else "mlp"
        if kind == "cross_attention":
            return kind
    outermost = {
        names[called[at]]
        for at in attention
        if "." not in names[called[at]] and not any(word in text[at] for word in BESIDE)
    }
    words = " ".join(text.values())
    if "mlp" in words or "feed" in words or len(outermost) > 1:
        return "parallel"  # several branches behind one norm
    crossed = [at for at in attention if at in found.crossed]
    if "cross" in words:
        return "cross_attention"
    if not any(_of_another_stream(found, links[:-1], at) for at in crossed):
        return "attention"
    # What attends to its own tokens may get more of them besides, such as values of an embedding.
    return "attention" if _mixes(found, links[-2], links[-1], 1, strict=True) else "cross_attention"


def _aside(found: Trace, link: Link, following: Link) -> set[int]:
    """Return the calls from which nothing is written, such as those of the text beside an image."""
    cuts = [one for one in _cuts(found, link, following) if one.operation is None]
    written, _ = _back(_after(link, following), cuts)
    return {one.at for one in cuts if one not in written}


def _attended(found: Trace, link: Link, following: Link) -> str | None:
    """Return what a branch is by the function of attention that it calls, if it calls it.

    That is "attention" where a key is made of what the branch reads, else "cross_attention".
    """
    cuts = _cuts(found, link, following)
    stop = following.read.at if following.read is not None else len(found.calls)
    _, values = _back(_after(link, following), cuts)
    assert link.read is not None
    keys = [
        key
        for at, key, made in found.attended
        if link.read.at < at <= stop and any(_slopes(v, [made])[0] is not None for v in values)
    ]
    if not keys:
        return None
    own = any(link.read in _back(key, cuts)[0] for key in keys)
    return "attention" if own else "cross_attention"


def _back(value: Tensor, cuts: Sequence[Read]) -> tuple[list[Read], list[Tensor]]:
    """Return the reads of a branch, its own one first, that lead to a value, and all between."""
    values, met, left = [value], [], list(cuts)
    for one in values:
        slopes = _slopes(one, [read.cut for read in left])
        new = [read for read, slope in zip(left, slopes, strict=True) if slope is not None]
        left = [read for read in left if read not in new]
        met += new
        values += [read.value for read in new if read is not cuts[0]]
    return met, values


def _slopes(value: Tensor, earlier: list[Tensor]) -> Sequence[Tensor | None]:
    usable = [one for one in earlier if one.requires_grad]
    if not value.requires_grad or not usable:
        return [None] * len(earlier)
    slopes = iter(
        torch.autograd.grad(value, usable, _probe(value), retain_graph=True, allow_unused=True)
    )
    return [next(slopes) if one.requires_grad else None for one in earlier]


def _after(link: Link, following: Link) -> Tensor:
    """Return the stream after a write."""
    if following.read is None or (following.came is not None and following.block != link.block):
        assert following.came is not None
        return following.came.value
    return following.read.tokens[:, following.tokens]


def _cuts(found: Trace, link: Link, following: Link) -> list[Read]:
    """Return the reads of a branch: it is cut off wherever one of its modules begins."""
    read = link.read
    assert read is not None
    stop = following.read.at if following.read is not None else len(found.calls)
    return [one for one in found.reads if one.home == read.home and read.at <= one.at < stop]


def _of_another_stream(found: Trace, links: Sequence[Link], at: int) -> bool:
    """Tell whether a call got a sequence that no read of this stream goes into, nor is."""
    own = [link.read for link in links if link.read is not None]
    tensors = [tensor for read in own for tensor in (read.value, read.cut)]

    def made(sequence: Tensor) -> bool:
        return any(sequence is t or depends(sequence, t) for t in tensors)

    for read in found.reads:  # within a branch modules are cut off again, each at its input
        if read.home == own[-1].home and made(read.value):
            tensors += [read.value, read.cut]
    return not all(map(made, found.crossed[at]))


def _reached(convolutions: Sequence[nn.Conv1d | nn.Conv2d | nn.Conv3d]) -> int:
    """Return how many tokens, at most, reach the last one through these alone."""
    axes: dict[int, int] = {}
    for module in convolutions:
        steps = zip(module.kernel_size, module.dilation, strict=True)
        for axis, (size, step) in enumerate(steps):
            axes[axis] = axes.get(axis, 1) + (size - 1) * step
    return math.prod(axes.values())


def _mixes(found: Trace, link: Link, following: Link, near: int, *, strict: bool = False) -> bool:
    """Tell whether what is written to the last token depends on most of the others.

    Where ``near`` tokens may be its neighbours through convolutions, it must be on more than these.
    Tokens of another stream may be as many: with ``strict`` the way back must end at the read.
    """
    read = link.read
    assert read is not None
    last = _after(link, following)[:, -1]
    if not last.requires_grad:
        return False
    cuts = _cuts(found, link, following)  # the way back leads over all of them
    whole = read.tokens.shape[1]
    asked, met = [last], {id(one): torch.zeros(whole, dtype=torch.bool) for one in cuts}
    for value in asked:
        slopes = torch.autograd.grad(
            value, [one.cut for one in cuts], _probe(value), retain_graph=True, allow_unused=True
        )
        for one, slope in zip(cuts, slopes, strict=True):
            if slope is None or one.layout.take(slope).shape[1] != whole:
                continue
            new = one.layout.take(slope)[0].any(-1).cpu() & ~met[id(one)]
            met[id(one)] |= new
            if new.any() and one.value.requires_grad and one is not read:
                asked.append(one.tokens[:, new])
    sure = [met[id(read)]] if strict else list(met.values())
    reached = torch.stack(sure).any(0)[link.tokens]
    others = int(reached[:-1].sum())
    return len(reached) > 2 and others > (len(reached) - 1) / 2 and others >= near


def _probe(value: Tensor) -> Tensor:
    drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(4))
    return drawn.to(value.device, value.dtype)
