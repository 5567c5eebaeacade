"""The bundled backbone: SiT, DiT and REPA layouts, plain or routed."""

from dataclasses import asdict
from typing import Any

from torch import Tensor

from dar_probe.checkpoints.header import Header
from dar_probe.models.sit import SiT, SiTConfig
from dar_probe.subjects.family import Family, Identified
from dar_probe.subjects.sit_layout import read_sizes
from dar_probe.subjects.subject import Branch, Reader, Source, Subject


def identify(header: Header, heads: int | None = None) -> Identified:
    """Tell sizes, routing and objective of a file.

    Raises:
        CheckpointError: the layout is unknown or contradicts itself, or the heads are unknown.
        UsageError: ``heads`` does not fit the file.
    """
    found = asdict(read_sizes(header, heads))
    family, assumptions = found.pop("family"), found.pop("assumptions")
    own = family == "dar-probe"
    found["null_class"] = found.pop("class_dropout")
    found |= found.pop("routing")
    return Identified(
        family=family,
        sizes=found,
        shape=(found["in_channels"], found["input_size"], found["input_size"]),
        num_classes=found["num_classes"],
        objective=str(header.args.get("objective", "sit")) if own else family,
        assumptions=assumptions,
    )


def build(identified: Identified) -> SiT:
    """Return a model of these sizes."""
    sizes = dict(identified.sizes)
    return SiT(SiTConfig(**{**sizes, "projectors": tuple(sizes["projectors"])}))


def subject(model: SiT, *, family: str = "sit") -> Subject:
    """Name the sites of a bundled model, at sublayer granularity."""
    stream, layout, depth = model.stream, model.stream.layout, model.config.depth
    sites = [
        (block.get_submodule(f"norm{j}"), block.get_submodule(name), block, 3 * j - 1)
        for block in model.blocks
        for j, name in ((1, "attn"), (2, "mlp"))
    ]
    names = [f"block {k} {kind}" for k, kind in zip(layout.blocks, layout.kinds, strict=True)]
    sublayers = list(zip(names, layout.kinds, layout.blocks, sites, strict=True))
    routed = not stream.additive

    def routes(arguments: tuple[Any, ...]) -> list[Tensor]:
        weights = stream.routes(arguments[1])
        assert weights is not None
        return weights

    return Subject(
        model=model,
        family=family,
        readers=(
            *(
                Reader(
                    name=name,
                    kind=kind,
                    block=k,
                    module=norm,
                    branches=(
                        Branch(
                            output=branch,
                            gate=block.get_submodule("adaLN_modulation"),
                            chunk=(chunk, 6),
                        ),
                    ),
                )
                for name, kind, k, (norm, branch, block, chunk) in sublayers
            ),
            Reader(name="head", kind="head", block=depth + 1, module=model.final_layer.norm_final),
        ),
        sources=(
            Source(name="embedding", kind="embedding", block=0),
            *(Source(name=n, kind=kind, block=k) for n, kind, k, _ in sublayers),
        ),
        offered=tuple(stream.offered(reader) for reader in range(1, len(layout) + 2)),
        writers=tuple(stream.writers),
        routes=routes if routed else None,
        state_site=model.blocks[0] if routed else None,
        facts=_facts(model, family),
    )


def _facts(model: SiT, family: str) -> dict[str, Any]:
    config = model.config
    routed = config.routing == "dar"
    return {
        "family": family,
        "routing": config.routing,
        "query": config.query if routed else None,
        "chunk_size": config.chunk_size if routed else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "depth": config.depth,
        "width": config.width,
        "heads": config.heads,
        "tokens": (config.input_size // config.patch) ** 2,
    }


FAMILY = Family(
    name="sit",
    title="SiT, DiT, REPA, dar-probe",
    marks=(r"x_embedder\.proj\.weight$", r"blocks\.0\.adaLN_modulation\.1\.weight$"),
    identify=identify,
    build=build,
    subject=lambda model, identified: subject(model, family=identified.family),  # type: ignore[arg-type]
)
