"""Finds the pre-norm stack of any module by watching one forward.

A norm reads the residual stream if, with every branch cut off, what the next norm reads depends
on what it reads with slope exactly one: the next state is this state plus what was written. That
is tested with autograd on the traced forward, so names of modules play no part in it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dar_probe.errors import ProbeError
from dar_probe.subjects.entrance import entrance, with_grad
from dar_probe.subjects.subject import Reader, Source, Subject


@dataclass(frozen=True, kw_only=True)
class Read:
    """One candidate: a norm and what it read during the traced forward.

    Attributes:
        module, value: the norm and its input (N, T, D).
        block: the block it lies in, from 1; 0 before the stack, -1 after the last block.
        called: names of the modules that ran between this norm and the next candidate.
    """

    module: nn.Module
    value: Tensor
    block: int
    called: list[str]


def discover(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Subject:
    """Name the sites of ``model`` from one forward on ``args`` and ``kwargs``.

    Blocks are the members of the longest module list, joined with other lists of the same class
    in firing order; readers are their norms that read the stream; the head is the first norm after
    the last block. The model must be frozen and in eval mode.

    Raises:
        ProbeError: there is no stack of blocks, or it is no pre-norm stack with a normed head.
    """
    blocks = _blocks(model, args, kwargs)
    reads = _trace(model, args, kwargs, blocks)
    readers: list[Read] = []
    for read in reads:
        if read.block != 0 and (not readers or _adds(readers[-1].value, read.value)):
            readers.append(read)
            if read.block == -1:
                break
        elif readers:
            readers[-1].called.extend(read.called)
    if len(readers) < 3 or readers[-1].block != -1:
        raise ProbeError(
            f"no pre-norm stack with a normed head was found: {len(blocks)} blocks, "
            f"{len(readers)} norms read a plain residual stream",
            hint="the probe needs blocks of x = x + f(norm(x)) in a ModuleList, "
            "and a norm before the head",
        )
    modules = [read.module for read in readers]
    if len(set(modules)) < len(modules):
        raise ProbeError(
            "one norm module reads the stream several times in one forward",
            hint="give each branch a norm of its own; they may share their weights",
        )
    for block in range(1, len(blocks) + 1):
        if block not in {read.block for read in readers}:
            raise ProbeError(f"block {block} of the stack never reads the stream by a norm")
    return _subject(model, readers, blocks)


def _blocks(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[nn.Module]:
    """Return the members of the longest list of blocks, joined with its like in firing order."""
    order = _firing_order(model, args, kwargs)
    lists = {
        name: list(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and len(module) >= 2
        and all(any(map(_is_norm, member.modules())) for member in module)
        and not any(map(_is_norm, module))
        and all(order.count(member) == 1 for member in module)
    }
    # A list within a block of another list belongs to that block.
    outer = [
        members
        for name, members in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists)
    ]
    if not outer:
        raise ProbeError(
            "no stack of blocks was found in the module",
            hint="the probe looks for a ModuleList of two or more blocks that hold norms",
        )
    kind = type(max(outer, key=len)[0])
    blocks = [member for members in outer if isinstance(members[0], kind) for member in members]
    return sorted(blocks, key=order.index)


def _firing_order(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[nn.Module]:
    """Return every module that ran in one forward, in the order in which they began."""
    order: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(lambda module, inputs: order.append(module))
        for module in model.modules()
    ]
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return order


def _trace(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], blocks: list[nn.Module]
) -> list[Read]:
    """Run one forward in which every norm's branch is cut off from the graph."""
    names = {module: name for name, module in model.named_modules()}
    home = {m: k for k, block in enumerate(blocks, 1) for m in block.modules()}
    reads: list[Read] = []
    left: list[nn.Module] = []

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if reads:
            reads[-1].called.append(f"{names[module]} {type(module).__name__}".lower())
        value = inputs[0] if inputs else None
        if not _is_norm(module) or not isinstance(value, Tensor) or value.ndim != 3:
            return None
        block = home.get(module, -1 if left and left[-1] is blocks[-1] else 0)
        reads.append(Read(module=module, value=value, block=block, called=[]))
        return (value.detach(), *inputs[1:])

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        left.append(module)

    handles = [m.register_forward_pre_hook(enter) for m in names]
    handles += [block.register_forward_hook(leave) for block in blocks]
    try:
        with entrance(blocks[0]):
            model(*map(with_grad, args[:1]), *args[1:], **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return reads


def _adds(earlier: Tensor, later: Tensor) -> bool:
    """Tell whether ``later`` is ``earlier`` plus something that does not depend on it."""
    if later is earlier or later.shape != earlier.shape:
        return False
    if not (earlier.requires_grad and later.requires_grad):
        return False
    probe = torch.randn(later.shape, generator=torch.Generator().manual_seed(0))
    probe = probe.to(later.device, later.dtype)
    (slope,) = torch.autograd.grad(later, earlier, probe, retain_graph=True, allow_unused=True)
    return slope is not None and torch.equal(slope, probe)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not list(module.children())


def _subject(model: nn.Module, readers: list[Read], blocks: list[nn.Module]) -> Subject:
    names = {module: name for name, module in model.named_modules()}
    found = [
        Reader(
            name=f"block {read.block} {names[read.module].rpartition('.')[2]}",
            kind=_kind(read.called),
            block=read.block,
            module=read.module,
        )
        for read in readers[:-1]
    ]
    sources = [Source(name=r.name, kind=r.kind, block=r.block) for r in found]
    head = Reader(name="head", kind="head", block=len(blocks) + 1, module=readers[-1].module)
    _, tokens, width = readers[0].value.shape
    return Subject(
        model=model,
        family="module",
        readers=(*found, head),
        sources=(Source(name="embedding", kind="embedding", block=0), *sources),
        offered=tuple(tuple(range(row)) for row in range(1, len(found) + 2)),
        entrance=blocks[0],
        facts={
            "family": "module",
            "routing": "residual",
            "query": None,
            "chunk_size": None,
            "parameters": sum(p.numel() for p in model.parameters()),
            "depth": len(blocks),
            "width": width,
            "heads": None,
            "tokens": tokens,
        },
    )


def _kind(called: list[str]) -> str:
    text = " ".join(called)
    attention = "attn" in text or "attention" in text
    if attention and ("mlp" in text or "feed" in text):
        return "parallel"  # both branches behind one norm
    if attention:
        return "cross_attention" if "cross" in text else "attention"
    return "mlp"
