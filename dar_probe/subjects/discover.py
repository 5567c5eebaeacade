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
        module, value: the norm and its input (1, T, D).
        block: the block it lies in, from 1; 0 before the stack, -1 after the last block.
        called: modules that ran between this norm and the next candidate.
    """

    module: nn.Module
    value: Tensor
    block: int
    called: list[nn.Module]


def discover(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Subject:
    """Name the sites of ``model`` from one forward of one sample on ``args`` and ``kwargs``.

    Blocks are the members of the longest module list, joined with other lists of the same class
    in firing order; readers are their norms that read the stream; the head is the first norm after
    the last block. The model must be frozen and in eval mode.

    Raises:
        ProbeError: there is no stack of blocks, or it is no pre-norm stack with a normed head, or
            something but the sublayers adds to the stream between the blocks.
    """
    blocks = _blocks(model, args, kwargs)
    reads, exits = _trace(model, args, kwargs, blocks)
    readers: list[Read] = []
    for read in reads:
        if readers and readers[-1].block == -1:
            _refuse(_adds(readers, read), "the stream goes on after the norm taken for the head")
        elif read.block != 0 and (not readers or _adds(readers, read)):
            readers.append(read)
        elif readers:
            same = any(read.value is other.value for other in readers)
            _refuse(same, "two norms read the same state (parallel branches with their own norms)")
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
    _refuse(readers[0].value.shape[0] != 1, "the stream's first axis is not the batch")
    _check_blocks(readers, exits)
    return _subject(model, readers, blocks)


def _refuse(wrong: bool, why: str) -> None:
    if wrong:
        raise ProbeError(
            f"this stack cannot be probed yet: {why}",
            hint="the probe needs (N, T, D) blocks of x = x + f(norm(x)), and nothing between them",
        )


def _check_blocks(readers: list[Read], exits: list[Tensor | None]) -> None:
    """Require that every block reads, and that the next one reads exactly what it hands on.

    Writes are differences of reads: what is added between two blocks would be charged to the
    sublayer before.
    """
    for block, left in enumerate(exits, 1):
        own = [read for read in readers if read.block == block]
        _refuse(not own, f"block {block} never reads the stream by a norm")
        following = readers[readers.index(own[-1]) + 1]
        _refuse(
            left is None or not torch.equal(left, following.value),
            f"something is added to the stream between block {block} and the next reader",
        )


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
    parents = {name: model.get_submodule(name.rpartition(".")[0]) for name in lists if name}
    _refuse(
        any(type(parent) is nn.ModuleList for parent in parents.values()),
        "its blocks are lists of modules, which have no output to watch",
    )
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
) -> tuple[list[Read], list[Tensor | None]]:
    """Run one forward with every norm's branch cut off; return reads and what blocks hand on."""
    home = {m: k for k, block in enumerate(blocks, 1) for m in block.modules()}
    reads: list[Read] = []
    exits: list[Tensor | None] = []

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        value = inputs[0] if inputs else None
        if not _is_norm(module) or not isinstance(value, Tensor) or value.ndim != 3:
            if reads:
                reads[-1].called.append(module)
            return None
        block = home.get(module, -1 if len(exits) == len(blocks) else 0)
        around = [m for m in home if home[m] == block and m is not module and _holds(m, module)]
        if reads:  # a branch that holds its own norm began before the norm did
            reads[-1].called[:] = [m for m in reads[-1].called if m not in around]
        around = [m for m in around if m not in blocks]
        reads.append(Read(module=module, value=value, block=block, called=around))
        return (value.detach(), *inputs[1:])

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple | list) else (output,)
        tensors = [value for value in outputs if isinstance(value, Tensor)]
        exits.append(tensors[0] if len(tensors) == 1 else None)

    handles = [m.register_forward_pre_hook(enter) for m in model.modules()]
    handles += [block.register_forward_hook(leave) for block in blocks]
    try:
        with entrance(blocks[0]):
            model(*map(with_grad, args[:1]), *args[1:], **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return reads, exits


def _holds(outer: nn.Module, inner: nn.Module) -> bool:
    return any(module is inner for module in outer.modules())


def _adds(readers: list[Read], read: Read) -> bool:
    """Tell whether ``read`` is every earlier read plus something that does not depend on it."""
    later, earlier = read.value, [other.value for other in readers]
    if any(later is value or later.shape != value.shape for value in earlier):
        return False
    if not all(value.requires_grad for value in (later, *earlier)):
        return False
    probe = torch.randn(later.shape, generator=torch.Generator().manual_seed(0))
    probe = probe.to(later.device, later.dtype)
    slopes = torch.autograd.grad(later, earlier, probe, retain_graph=True, allow_unused=True)
    return all(slope is not None and torch.equal(slope, probe) for slope in slopes)


def _is_norm(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    # Norms over the batch or over groups of channels do not read tokens (N, T, D) by themselves.
    others = ("batch", "group", "instance")
    return "norm" in name and not list(module.children()) and not any(o in name for o in others)


def _subject(model: nn.Module, readers: list[Read], blocks: list[nn.Module]) -> Subject:
    names = {module: name for name, module in model.named_modules()}
    found = []
    for read in readers[:-1]:
        prefix = f"{names[blocks[read.block - 1]]}."
        inside = [
            f"{names[m].removeprefix(prefix)} {type(m).__name__}".lower()
            for m in read.called
            if not _is_norm(m)
        ]
        found.append(
            Reader(
                name=f"block {read.block} {names[read.module].removeprefix(prefix)}",
                kind=_kind(inside),
                block=read.block,
                module=read.module,
            )
        )
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
