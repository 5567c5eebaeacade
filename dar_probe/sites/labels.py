"""What a sublayer is called: by what its branch does, and by words where that leaves it open."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dar_probe.sites.stream_detection import Link, depends
from dar_probe.sites.tracing import Trace

BESIDE = ("norm", "drop", "layernorm", "ln_", "scale", "gate")  # what serves an attention
CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d


def kind_of(
    found: Trace, links: Sequence[Link], called: dict[int, nn.Module], names: dict[nn.Module, str]
) -> str:
    """Return "attention", "cross_attention", "mlp", "parallel", or "mixer".

    A mixer carries something from token to token and is no attention by name, as in Mamba. What
    convolutions carry to neighbours makes no mixer of an MLP.

    Args:
        found: the traced forward.
        links: the reads of the stream up to that of the sublayer, and the one after it.
        called: the modules of the branch by their calls.
        names: theirs, within the block.
    """
    text = {at: f"{names[m]} {type(m).__name__}".lower() for at, m in called.items()}
    attention = [at for at, words in text.items() if "attention" in words or "attn" in words]
    if not attention:
        convolves = any(isinstance(m, CONVOLUTIONS) for m in called.values())
        return "mixer" if not convolves and _mixes(found, links[-2], links[-1]) else "mlp"
    outermost = {
        names[called[at]]
        for at in attention
        if "." not in names[called[at]] and not any(word in text[at] for word in BESIDE)
    }
    words = " ".join(text.values())
    if "mlp" in words or "feed" in words or len(outermost) > 1:
        return "parallel"  # several branches behind one norm
    crossed = [at for at in attention if at in found.crossed]
    if "cross" in words or any(_of_another_stream(found, links[:-1], at) for at in crossed):
        return "cross_attention"
    return "attention"


def _of_another_stream(found: Trace, links: Sequence[Link], at: int) -> bool:
    """Tell whether a call got a sequence that no read of this stream goes into, nor is."""
    own = [link.read for link in links if link.read is not None]
    for sequence in found.crossed[at]:
        made = any(
            sequence is tensor or depends(sequence, tensor, slice(None))
            for read in own
            for tensor in (read.value, read.cut)
        )
        if not made:
            return True
    return False


def _mixes(found: Trace, link: Link, following: Link) -> bool:
    """Tell whether what is written to the last token depends on most of the others."""
    read = link.read
    assert read is not None
    if following.read is None or (following.came is not None and following.block != link.block):
        assert following.came is not None
        after: Tensor = following.came.value
    else:
        after = following.read.stream[:, following.tokens]
    last = after[:, -1]
    if not last.requires_grad:
        return False
    # A branch is cut off wherever one of its modules begins: the way back leads over all of them.
    stop = following.read.at if following.read is not None else len(found.calls)
    cuts = [one for one in found.reads if one.home == read.home and read.at <= one.at < stop]
    whole = read.stream.shape[1]
    asked, met = [last], {id(one): torch.zeros(whole, dtype=torch.bool) for one in cuts}
    for value in asked:
        slopes = torch.autograd.grad(
            value, [one.cut for one in cuts], _probe(value), retain_graph=True, allow_unused=True
        )
        for one, slope in zip(cuts, slopes, strict=True):
            if slope is None or one.view.take(slope).shape[1] != whole:
                continue
            new = one.view.take(slope)[0].any(-1).cpu() & ~met[id(one)]
            met[id(one)] |= new
            if new.any() and one.value.requires_grad and one is not read:
                asked.append(one.stream[:, new])
    reached = torch.stack(list(met.values())).any(0)[link.tokens]
    return len(reached) > 2 and int(reached[:-1].sum()) > (len(reached) - 1) / 2


def _probe(value: Tensor) -> Tensor:
    drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(4))
    return drawn.to(value.device, value.dtype)
