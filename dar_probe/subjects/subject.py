"""A model under the probe and the names of its sites."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One place where the stream is read: the first module of a branch, usually its norm.

    Attributes:
        name: e.g. "block 3 attention", or "head".
        kind: attention, mlp, cross_attention, parallel or head.
        block: 1..B; B + 1 for the head.
        module: its first positional input is h_l.
    """

    name: str
    kind: str
    block: int
    module: nn.Module


@dataclass(frozen=True, kw_only=True)
class Source:
    """One thing that is handed to the stream: the embedding (block 0) or a sublayer's write."""

    name: str
    kind: str
    block: int


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the probe needs to know of a model.

    Attributes:
        model: called as it is.
        family: e.g. "sit"; "module" where the sites were discovered.
        readers: l = 1..L+1 in firing order.
        sources: i = 0..L.
        writers: modules whose output is v_i, i = 0..L; None where writes are known only as
            differences of successive reads.
        offered: per reader the ids of the sources that may enter it.
        routes: given the positional arguments of ``state_site``, the weights of every reader,
            (N, T, offered) each; None where every offered source enters with weight one.
        state_site: the module whose arguments carry the routing state.
        entrance: the first block, where autograd starts if its input needs no gradient; None
            where the model's first input can require it.
        facts: model facts for the manifest.
    """

    model: nn.Module
    family: str
    readers: tuple[Reader, ...]
    sources: tuple[Source, ...]
    offered: tuple[tuple[int, ...], ...]
    writers: tuple[nn.Module, ...] | None = None
    routes: Callable[[tuple[Any, ...]], list[Tensor]] | None = None
    state_site: nn.Module | None = None
    entrance: nn.Module | None = None
    facts: dict[str, Any]

    @property
    def block_readers(self) -> list[int]:
        """Rows of ``readers`` whose reads are z_0..z_B: the first of each block, and the head."""
        blocks = [reader.block for reader in self.readers]
        return [i for i, b in enumerate(blocks) if i == 0 or b != blocks[i - 1]]

    @cached_property
    def offered_mask(self) -> Tensor:
        """Return (R, S) bool: True where a source may enter a reader."""
        mask = torch.zeros(len(self.readers), len(self.sources), dtype=torch.bool)
        for row, ids in enumerate(self.offered):
            mask[row, list(ids)] = True
        return mask
