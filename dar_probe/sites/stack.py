"""Names the sites of a stack of sublayers with one stream, from the embedding to the head."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from dar_probe.sites.family import Identified
from dar_probe.sites.subject import (
    WHOLE,
    Branch,
    Passage,
    Reader,
    Source,
    Subject,
    View,
    offered_by_addition,
)


class Stack:
    """The sites of a model whose sublayers are added to one stream, named in firing order.

    Args:
        view: which part of every tensor is the stream.

    Attributes:
        readers, sources: those named so far.
    """

    def __init__(self, view: View = WHOLE) -> None:
        self.view = view
        self.readers: list[Reader] = []
        self.sources = [Source(name="embedding", kind="embedding", block=0)]

    def sublayer(
        self,
        block: int,
        kind: str,
        norm: nn.Module,
        output: nn.Module,
        gate: nn.Module | None = None,
        chunk: tuple[int, int] = (0, 1),
        *,
        number: int | None = None,
        normed: bool = True,
    ) -> None:
        """Name one sublayer.

        Args:
            block: 1..B.
            kind: "attention", "mlp", ...
            norm: whose first input is what the sublayer reads.
            output: whose output, times the gate, is what it writes.
            gate: whose output is modulation (N, chunks * D), or (N, T, chunks * D) by token; None
                where there is no gate.
            chunk: which of how many equal chunks of it is the gate.
            number: of the sublayer among those of its kind in the block, where there are several.
            normed: ``norm`` is one, so that the sublayer ignores the scale of what it reads.
        """
        name = f"block {block} {kind}" + (f" {number}" if number else "")
        branch = Branch(output=output, gate=gate, chunk=chunk)
        self.readers.append(
            Reader(
                name=name,
                kind=kind,
                block=block,
                module=norm,
                branches=(branch,),
                normed=normed,
                view=self.view,
            )  # fmt: skip
        )
        self.sources.append(Source(name=name, kind=kind, block=block))

    def fusion(
        self,
        block: int,
        module: nn.Module,
        *,
        after: bool = False,
        fresh: bool = False,
        name: str | None = None,
    ) -> None:
        """Name a step that rewrites the stream before ``block`` reads it.

        Args:
            block: 1..B.
            module: whose input is the stream before the step.
            after: it is the output of ``module`` instead.
            fresh: a new stream begins, of another shape or with an embedding of its own.
            name: left out, "block 5 fusion".
        """
        before = Passage(module=module, when="output" if after else "input", view=self.view)
        name = name or f"block {block} fusion"
        self.sources.append(
            Source(name=name, kind="fusion", block=block, before=before, fresh=fresh)
        )

    def subject(
        self,
        model: nn.Module,
        identified: Identified,
        *,
        head: nn.Module,
        tokens: int,
        normed: bool = True,
    ) -> Subject:
        """Return the subject whose last reader is ``head``.

        Args:
            model: whose sites were named.
            identified: whose sizes name width and, where known, heads.
            head: the module that first reads the last state.
            tokens: of the first stream.
            normed: the head is a norm.
        """
        depth = self.readers[-1].block
        last = Reader(
            name="head", kind="head", block=depth + 1, module=head, normed=normed, view=self.view
        )
        return Subject(
            model=model,
            family=identified.family,
            readers=(*self.readers, last),
            sources=tuple(self.sources),
            offered=offered_by_addition(self.sources),
            facts=facts(model, identified, depth=depth, tokens=tokens),
            assumptions=tuple(self._stages()),
        )

    def _stages(self) -> Iterator[str]:
        starts = [str(source.block) for source in self.sources if source.fresh]
        if starts:
            yield (
                f"a new stream begins before block{'s' * (len(starts) > 1)} {', '.join(starts)}: "
                "cosines and importances end there, and sizes before and after do not compare"
            )


def facts(model: nn.Module, identified: Identified, *, depth: int, tokens: int) -> dict[str, Any]:
    """Return what the manifest says of a model with plain residuals."""
    return {
        "family": identified.family,
        "routing": "residual",
        "query": None,
        "chunk_size": None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "depth": depth,
        "width": identified.sizes["width"],
        "heads": identified.sizes.get("heads"),
        "tokens": tokens,
    }
