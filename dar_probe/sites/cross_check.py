"""The second measurement of what a discovered sublayer writes: what its own modules return."""

import math

import torch
from torch import Tensor, nn

from dar_probe.sites.stream_detection import Link
from dar_probe.sites.tracing import Trace

AGREES = 1e-3  # relative error up to which a write counts as its branch's own output
EQUAL = 1e-5  # up to which it counts as what one module returned, rounded by the addition


def agrees(
    found: Trace, link: Link, following: Link, stop: int, called: dict[int, nn.Module]
) -> bool:
    """Tell whether what was written is the branch's own output, times a factor per channel.

    The second, independent measurement of a write: what the modules of the branch returned.
    Whatever else was added within the block stands out, unless it looks the same for all tokens.
    """
    missed = difference(found, link, following, stop, called)
    return missed is None or missed <= AGREES


def difference(
    found: Trace, link: Link, following: Link, stop: int, called: dict[int, nn.Module]
) -> float | None:
    """Return which share of a write its branch's own output, times a factor per channel, misses.

    It is infinite where no output could be compared, and None where there is nothing to compare:
    where nothing finite was written, or the stream changed its shape.
    """
    read = link.read
    assert read is not None
    write = _write(link, following)
    if write is None:
        return None
    inner = {part for m in called.values() for part in m.modules() if part is not m}
    own = [
        state[0].double()
        # A branch that holds its own norm began before that.
        for at in (*filter(read.at.__gt__, called), *range(read.at, min(stop, len(found.calls))))
        if at in found.outputs
        and found.calls[at][1] == read.home
        and found.calls[at][0] not in inner
        for state in found.outputs[at]
    ]
    # Of a joint sequence the branch may return all, with the other tokens before or behind.
    count = len(write)
    parts = [part[:count] for part in own] + [part[-count:] for part in own if len(part) > count]
    parts = [part for part in parts if part.shape == write.shape and part.isfinite().all()]
    if not bool(write.any()) or not bool(write.isfinite().all()):
        return None  # the measurement itself says where the first NaN is
    if len(write) < 4 or not parts:
        return math.inf
    error, size = _left(write, parts)
    return error / size


def written_by(
    found: Trace, link: Link, following: Link, called: dict[int, nn.Module]
) -> nn.Module | None:
    """Return the outermost module of a branch that returned what was written, if there is one."""
    write = _write(link, following)
    if write is None or not bool(write.any()):
        return None
    for at, module in called.items():
        if at not in found.outputs or at not in found.single:
            continue
        own = found.outputs[at][0]
        if own[0].shape != write.shape:
            continue
        if bool((own[0].double() - write).norm() <= EQUAL * write.norm()):
            return module if found.count(module) == 1 else None
    return None


def _write(link: Link, following: Link) -> Tensor | None:
    """Return what entered the stream between two reads (T, D); None where its shape changed."""
    assert link.read is not None
    before = link.read.tokens[:, link.tokens]
    if following.read is None or (following.came is not None and following.block != link.block):
        assert following.came is not None
        after = following.came.value
    else:
        after = following.read.tokens[:, following.tokens]
    if before.shape != after.shape:
        return None
    return (after - before).detach()[0].double()


def _left(write: Tensor, parts: list[Tensor]) -> tuple[float, float]:
    """Return the norm of what no part, or two of them, explain channel by channel, and of all."""
    scale = float(write.norm())
    best = scale
    candidates = [[part] for part in parts]
    candidates += [[one, other] for one in parts[-4:] for other in parts[-4:] if one is not other]
    for chosen in candidates:
        a = torch.stack(chosen, -1).transpose(0, 1)  # (D, T, parts)
        b = write.T[..., None]  # (D, T, 1)
        fit = torch.linalg.lstsq(a, b).solution
        best = min(best, float((a @ fit - b).norm()))
    return best, scale
