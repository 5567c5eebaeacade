"""A model under the probe and the names of its sites."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dar_probe.runtime.sharded import is_sharded
from dar_probe.sites.layout import PLAIN, Layout
from dar_probe.sites.operations import Operation
from dar_probe.sites.packing import Item

When = Literal["input", "output", "operation"]


@dataclass(frozen=True, kw_only=True)
class View:
    """Which part of a tensor is the stream that is measured, as tokens (N, T, D).

    Attributes:
        tokens: of a sequence that holds other tokens too, e.g. text before the image; None: all.
        layout: which axes of the tensor are what; by default (N, ..., D).
    """

    tokens: slice | None = None
    layout: Layout = PLAIN

    def take(self, value: Tensor) -> Tensor:
        """Return the measured tokens (N, T, D) of a tensor; a view where the axes allow it."""
        value = self.layout.take(value)
        return value if self.tokens is None else value[:, self.tokens]

    def put(self, value: Tensor, part: Tensor) -> Tensor:
        """Return ``value`` with its measured tokens replaced by ``part`` (N, T, D)."""
        if self.tokens is not None:
            whole = self.layout.take(value).clone()
            whole[:, self.tokens] = part
            part = whole
        return self.layout.put(value, part)


WHOLE = View()


@dataclass(frozen=True, kw_only=True)
class Site:
    """One place where the stream can be seen in one forward.

    Attributes:
        module, when: the stream is this module's first input, its output, or what an operation of
            its forward takes.
        item: which element, where that output is packed, see ``packing``.
        view: the measured part of that tensor.
        call: which of how many calls of the module in one forward.
        operation: which operations of this block these are.
    """

    module: nn.Module
    when: When = "input"
    operation: Operation | None = None
    item: Item = None
    view: View = WHOLE
    call: tuple[int, int] = (0, 1)


@dataclass(frozen=True, kw_only=True)
class Passage(Site):
    """Where the stream passes before something other than a sublayer rewrites it."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A module whose output, times a gate, a sublayer writes: for the proof of the sites.

    Attributes:
        output: its output is shaped like what the reader reads.
        gate: its output is modulation (N, chunks * D), or (N, T, chunks * D) by token; None where
            the branch has no gate.
        chunk: which of how many equal chunks of the modulation is the gate.
        scale: a learned factor (D,) besides.
    """

    output: nn.Module
    gate: nn.Module | None = None
    chunk: tuple[int, int] = (0, 1)
    scale: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Reader(Site):
    """One place where the stream is read: the first module of a branch, usually its norm.

    Attributes:
        name: e.g. "block 3 attention", or "head".
        kind: attention, mlp, cross_attention, mixer, parallel, block or head.
        block: 1..B; B + 1 for the head.
        branches: what the sublayer writes, where the family knows it; several are added.
        output: the one module that returns what the sublayer writes, where discovery found it.
        normed: the branch starts with a norm, so that it ignores the scale of what it reads.
    """

    name: str
    kind: str
    block: int
    branches: tuple[Branch, ...] = ()
    output: nn.Module | None = None
    normed: bool = True


@dataclass(frozen=True, kw_only=True)
class Source:
    """One thing that is handed to the stream.

    Attributes:
        name, block: as for readers; block 0 is the embedding's.
        kind: embedding, fusion, or the kind of the sublayer that writes it.
        before: of a fusion, where the stream is seen as it was before it.
        fresh: a new stream begins, of another shape or with an embedding of its own: the source
            is the whole of it, where otherwise it is the new stream minus the old one.
    """

    name: str
    kind: str
    block: int
    before: Passage | None = None
    fresh: bool = False

    @property
    def written(self) -> bool:
        """Whether a sublayer writes it."""
        return self.kind not in ("embedding", "fusion")

    @property
    def begins(self) -> bool:
        """Whether a new stream begins with it."""
        return self.fresh or self.kind == "embedding"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the probe needs to know of a model.

    Sources are in the order in which they enter the stream: embedding, the write of reader 1, ...,
    a fusion between the write before and the next read.

    Attributes:
        model: called as it is.
        family: e.g. "sit"; "module" where the sites were discovered.
        granularity: "sublayer", or "block" where only the states between blocks are known.
        readers: l = 1..L+1 in firing order.
        sources: i = 0..L and the fusions between them.
        writers: modules whose output is v_i, one per source; None where writes are known only as
            differences of what the stream was before and after.
        offered: per reader the ids of the sources that may enter it; none at block granularity.
        routes: given the positional arguments of ``state_site``, the weights of every reader,
            (N, T, offered) each; None where every offered source enters with weight one.
        state_site: the module whose arguments carry the routing state.
        router: the module whose parameters ``routes`` needs.
        blocks: the modules that discovery took for blocks, as far as they were called.
        entrance: the first block, where autograd starts if its input needs no gradient; None
            where the model's first input can require it.
        direct: forwards are called past their modules' hooks, see ``direct_calls``.
        second: the sites of a second stream in the same forward, such as that of text.
        facts: model facts for the manifest.
        assumptions: one sentence for each thing that was taken for granted about the sites.
    """

    model: nn.Module
    family: str
    readers: tuple[Reader, ...]
    sources: tuple[Source, ...]
    offered: tuple[tuple[int, ...], ...]
    granularity: Literal["sublayer", "block"] = "sublayer"
    writers: tuple[nn.Module, ...] | None = None
    routes: Callable[[tuple[Any, ...]], list[Tensor]] | None = None
    state_site: nn.Module | None = None
    router: nn.Module | None = None
    blocks: tuple[nn.Module, ...] = ()
    entrance: nn.Module | None = None
    direct: bool = False
    second: "Subject | None" = None
    facts: dict[str, Any]
    assumptions: tuple[str, ...] = field(default=())

    @property
    def block_readers(self) -> list[int]:
        """Rows of ``readers`` whose reads are z_0..z_B: the first of each block, and the head."""
        blocks = [reader.block for reader in self.readers]
        return [i for i, b in enumerate(blocks) if i == 0 or b != blocks[i - 1]]

    @cached_property
    def sharded(self) -> bool:
        """Whether the model's parameters are spread over processes, which run it in step."""
        return is_sharded(self.model)

    @cached_property
    def offered_mask(self) -> Tensor:
        """Return (R, S) bool: True where a source may enter a reader."""
        mask = torch.zeros(len(self.readers), len(self.sources), dtype=torch.bool)
        for row, ids in enumerate(self.offered):
            mask[row, list(ids)] = True
        return mask

    @cached_property
    def last_source(self) -> list[int]:
        """Per reader the last source that entered the stream before it reads."""
        return last_source(self.sources)

    @cached_property
    def stages(self) -> list[tuple[slice, slice]]:
        """Readers and sources of every stretch of depth that has one stream of one shape."""
        starts = [i for i, source in enumerate(self.sources) if source.begins]
        found, reader = [], 0
        for start, stop in zip(starts, [*starts[1:], len(self.sources)], strict=True):
            count = sum(start <= last < stop for last in self.last_source)
            found.append((slice(reader, reader + count), slice(start, stop)))
            reader += count
        return found

    @cached_property
    def passages(self) -> dict[int, Passage]:
        """Where the stream is seen before a fusion, by the fusion's number as a source."""
        return {i: s.before for i, s in enumerate(self.sources) if s.before is not None}


def last_source(sources: Sequence[Source]) -> list[int]:
    """Return per reader the last source that entered the stream before it reads."""
    written = [i for i, source in enumerate(sources) if source.written]
    return [*(i - 1 for i in written), len(sources) - 1]


def offered_by_addition(sources: Sequence[Source]) -> tuple[tuple[int, ...], ...]:
    """Return what plain addition offers each reader: all that entered its stream so far."""
    offered = []
    for last in last_source(sources):
        first = max(i for i in range(last + 1) if sources[i].begins)
        offered.append(tuple(range(first, last + 1)))
    return tuple(offered)
