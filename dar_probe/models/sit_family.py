"""The bundled backbone: SiT, DiT and REPA layouts, plain or routed."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from dar_probe.checkpoints.header import Header
from dar_probe.diffusion import latent_norm
from dar_probe.models.sit import SiT, SiTConfig, routing_options
from dar_probe.models.sit_layout import read_sizes
from dar_probe.sites import routed
from dar_probe.sites.family import Family, Identified
from dar_probe.sites.subject import Branch, Reader, Subject


def identify(header: Header, heads: int | None = None) -> Identified:
    """Tell sizes, routing and objective of a file.

    Raises:
        CheckpointError: the layout is unknown or contradicts itself, or the heads are unknown.
        UsageError: ``heads`` does not fit the file.
    """
    found = asdict(read_sizes(header, heads))
    family, assumptions = found.pop("family"), found.pop("assumptions")
    objective, unused = found.pop("objective"), found.pop("unused")
    found["null_class"] = found.pop("class_dropout")
    found |= found.pop("routing")
    return Identified(
        family=family,
        sizes=found,
        shape=(found["in_channels"], found["input_size"], found["input_size"]),
        num_classes=found["num_classes"],
        objective=objective,
        assumptions=assumptions,
        unused=unused,
    )


def build(identified: Identified) -> SiT:
    """Return a model of these sizes."""
    sizes = dict(identified.sizes)
    return SiT(SiTConfig(**{**sizes, "projectors": tuple(sizes["projectors"])}))


def subject(model: SiT, *, family: str = "sit") -> Subject:
    """Name the sites of a bundled model, at sublayer granularity."""
    stream = model.stream
    return Subject(
        model=model, family=family, readers=tuple(_readers(model, routed.names_of(stream))),
        sources=tuple(routed.sources_of(stream)), **routed.shared(stream),
        facts=_facts(model, family),
    )  # fmt: skip


def _readers(model: SiT, names: list[str]) -> Iterator[Reader]:
    layout = model.stream.layout
    branches = [(block, j, name) for block in model.blocks for j, name in ((1, "attn"), (2, "mlp"))]
    for l, name in enumerate(names, 1):
        kind, k, (block, j, branch) = layout.kinds[l - 1], layout.blocks[l - 1], branches[l - 1]
        yield Reader(
            name=name,
            kind=kind,
            block=k,
            module=block.get_submodule(f"norm{j}"),
            branches=(
                Branch(
                    output=block.get_submodule(branch),
                    gate=block.get_submodule("adaLN_modulation"),
                    chunk=(3 * j - 1, 6),
                    scale=model.stream.scale_of(l),
                ),
            )
            if model.stream.scalar  # else the stream holds no write as such
            else (),
        )
    head = model.final_layer.norm_final
    yield Reader(name="head", kind="head", block=model.config.depth + 1, module=head)


def _facts(model: SiT, family: str) -> dict[str, Any]:
    config = model.config
    return {
        "family": family,
        "routing": config.routing,
        "query": None,
        "chunk_size": None,
        **routing_options(config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "depth": config.depth,
        "width": config.width,
        "heads": config.heads,
        "tokens": (config.input_size // config.patch) ** 2,
    }


FAMILY = Family(
    name="sit",
    title="SiT, DiT, REPA, dar-probe",
    marks=(r"x_embedder\.proj\.weight\Z", r"blocks\.0\.adaLN_modulation\.1\.weight\Z"),
    identify=identify,
    build=build,
    subject=lambda model, identified: subject(model, family=identified.family),  # type: ignore[arg-type]
    norm=latent_norm.of_weights,
)
